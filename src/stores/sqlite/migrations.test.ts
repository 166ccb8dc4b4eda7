import { Database } from 'bun:sqlite'
import { afterAll, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { getTableConfig } from 'drizzle-orm/sqlite-core'
import { PlatformError } from '../../errors.ts'
import { systemClock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { openSqliteStore } from './index.ts'
import { knownVersion, migrate, migrations } from './migrations.ts'
import { resourceIndexes, resources } from './schema.ts'
import versionOne from './testdata/version-1.sql' with { type: 'text' }

const root = mkdtempSync(join(tmpdir(), 'hutch-migrations-'))
let files = 0
const newPath = () => join(root, `${files++}.db`)
afterAll(() => rmSync(root, { recursive: true }))

const open = (path: string) => openSqliteStore({ path, clock: systemClock, log: silentLogger })

function databaseOf(path: string, sql: string): void {
  const database = new Database(path, { create: true })
  database.exec(sql)
  database.close()
}

async function errorOf(work: Promise<AsyncDisposable>): Promise<PlatformError> {
  try {
    const store = await work
    await store[Symbol.asyncDispose]()
  } catch (error) {
    if (PlatformError.is(error)) return error
    throw error
  }
  throw new Error('it opened')
}

test('migrations are numbered from 1 without gaps', () => {
  expect(migrations.map(({ version }) => version)).toEqual(migrations.map((_, index) => index + 1))
})

test('a database of version 1 keeps its resources and gains what later versions added', async () => {
  const path = newPath()
  databaseOf(path, versionOne)
  {
    await using store = await open(path)
    expect(await store.get({ kind: 'sandbox', workspace: 'main', name: 'first' })).toEqual({
      id: 'mfz8q0b00000abcdefgh',
      kind: 'sandbox',
      workspace: 'main',
      name: 'first',
      version: 7,
      createdAt: 1790000000002,
      updatedAt: 1790000009000,
      indexes: { status: 'DEPLOYED', externalId: 'ext "1"' },
      body: { spec: { memory: 4096 }, note: 'ünï' },
    })
    const found = async (index: string, value: string) =>
      (await store.find({ kind: 'sandbox', index, value })).map(({ name }) => name)
    expect(await found('status', 'DEPLOYED')).toEqual(['second', 'first'])
    expect(await found('externalId', 'ext "1"')).toEqual(['first'])
    await store.update({ kind: 'sandbox', workspace: 'main', name: 'first' }, 7, {
      body: {},
      indexes: { status: 'FAILED' },
    })
    expect(await found('status', 'DEPLOYED')).toEqual(['second'])
  }
  const database = new Database(path, { readonly: true })
  const versions = database.query('SELECT version, name FROM schema_versions ORDER BY version').all()
  expect(versions).toEqual(migrations.map(({ version, name }) => ({ version, name })))
  database.close()
})

test('a migrated database has the same schema as a new one', async () => {
  const [old, fresh] = [newPath(), newPath()]
  databaseOf(old, versionOne)
  for (const path of [old, fresh]) await (await open(path))[Symbol.asyncDispose]()
  const schemaOf = (path: string) => {
    const database = new Database(path, { readonly: true })
    const schema = database
      .query('SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name')
      .all()
    database.close()
    return schema
  }
  expect(schemaOf(old)).toEqual(schemaOf(fresh))
})

test('the tables in code are the tables in the database', async () => {
  const path = newPath()
  await (await open(path))[Symbol.asyncDispose]()
  const database = new Database(path, { readonly: true })
  for (const table of [resources, resourceIndexes]) {
    const { name, columns, indexes } = getTableConfig(table)
    const stored = database
      .query<{ name: string; type: string; notnull: number }, [string]>('SELECT * FROM pragma_table_info(?)')
      .all(name)
    expect(stored.map((column) => [column.name, column.type.toLowerCase(), column.notnull === 1])).toEqual(
      columns.map((column) => [column.name, column.getSQLType(), column.notNull]),
    )
    const storedIndexes = database
      .query<{ name: string }, [string]>(
        `SELECT name FROM pragma_index_list(?) WHERE origin = 'c' ORDER BY name`,
      )
      .all(name)
    expect(storedIndexes.map((index) => index.name)).toEqual(
      indexes.map(({ config }) => config.name ?? '').sort(),
    )
  }
  database.close()
})

test('a database of a newer version is refused, both versions are named, and nothing is changed', async () => {
  const path = newPath()
  await (await open(path))[Symbol.asyncDispose]()
  databaseOf(path, `INSERT INTO schema_versions VALUES (${knownVersion + 5}, 'later', 1)`)
  const digest = () => createHash('sha256').update(readFileSync(path)).digest('hex')
  const before = digest()
  const error = await errorOf(open(path))
  expect(error.code).toBe('conflict')
  expect(error.message).toContain(`version ${knownVersion},`)
  expect(error.message).toContain(`version ${knownVersion + 5}:`)
  expect(error.message).toContain(path)
  expect(digest()).toBe(before)
  const log = `${path}-wal`
  expect(existsSync(log) ? statSync(log).size : 0).toBe(0)
})

test('a migration that fails leaves the database as it was', () => {
  const path = newPath()
  // The name that migration 2 needs is taken.
  databaseOf(path, `${versionOne}\nCREATE VIEW resource_indexes AS SELECT 1;`)
  const database = new Database(path)
  expect(() => migrate(database, path, 1)).toThrow(/resource_indexes/)
  expect(database.query('SELECT version FROM schema_versions').all()).toEqual([{ version: 1 }])
  expect(
    database.query(`SELECT name FROM sqlite_schema WHERE name = 'resources_by_creation_anywhere'`).all(),
  ).toEqual([])
  database.close()
})

test('a database of another program, and a file that is none, are refused and kept', async () => {
  const foreign = newPath()
  databaseOf(foreign, 'CREATE TABLE notes (text TEXT)')
  expect((await errorOf(open(foreign))).message).toContain('another program')
  const garbage = newPath()
  writeFileSync(garbage, 'this is no database at all, it only looks like one from far away'.repeat(20))
  const kept = readFileSync(garbage)
  expect((await errorOf(open(garbage))).message).toContain('not a database')
  expect(readFileSync(garbage)).toEqual(kept)
})

test('the database is readable by its owner only', async () => {
  const path = newPath()
  await using store = await open(path)
  await store.create({ kind: 'user', workspace: '', name: 'a', body: {} })
  for (const file of [path, `${path}-wal`, `${path}-shm`]) expect(statSync(file).mode & 0o777).toBe(0o600)
})

test('closing folds the log into the database', async () => {
  const path = newPath()
  const store = await open(path)
  await store.create({ kind: 'user', workspace: '', name: 'a', body: {} })
  expect(existsSync(`${path}-wal`)).toBe(true)
  await store[Symbol.asyncDispose]()
  expect(existsSync(`${path}-wal`)).toBe(false)
  await using again = await open(path)
  expect(await again.get({ kind: 'user', workspace: '', name: 'a' })).not.toBeNull()
})
