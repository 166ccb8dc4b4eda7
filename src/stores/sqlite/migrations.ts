import type { Database } from 'bun:sqlite'
import { PlatformError } from '../../errors.ts'
import resourcesSql from './migrations/0001_resources.sql' with { type: 'text' }
import resourceIndexesSql from './migrations/0002_resource_indexes.sql' with { type: 'text' }
import workSql from './migrations/0003_work.sql' with { type: 'text' }

export interface Migration {
  version: number
  name: string
  sql: string
}

/** In order, numbered from 1 without gaps. One that was released is never changed. */
export const migrations: readonly Migration[] = [
  { version: 1, name: 'resources', sql: resourcesSql },
  { version: 2, name: 'resource_indexes', sql: resourceIndexesSql },
  { version: 3, name: 'work', sql: workSql },
]

export const knownVersion = migrations.length

/** The version a database is at; 0 for an empty one. Only reads. @throws conflict when it is not one of ours. */
export function databaseVersion(database: Database, path: string): number {
  const tables = database
    .query<{ name: string }, []>(`SELECT name FROM sqlite_schema WHERE type = 'table' LIMIT 1000`)
    .all()
  if (tables.length === 0) return 0
  if (!tables.some((table) => table.name === 'schema_versions')) {
    throw new PlatformError('conflict', `${path} is a SQLite database of another program, not one of hutch's`)
  }
  const row = database
    .query<{ version: number | null }, []>('SELECT max(version) AS version FROM schema_versions')
    .get()
  return row?.version ?? 0
}

/** @throws conflict for a version that only a newer executable knows. */
export function refuseNewer(version: number, path: string): void {
  if (version <= knownVersion) return
  throw new PlatformError(
    'conflict',
    `this executable knows database version ${knownVersion}, but ${path} is version ${version}: it was written by a ` +
      'newer hutch. Start that one, or use another data directory. Nothing was changed',
    { details: { knownVersion, databaseVersion: version } },
  )
}

/** Brings a database to `target`, all steps or none. The connection must be writable. */
export function migrate(database: Database, path: string, nowMs: number, target = knownVersion): void {
  // Immediate: two openers must not both find version 0 and both create the tables.
  database.exec('BEGIN IMMEDIATE')
  try {
    const from = databaseVersion(database, path)
    refuseNewer(from, path)
    database.exec(
      'CREATE TABLE IF NOT EXISTS schema_versions (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT',
    )
    const record = database.prepare(
      'INSERT INTO schema_versions (version, name, applied_at) VALUES (?, ?, ?)',
    )
    for (const migration of migrations) {
      if (migration.version <= from || migration.version > target) continue
      database.exec(migration.sql)
      record.run(migration.version, migration.name, nowMs)
    }
    record.finalize()
    database.exec('COMMIT')
  } catch (error) {
    if (database.inTransaction) database.exec('ROLLBACK')
    throw error
  }
}
