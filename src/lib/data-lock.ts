import { Database } from 'bun:sqlite'
import { randomBytes } from 'node:crypto'
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'

/** What `platform.json` says of the platform that holds a data directory. */
export interface PlatformRecord {
  pid: number
  /** Absent while it starts. */
  url?: string
  startedAt?: string
  [extra: string]: unknown
}

export interface DataLock extends Disposable {
  /** Tells others who holds the directory: replaces platform.json as a whole, readable by its owner only. */
  publish(record: PlatformRecord): void
  /** Removes platform.json and lets go. */
  [Symbol.dispose](): void
}

/**
 * Takes a data directory for one platform, within this process too. The kernel lets go of it when the process dies,
 * however it dies; processes it started do not hold it on.
 *
 * The lock is SQLite's own on a file that nothing else opens: record locks that a child does not inherit, and that
 * know of other holders in the same process, which neither flock nor bare fcntl gives.
 * `beforeWriting` is called once the directory is ours, before anything is written there.
 * @throws conflict, which names the holder
 */
export function acquireDataLock(
  dataDir: string,
  owner: { pid: number; url?: string },
  beforeWriting: () => void = () => {},
): DataLock {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  const path = join(dataDir, 'lock')
  const recordPath = join(dataDir, 'platform.json')
  makeFile(path)
  const database = new Database(path, { readwrite: true })
  try {
    database.exec('PRAGMA busy_timeout = 0')
    // Nothing is ever written, so no journal need lie beside it.
    database.exec('PRAGMA journal_mode = MEMORY')
    database.exec('BEGIN EXCLUSIVE')
  } catch (error) {
    database.close()
    const code = (error as { code?: string }).code ?? ''
    if (code.startsWith('SQLITE_BUSY')) throw held(dataDir, recordPath)
    const message = `the lock ${path} cannot be taken: ${error instanceof Error ? error.message : String(error)}`
    throw new PlatformError('internal', message, { cause: error })
  }

  let holding = true
  const publish = (record: PlatformRecord) => {
    if (!holding) throw new PlatformError('internal', `the lock on ${dataDir} was given up`)
    replaceFile(recordPath, `${JSON.stringify(record)}\n`)
  }
  const release = () => {
    if (!holding) return
    holding = false
    try {
      rmSync(recordPath, { force: true })
    } finally {
      database.exec('ROLLBACK')
      database.close()
    }
  }
  try {
    beforeWriting()
    // In place of what a killed holder left.
    publish(owner.url === undefined ? { pid: owner.pid } : { pid: owner.pid, url: owner.url })
  } catch (error) {
    release()
    throw error
  }
  return { publish, [Symbol.dispose]: release }
}

/** Opens nothing that is there: closing any descriptor of a file lets go of this process's locks on it. */
function makeFile(path: string): void {
  try {
    closeSync(openSync(path, 'wx', 0o600))
  } catch (error) {
    if ((error as { code?: string }).code !== 'EEXIST') throw error
  }
}

function held(dataDir: string, recordPath: string): PlatformError {
  const holder = readRecord(recordPath)
  const who = holder === null ? 'another process' : `process ${holder.pid}`
  const where =
    holder === null ? '' : holder.url === undefined ? ', which is starting' : `, which serves ${holder.url}`
  return new PlatformError(
    'conflict',
    `the data directory ${dataDir} is held by ${who}${where}: stop it first, or choose another with --data-dir`,
    {
      details:
        holder === null ? {} : { pid: holder.pid, ...(holder.url === undefined ? {} : { url: holder.url }) },
    },
  )
}

function readRecord(path: string): { pid: number; url?: string } | null {
  try {
    const record = JSON.parse(readFileSync(path, 'utf8')) as Partial<PlatformRecord> | null
    if (typeof record?.pid !== 'number') return null
    return typeof record.url === 'string' ? { pid: record.pid, url: record.url } : { pid: record.pid }
  } catch {
    return null
  }
}

function replaceFile(path: string, text: string): void {
  const draft = `${path}.${randomBytes(6).toString('hex')}`
  try {
    writeFileSync(draft, text, { mode: 0o600, flag: 'wx' })
    renameSync(draft, path)
  } catch (error) {
    rmSync(draft, { force: true })
    throw error
  }
}
