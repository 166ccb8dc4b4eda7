import { Database } from 'bun:sqlite'
import { closeSync, fdatasyncSync, openSync } from 'node:fs'
import type { Mutation, Outcome, ResourceStep, StepResult, WriteStep } from './protocol.ts'
import type { WorkStep } from './work-protocol.ts'
import { WorkWriter } from './work-writer.ts'

const busyTimeoutMs = 5000
const busyPauseMs = 5
/** What the file of the log is cut down to when it begins anew; below that its blocks are written over, which is quicker than to get new ones. */
const logFileBytesMax = 64 * 1024 * 1024

export type Durability = 'power' | 'process'

export type WriterConnection = ReturnType<typeof openWriter>

export interface WriterConnectionOptions {
  path: string
  durability: Durability
  /** The thread before could not make durable what it wrote into the log: it is folded into the database first. */
  isAgain?: boolean
  /** Makes what was written to a file durable. */
  sync?: (descriptor: number) => void
}

/**
 * The connection that writes. SQLite is told to sync the log only where the order of writes needs it (`NORMAL`); what makes
 * a group durable is `keep`. SQLite itself would call fsync, which takes the file's new time along and so a commit
 * of the file system's journal, with whatever others wrote to it.
 */
export function openWriter({
  path,
  durability,
  isAgain = false,
  sync = fdatasyncSync,
}: WriterConnectionOptions) {
  const database = new Database(path, { readwrite: true })
  database.exec(`PRAGMA busy_timeout = ${busyTimeoutMs}`)
  database.exec('PRAGMA synchronous = NORMAL')
  database.exec(`PRAGMA journal_size_limit = ${logFileBytesMax}`)
  // By a thread of its own.
  database.exec('PRAGMA wal_autocheckpoint = 0')
  if (isAgain) {
    try {
      foldWhole(database)
    } catch (error) {
      database.close()
      throw error
    }
  }
  const statements = {
    changes: database.prepare<{ count: number }, []>('SELECT total_changes() AS count'),
    log: database.prepare<{ log: number }, []>('PRAGMA wal_checkpoint(NOOP)'),
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
  let logFile: number | null = null
  let keptChanges = 0
  return {
    ...statements,
    work,
    database,
    /** What was committed since the last call is there after a power cut, once this returns. @throws when that is not known */
    keep() {
      const changes = statements.changes.get()?.count ?? 0
      if (changes === keptChanges) return
      if (durability === 'power') {
        // Only the log is opened a second time: to close the database's file would give up SQLite's locks on it.
        logFile ??= openSync(`${path}-wal`, 'r+')
        sync(logFile)
      }
      keptChanges = changes
    },
    /** How long the log is. */
    logPages: () => statements.log.get()?.log ?? 0,
    /** Folds the log into the database. */
    close() {
      // With one left SQLite would keep the connection half open, and the log with it.
      for (const statement of Object.values(statements)) statement.finalize()
      work.finalize()
      database.exec('PRAGMA wal_checkpoint(TRUNCATE)')
      database.close()
      if (logFile !== null) closeSync(logFile)
    },
  }
}

/** @throws when some of it is still read by somebody */
function foldWhole(database: Database): void {
  const fold = database.prepare<{ busy: number }, []>('PRAGMA wal_checkpoint(TRUNCATE)')
  const deadline = performance.now() + busyTimeoutMs
  // For others that fold, as the thread that stopped may do at its end, SQLite does not wait by itself.
  try {
    while (fold.get()?.busy !== 0) {
      if (performance.now() > deadline) throw new Error('the log could not be folded into the database')
      Bun.sleepSync(busyPauseMs)
    }
  } finally {
    fold.finalize()
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
