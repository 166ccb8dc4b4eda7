-- resources.indexes is the truth; these rows follow it by trigger, so that they cannot diverge from it.
CREATE TABLE resource_indexes (
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  resource_id TEXT NOT NULL,
  workspace TEXT NOT NULL,
  PRIMARY KEY (kind, name, value, created_at, resource_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX resource_indexes_by_resource ON resource_indexes (resource_id, name);
CREATE INDEX resources_by_creation_anywhere ON resources (kind, created_at, id);

INSERT INTO resource_indexes (kind, name, value, created_at, resource_id, workspace)
  SELECT r.kind, entry.key, entry.value, r.created_at, r.id, r.workspace
  FROM resources r, json_each(r.indexes) entry;

CREATE TRIGGER resources_after_insert AFTER INSERT ON resources WHEN new.indexes <> '{}' BEGIN
  INSERT INTO resource_indexes (kind, name, value, created_at, resource_id, workspace)
    SELECT new.kind, entry.key, entry.value, new.created_at, new.id, new.workspace
    FROM json_each(new.indexes) entry;
END;

CREATE TRIGGER resources_after_update AFTER UPDATE OF indexes ON resources WHEN new.indexes <> old.indexes BEGIN
  DELETE FROM resource_indexes WHERE resource_id = old.id;
  INSERT INTO resource_indexes (kind, name, value, created_at, resource_id, workspace)
    SELECT new.kind, entry.key, entry.value, new.created_at, new.id, new.workspace
    FROM json_each(new.indexes) entry;
END;

CREATE TRIGGER resources_after_delete AFTER DELETE ON resources WHEN old.indexes <> '{}' BEGIN
  DELETE FROM resource_indexes WHERE resource_id = old.id;
END;
