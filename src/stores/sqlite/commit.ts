import { Database } from 'bun:sqlite'
import type { Mutation, Outcome, ResourceStep, StepResult, WriteStep } from './protocol.ts'
import type { WorkStep } from './work-protocol.ts'
import { WorkWriter } from './work-writer.ts'

const busyTimeoutMs = 5000
const walBytesMax = 64 * 1024 * 1024
/** Pages of the log, 32 MiB: each time it is folded into the database whoever writes waits, for the more the longer ago. */
const checkpointPages = 8192

export type WriterConnection = ReturnType<typeof openWriter>

export function openWriter(path: string, synchronous: 'FULL' | 'NORMAL') {
  const database = new Database(path, { readwrite: true })
  database.exec(`PRAGMA busy_timeout = ${busyTimeoutMs}`)
  database.exec(`PRAGMA synchronous = ${synchronous}`)
  database.exec(`PRAGMA journal_size_limit = ${walBytesMax}`)
  database.exec(`PRAGMA wal_autocheckpoint = ${checkpointPages}`)
  const statements = {
    begin: database.prepare('BEGIN IMMEDIATE'),
    commit: database.prepare('COMMIT'),
    rollback: database.prepare('ROLLBACK'),
    savepoint: database.prepare('SAVEPOINT mutation'),
    release: database.prepare('RELEASE mutation'),
    rollbackTo: database.prepare('ROLLBACK TO mutation'),
    insert: database.prepare(
      `INSERT INTO resources (id, kind, workspace, name, version, created_at, updated_at, indexes, body)
       VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT (kind, workspace, name) DO NOTHING`,
    ),
    update: database.prepare<
      { id: string; version: number; created_at: number; indexes: string },
      [number, string | null, string, string, string, string, number]
    >(
      `UPDATE resources SET version = version + 1, updated_at = ?, indexes = coalesce(?, indexes), body = ?
       WHERE kind = ? AND workspace = ? AND name = ? AND version = ?
       RETURNING id, version, created_at, indexes`,
    ),
    remove: database.prepare<{ id: string }, [string, string, string, number | null]>(
      `DELETE FROM resources WHERE kind = ?1 AND workspace = ?2 AND name = ?3 AND (?4 IS NULL OR version = ?4)
       RETURNING id`,
    ),
    stored: database.prepare<{ version: number }, [string, string, string]>(
      'SELECT version FROM resources WHERE kind = ? AND workspace = ? AND name = ?',
    ),
    first: database.prepare<{ name: string }, [string, string]>(
      'SELECT name FROM resources WHERE kind = ? AND workspace = ? LIMIT 1',
    ),
  }
  const work = new WorkWriter(database)
  return {
    ...statements,
    work,
    database,
    /** Folds the log into the database. */
    close() {
      // With one left SQLite would keep the connection half open, and the log with it.
      for (const statement of Object.values(statements)) statement.finalize()
      work.finalize()
      database.exec('PRAGMA wal_checkpoint(TRUNCATE)')
      database.close()
    },
  }
}

/** One transaction for all; when it cannot be had, one for each, so that a mutation the disk refuses fails alone. */
export function commitGroup(writer: WriterConnection, mutations: Mutation[]): Outcome[] {
  try {
    return transact(writer, mutations)
  } catch (error) {
    if (mutations.length === 1) return [failure(error)]
    return mutations.map((mutation) => {
      try {
        return transact(writer, [mutation])[0]!
      } catch (alone) {
        return failure(alone)
      }
    })
  }
}

function transact(writer: WriterConnection, mutations: Mutation[]): Outcome[] {
  writer.begin.run()
  try {
    const outcomes = mutations.map((mutation) => apply(writer, mutation))
    writer.commit.run()
    return outcomes
  } catch (error) {
    // SQLite rolls back by itself after some failures, a full disk among them.
    if (writer.database.inTransaction) writer.rollback.run()
    throw error
  }
}

/** Throws only what the whole transaction must fail for. */
function apply(writer: WriterConnection, mutation: Mutation): Outcome {
  writer.savepoint.run()
  const results: StepResult[] = []
  for (const [index, step] of mutation.entries()) {
    const result = isWork(step) ? writer.work.apply(step) : applyStep(writer, step)
    if ('reason' in result) {
      writer.rollbackTo.run()
      writer.release.run()
      return { ok: false, step: index, ...result }
    }
    results.push(result)
  }
  writer.release.run()
  return { ok: true, results }
}

function isWork(step: WriteStep): step is WorkStep {
  return step.op.startsWith('work-')
}

type Refusal =
  | { reason: 'already_exists' | 'not_found' | 'held' }
  | { reason: 'version_mismatch'; storedVersion: number }

function applyStep(writer: WriterConnection, step: ResourceStep): StepResult | Refusal {
  const { kind, workspace, name } = step
  switch (step.op) {
    case 'create': {
      const { id, createdAt, updatedAt, indexes, body } = step
      // Triggers count into `changes`, so only zero says something.
      const { changes } = writer.insert.run(id, kind, workspace, name, createdAt, updatedAt, indexes, body)
      return changes === 0 ? { reason: 'already_exists' } : { op: 'create' }
    }
    case 'update': {
      const { updatedAt, indexes, body, expectedVersion } = step
      const row = writer.update.get(updatedAt, indexes, body, kind, workspace, name, expectedVersion)
      if (row) {
        return {
          op: 'update',
          id: row.id,
          version: row.version,
          createdAt: row.created_at,
          indexes: row.indexes,
        }
      }
      return mismatch(writer, step) ?? { reason: 'not_found' }
    }
    case 'remove': {
      const row = writer.remove.get(kind, workspace, name, step.expectedVersion)
      if (row) return { op: 'remove', id: row.id }
      return mismatch(writer, step) ?? { op: 'remove', id: null }
    }
    case 'require':
      return writer.stored.get(kind, workspace, name) ? { op: 'require' } : { reason: 'not_found' }
    case 'requireNone':
      return writer.first.get(kind, workspace) ? { reason: 'held' } : { op: 'requireNone' }
  }
}

function mismatch(writer: WriterConnection, { kind, workspace, name }: ResourceStep): Refusal | null {
  const row = writer.stored.get(kind, workspace, name)
  return row ? { reason: 'version_mismatch', storedVersion: row.version } : null
}

function failure(error: unknown): Outcome {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  // The second: no room to grow the index of the log.
  const reason = code === 'SQLITE_FULL' || code === 'SQLITE_IOERR_SHMSIZE' ? 'disk_full' : 'failed'
  return {
    ok: false,
    step: 0,
    reason,
    detail: `${code} ${error instanceof Error ? error.message : String(error)}`.trim(),
  }
}
