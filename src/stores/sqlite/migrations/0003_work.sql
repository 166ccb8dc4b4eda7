-- Turns and room of whoever is worked for. The counts follow `work` in the same transaction. A row goes once nothing
-- of it is open, so that what was worked for long ago costs nothing.
CREATE TABLE work_targets (
  id INTEGER NOT NULL PRIMARY KEY,
  workspace TEXT NOT NULL,
  queue TEXT NOT NULL,
  target TEXT NOT NULL,
  running_max INTEGER NOT NULL,
  -- Ready in keys that have room.
  claimable INTEGER NOT NULL,
  -- Claimed or held.
  busy INTEGER NOT NULL,
  held INTEGER NOT NULL,
  waiting INTEGER NOT NULL,
  open INTEGER NOT NULL,
  turn INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX work_targets_by_name ON work_targets (queue, workspace, target);
CREATE INDEX work_targets_by_turn ON work_targets (queue, turn) WHERE claimable > 0 AND busy < running_max;

CREATE TABLE work_keys (
  id INTEGER NOT NULL PRIMARY KEY,
  target_id INTEGER NOT NULL,
  name TEXT NOT NULL,
  running_max INTEGER NOT NULL,
  ready INTEGER NOT NULL,
  busy INTEGER NOT NULL,
  open INTEGER NOT NULL,
  turn INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX work_keys_by_name ON work_keys (target_id, name);
CREATE INDEX work_keys_by_turn ON work_keys (target_id, turn) WHERE ready > 0 AND busy < running_max;

CREATE TABLE work (
  -- In the order in which it was accepted.
  seq INTEGER NOT NULL PRIMARY KEY,
  id TEXT NOT NULL,
  queue TEXT NOT NULL,
  workspace TEXT NOT NULL,
  target TEXT NOT NULL,
  key TEXT NOT NULL,
  -- Null: held from the beginning, nobody's turn.
  key_id INTEGER,
  priority INTEGER NOT NULL,
  run_at INTEGER NOT NULL,
  -- waiting, running, held, or how it ended.
  state TEXT NOT NULL,
  -- Of what waits: it is due, so that claims need not look at what is not.
  ready INTEGER NOT NULL,
  lease_ms INTEGER NOT NULL,
  -- Of what is claimed: the end of its lease. Of what is held: when it is to be looked at again.
  until INTEGER,
  group_id TEXT,
  position INTEGER,
  parts INTEGER,
  parts_left INTEGER,
  labels TEXT NOT NULL,
  body TEXT NOT NULL,
  version INTEGER NOT NULL,
  token INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  started_at INTEGER,
  ended_at INTEGER,
  result_bytes INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX work_by_id ON work (id);
CREATE INDEX work_by_queue ON work (workspace, queue);
CREATE INDEX work_by_target ON work (workspace, queue, target);
CREATE INDEX work_open ON work (workspace, queue, state) WHERE ended_at IS NULL;
CREATE INDEX work_ended_by_state ON work (workspace, queue, state) WHERE ended_at IS NOT NULL;
CREATE INDEX work_ended_by_time ON work (workspace, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX work_by_group ON work (group_id, position, state, attempts) WHERE group_id IS NOT NULL;
CREATE INDEX work_ready ON work (key_id, priority DESC, run_at) WHERE state = 'waiting' AND ready = 1;
CREATE INDEX work_delayed ON work (run_at) WHERE state = 'waiting' AND ready = 0;
CREATE INDEX work_until ON work (until) WHERE until IS NOT NULL;
CREATE INDEX work_finished_groups ON work (parts_left) WHERE parts_left = 0 AND ended_at IS NULL;

CREATE TABLE work_labels (
  workspace TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (workspace, name, value, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE work_inputs (seq INTEGER NOT NULL PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE work_results (seq INTEGER NOT NULL PRIMARY KEY, bytes BLOB NOT NULL) STRICT;

-- Idempotency keys; they may outlive what they name.
CREATE TABLE work_requests (
  workspace TEXT NOT NULL,
  key TEXT NOT NULL,
  digest TEXT NOT NULL,
  id TEXT NOT NULL,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (workspace, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX work_requests_by_expiry ON work_requests (expires_at);
