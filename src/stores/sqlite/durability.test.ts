import { afterAll, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { systemClock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { openSqliteStore } from './index.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-durability-'))
const program = join(import.meta.dir, 'testdata', 'writing-program.ts')
const sourceRoot = resolve(import.meta.dir, '..', '..')
afterAll(() => rmSync(root, { recursive: true }))

test('what was acknowledged is there after kill -9 at any moment, and batches are whole', async () => {
  const path = join(root, 'killed.db')
  const acknowledged: string[] = []
  for (let round = 0; round < 6; round++) {
    const child = Bun.spawn([process.execPath, program, path], { stdout: 'pipe', stderr: 'inherit' })
    // Enough lines to be in the middle of something, never the same number.
    const killAfter = 20 + Math.floor(Math.random() * 200)
    let text = ''
    const decoder = new TextDecoder()
    let lines = 0
    for await (const chunk of child.stdout) {
      text += decoder.decode(chunk, { stream: true })
      lines = text.split('\n').length - 1
      if (lines >= killAfter) child.kill('SIGKILL')
    }
    expect(await child.exited).not.toBe(0)
    expect(lines).toBeGreaterThanOrEqual(killAfter)
    const names = text.split('\n').slice(0, lines)
    acknowledged.push(...names)

    await using store = await openSqliteStore({ path, clock: systemClock, log: silentLogger })
    for (const name of names) {
      const resource = await store.get<{ id: string }>({ kind: 'ack', workspace: 'main', name })
      expect(resource).toMatchObject({ version: 2, indexes: { step: 'two' } })
      expect(resource?.body.id).toBe(resource!.id)
      expect(await store.get({ kind: 'pair', workspace: 'main', name })).not.toBeNull()
    }
    // One half of a batch is never there without the other.
    const { total: pairs } = await store.page({ kind: 'pair', workspace: 'main', limit: 1 })
    const { total: all } = await store.page({ kind: 'ack', workspace: 'main', limit: 1 })
    let second = 0
    let cursor: string | undefined
    do {
      const page = await store.page({
        kind: 'ack',
        workspace: 'main',
        where: { step: 'two' },
        limit: 200,
        cursor,
      })
      second += page.data.length
      cursor = page.nextCursor
    } while (cursor)
    expect(second).toBe(pairs)
    expect(all).toBeGreaterThanOrEqual(second)
    // The next round's names must be free again.
    cursor = undefined
    for (const kind of ['ack', 'pair']) {
      for (;;) {
        const page = await store.page({ kind, workspace: 'main', limit: 200 })
        await store.batch(page.data.map((key) => ({ op: 'remove', key })))
        if (!page.hasMore) break
      }
    }
  }
  expect(acknowledged.length).toBeGreaterThan(100)
}, 120_000)

test('the writer thread works in a compiled executable, from any directory', async () => {
  const executable = join(root, 'program')
  const build = Bun.spawn(
    [
      process.execPath,
      'build',
      '--compile',
      '--minify',
      '--splitting',
      '--bytecode',
      '--format=esm',
      '--root',
      sourceRoot,
      program,
      join(sourceRoot, 'stores/sqlite/writer.worker.ts'),
      join(sourceRoot, 'stores/sqlite/folder.worker.ts'),
      '--outfile',
      executable,
    ],
    { stdout: 'ignore', stderr: 'pipe' },
  )
  expect(await build.exited, await new Response(build.stderr).text()).toBe(0)
  const path = join(root, 'compiled.db')
  const child = Bun.spawn([executable, path, '40'], { cwd: '/', stdout: 'pipe', stderr: 'inherit' })
  const text = await new Response(child.stdout).text()
  expect(await child.exited).toBe(0)
  expect(text.trim().split('\n')).toHaveLength(40)
  await using store = await openSqliteStore({ path, clock: systemClock, log: silentLogger })
  expect((await store.page({ kind: 'pair', workspace: 'main', limit: 1 })).total).toBe(40)
}, 120_000)

const mounts =
  Bun.which('unshare') !== null &&
  Bun.spawnSync(['unshare', '-rm', 'mount', '-t', 'tmpfs', 'tmpfs', root]).success

test.skipIf(!mounts)(
  `a full disk refuses writes, keeps what it has, goes on reading and recovers${mounts ? '' : ' (skipped: this host lets us mount no small file system)'}`,
  async () => {
    const directory = join(root, 'small')
    mkdirSync(directory)
    const script = 'mount -t tmpfs -o size=6m tmpfs "$1" && exec "$2" "$3" "$1"'
    const fullDisk = join(import.meta.dir, 'testdata', 'full-disk-program.ts')
    const child = Bun.spawn(
      ['unshare', '-rm', 'sh', '-c', script, 'sh', directory, process.execPath, fullDisk],
      {
        stdout: 'pipe',
        stderr: 'inherit',
      },
    )
    const text = await new Response(child.stdout).text()
    expect(await child.exited).toBe(0)
    const result = JSON.parse(text)
    expect(result.written).toBeGreaterThan(10)
    expect(result).toEqual({
      written: result.written,
      refusal: 'insufficient_storage',
      batchRefusal: 'insufficient_storage',
      readable: true,
      totalWhenFull: result.written,
      total: 0,
      after: true,
      // Additions had no part in the reserve.
      roomBefore: 0,
      roomMade: 1,
      removed: result.written,
    })
  },
  120_000,
)
