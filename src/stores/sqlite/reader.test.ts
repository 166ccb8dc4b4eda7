import { Database } from 'bun:sqlite'
import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { migrate } from './migrations.ts'
import { openReader } from './reader.ts'

test('what is written while the reader is held is not seen before it is let go', () => {
  const root = mkdtempSync(join(tmpdir(), 'hutch-reader-'))
  const path = join(root, 'one.db')
  const database = new Database(path, { create: true })
  database.exec('PRAGMA journal_mode = WAL')
  migrate(database, path, 1)
  const insert = database.prepare(
    `INSERT INTO resources VALUES (?, 'sandbox', 'main', ?, 1, 1, 1, '{}', '{}')`,
  )
  const reader = openReader(path)
  const names = () =>
    reader.page({ kind: 'sandbox', workspace: 'main' }, 'name:asc', null, 10).rows.map(({ name }) => name)
  insert.run('1', 'a')
  reader.hold()
  insert.run('2', 'b')
  expect(names()).toEqual(['a'])
  expect(reader.get({ kind: 'sandbox', workspace: 'main', name: 'b' })).toBeUndefined()
  reader.letGo()
  expect(names()).toEqual(['a', 'b'])
  // Nothing to let go of; and one that is closed meanwhile is left alone.
  reader.letGo()
  reader.hold()
  reader.close()
  reader.letGo()
  reader.hold()
  insert.finalize()
  database.close()
  rmSync(root, { recursive: true })
})
