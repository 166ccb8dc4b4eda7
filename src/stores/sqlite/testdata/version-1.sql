-- A database as version 1 left it: three resources, two of them indexed.
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE schema_versions (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT;
INSERT INTO schema_versions VALUES (1, 'resources', 1790000000000);
CREATE TABLE resources (
  id TEXT NOT NULL PRIMARY KEY,
  kind TEXT NOT NULL,
  workspace TEXT NOT NULL,
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  indexes TEXT NOT NULL,
  body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX resources_by_key ON resources (kind, workspace, name);
CREATE INDEX resources_by_creation ON resources (kind, workspace, created_at, id);
INSERT INTO resources VALUES ('mfz8q0a00000abcdefgh', 'workspace', '', 'main', 1, 1790000000001, 1790000000001, '{}', '{"displayName":"Main"}');
INSERT INTO resources VALUES ('mfz8q0b00000abcdefgh', 'sandbox', 'main', 'first', 7, 1790000000002, 1790000009000, '{"status":"DEPLOYED","externalId":"ext \"1\""}', '{"spec":{"memory":4096},"note":"ünï"}');
INSERT INTO resources VALUES ('mfz8q0c00000abcdefgh', 'sandbox', 'main', 'second', 1, 1790000000003, 1790000000003, '{"status":"DEPLOYED"}', '{"spec":{"memory":2048}}');
COMMIT;
