import { Database } from 'bun:sqlite'
import { afterAll, describe, expect, test } from 'bun:test'
import { closeSync, copyFileSync, mkdtempSync, openSync, readlinkSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../../errors.ts'
import { systemClock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { storeWritesWaitingMax } from '../../spec/store.ts'
import { commitGroup, openWriter } from './commit.ts'
import { migrate } from './migrations.ts'
import type { Mutation, Outcome, ResourceStep } from './protocol.ts'
import { openReader } from './reader.ts'
import { Writer, type WriterOptions } from './writer.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-writer-'))
let files = 0
afterAll(() => rmSync(root, { recursive: true }))

function newDatabase(): string {
  const path = join(root, `${files++}.db`)
  const database = new Database(path, { create: true })
  database.exec('PRAGMA journal_mode = WAL')
  migrate(database, path, 1)
  database.close()
  return path
}

const creation = (name: string, body = '{}', indexes = '{}'): Mutation => [
  {
    op: 'create',
    id: `id-${name}`,
    kind: 'sandbox',
    workspace: 'main',
    name,
    createdAt: 1,
    updatedAt: 1,
    indexes,
    body,
  },
]

const thread = (module: string) => new Worker(new URL(module, import.meta.url).href) as unknown as Bun.Worker

const optionsOf = (path: string): WriterOptions => ({
  path,
  durability: 'power',
  clock: systemClock,
  log: silentLogger,
  makeRoom: () => false,
  startWorker: () => thread('./writer.worker.ts'),
  startFolder: () => thread('./folder.worker.ts'),
  onBegin: () => {},
  onOver: () => {},
  onCommit: () => {},
  onLost: () => {},
})

async function errorOf(work: Promise<unknown>): Promise<PlatformError> {
  const error = await work.then(
    () => null,
    (reason) => reason,
  )
  if (PlatformError.is(error)) return error
  throw error ?? new Error('it succeeded')
}

describe('a group', () => {
  const brief = (outcomes: Outcome[]) => outcomes.map((outcome) => (outcome.ok ? 'ok' : outcome.reason))

  test('is one commit in which every mutation stands or falls alone', () => {
    const path = newDatabase()
    const writer = openWriter({ path, durability: 'power' })
    const outcomes = commitGroup(writer, [
      creation('a'),
      creation('a'),
      [...creation('b'), ...creation('a')],
      [{ op: 'remove', kind: 'sandbox', workspace: 'main', name: 'a', expectedVersion: 9 }],
      [
        {
          op: 'update',
          kind: 'sandbox',
          workspace: 'main',
          name: 'a',
          expectedVersion: 1,
          updatedAt: 2,
          indexes: null,
          body: '1',
        },
      ],
      creation('c'),
    ])
    expect(brief(outcomes)).toEqual([
      'ok',
      'already_exists',
      'already_exists',
      'version_mismatch',
      'ok',
      'ok',
    ])
    expect(outcomes[2]).toMatchObject({ step: 1 })
    const names = writer.database.query('SELECT name, version FROM resources ORDER BY name').all()
    expect(names).toEqual([
      { name: 'a', version: 2 },
      { name: 'c', version: 1 },
    ])
    writer.close()
  })

  test('with a mutation the disk has no room for fails only that one, and leaves nothing of it', () => {
    const path = newDatabase()
    const writer = openWriter({ path, durability: 'power' })
    const { page_count: pages } = writer.database
      .query<{ page_count: number }, []>('PRAGMA page_count')
      .get()!
    writer.database.exec(`PRAGMA max_page_count = ${pages + 20}`)
    const large = JSON.stringify('x'.repeat(1024 * 1024))
    const outcomes = commitGroup(writer, [
      creation('a'),
      [...creation('b'), ...creation('large', large)],
      creation('c'),
    ])
    expect(brief(outcomes)).toEqual(['ok', 'disk_full', 'ok'])
    expect(brief(commitGroup(writer, [creation('large', large)]))).toEqual(['disk_full'])
    expect(brief(commitGroup(writer, [creation('d')]))).toEqual(['ok'])
    const names = writer.database
      .query<{ name: string }, []>('SELECT name FROM resources ORDER BY name')
      .all()
    expect(names.map(({ name }) => name)).toEqual(['a', 'c', 'd'])
    expect(writer.database.query('PRAGMA integrity_check').all()).toEqual([{ integrity_check: 'ok' }])
    writer.close()
  })

  test('is durable once it is kept, at the cost of one sync, and of none when nothing was changed', () => {
    const path = newDatabase()
    const synced: string[] = []
    const sync = (descriptor: number) => void synced.push(readlinkSync(`/proc/self/fd/${descriptor}`))
    const writer = openWriter({ path, durability: 'power', sync })
    expect(writer.database.query('PRAGMA journal_mode').get()).toEqual({ journal_mode: 'wal' })
    commitGroup(writer, [creation('a'), creation('b')])
    expect(synced).toEqual([])
    writer.keep()
    expect(synced).toEqual([`${path}-wal`])
    commitGroup(writer, [creation('a')])
    writer.keep()
    expect(synced).toHaveLength(1)
    writer.close()
    // Survives the process, not the power.
    const quick = openWriter({ path, durability: 'process', sync })
    commitGroup(quick, [creation('c')])
    quick.keep()
    expect(synced).toHaveLength(1)
    quick.close()
  })

  test('is folded into the database by another connection, while its own goes on and begins the log anew', () => {
    const path = newDatabase()
    const writer = openWriter({ path, durability: 'power' })
    const folder = new Database(path, { readwrite: true })
    for (let n = 0; n < 20; n++) commitGroup(writer, [creation(`n${n}`)])
    const before = writer.logPages()
    expect(before).toBeGreaterThan(20)
    expect(folder.query('PRAGMA wal_checkpoint(PASSIVE)').get()).toMatchObject({ checkpointed: before })
    commitGroup(writer, [creation('after')])
    expect(writer.logPages()).toBeLessThan(before)
    folder.close()
    writer.close()
  })

  test('keeps the index rows in step with their resources', () => {
    const path = newDatabase()
    const writer = openWriter({ path, durability: 'power' })
    const update = (expectedVersion: number, indexes: string | null): Mutation => [
      {
        op: 'update',
        kind: 'sandbox',
        workspace: 'main',
        name: 'a',
        expectedVersion,
        updatedAt: 2,
        indexes,
        body: '{}',
      },
    ]
    const rows = () =>
      writer.database
        .query<{ name: string; value: string }, []>('SELECT name, value FROM resource_indexes ORDER BY name')
        .all()
        .map(({ name, value }) => `${name}=${value}`)
    commitGroup(writer, [creation('a', '{}', '{"x":"1","y":"2"}')])
    expect(rows()).toEqual(['x=1', 'y=2'])
    commitGroup(writer, [update(1, null), update(2, '{"x":"3"}'), update(2, '{"z":"lost"}')])
    expect(rows()).toEqual(['x=3'])
    commitGroup(writer, [
      [{ op: 'remove', kind: 'sandbox', workspace: 'main', name: 'a', expectedVersion: null }],
    ])
    expect(rows()).toEqual([])
    writer.close()
  })
})

describe('the writer', () => {
  test('whose thread dies says that the outcome is unknown, tells watchers, and starts again', async () => {
    const path = newDatabase()
    const modules = ['./testdata/crashing.worker.ts', './writer.worker.ts']
    let lost = 0
    const committed: string[] = []
    const writer = new Writer({
      ...optionsOf(path),
      startWorker: () => thread(modules.shift()!),
      onCommit: ([step]) => committed.push((step as ResourceStep).name),
      onLost: () => lost++,
    })
    const error = await errorOf(writer.submit(creation('a')))
    expect(error.code).toBe('internal')
    expect(error.message).toContain('read again')
    expect(lost).toBe(1)
    expect(await writer.submit(creation('b'))).toEqual([{ op: 'create' }])
    expect(committed).toEqual(['b'])
    await writer.close()
    expect(modules).toEqual([])
  })

  test('is not kept from what others write by something that no thread can be given', async () => {
    const writer = new Writer(optionsOf(newDatabase()))
    const unsendable = creation('b', (() => '{}') as never)
    const [first, refused, last] = [creation('a'), unsendable, creation('c')].map((one) => writer.submit(one))
    const { code } = await errorOf(refused!)
    expect(code).toBe('internal')
    expect(await Promise.all([first, last])).toEqual([[{ op: 'create' }], [{ op: 'create' }]])
    expect((await errorOf(writer.submit(unsendable))).code).toBe('internal')
    expect(await writer.submit(creation('d'))).toEqual([{ op: 'create' }])
    await writer.close()
  })

  test('whose disk may not have kept what it wrote says so, and folds it into the database before it goes on', async () => {
    const path = newDatabase()
    const modules = ['./testdata/unsynced.worker.ts', './writer.worker.ts']
    const reader = openReader(path)
    const writer = new Writer({
      ...optionsOf(path),
      startWorker: () => thread(modules.shift()!),
      onBegin: () => reader.hold(),
      onOver: () => reader.letGo(),
    })
    const error = await errorOf(writer.submit(creation('a')))
    expect(error.code).toBe('internal')
    expect(error.message).toContain('read again')
    expect(await writer.submit(creation('b'))).toEqual([{ op: 'create' }])
    // Without the log: as if it had not been kept.
    const copy = join(root, 'folded.db')
    copyFileSync(path, copy)
    const database = new Database(copy)
    expect(database.query('SELECT name FROM resources').values()).toEqual([['a']])
    database.close()
    reader.close()
    await writer.close()
  })

  test('folds its log while it writes, and begins it anew', async () => {
    const path = newDatabase()
    const writer = new Writer({ ...optionsOf(path), foldFromPages: 100 })
    /** How often the log began anew is in its head. */
    const began = () => {
      const head = Buffer.alloc(16)
      const file = openSync(`${path}-wal`, 'r')
      readSync(file, head, 0, head.length, 0)
      closeSync(file)
      return head.readUInt32BE(12)
    }
    await writer.submit(creation('first'))
    const first = began()
    let written = 1
    while (began() === first) await writer.submit(creation(`n${written++}`))
    await writer.close()
    const database = new Database(path)
    expect(database.query('SELECT count(*) AS count FROM resources').get()).toEqual({ count: written })
    expect(database.query('PRAGMA integrity_check').all()).toEqual([{ integrity_check: 'ok' }])
    database.close()
  }, 120_000)

  test('refuses more than may wait, and says when to try again', async () => {
    const silent = thread('./testdata/silent.worker.ts')
    const writer = new Writer({ ...optionsOf(newDatabase()), startWorker: () => silent })
    for (let n = 0; n < storeWritesWaitingMax; n++) writer.submit(creation(`n${n}`)).catch(() => {})
    const error = await errorOf(writer.submit(creation('one too many')))
    expect(error.code).toBe('unavailable')
    expect(error.retryAfterSeconds).toBe(1)
    silent.terminate()
  })
})
