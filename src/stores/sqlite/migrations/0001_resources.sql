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
