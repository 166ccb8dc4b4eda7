import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { randomText } from '../lib/ids.ts'
import type { FileChange, FileEntry, GuestFiles, LineMatch, SearchOptions, WalkOptions } from './guest.ts'

const eventMs = 60_000

/** What every driver can do with whole directory trees. */
export function treeContract(filesOf: () => GuestFiles, scratchDir: string): void {
  const newDir = async (contents: Record<string, string> = {}) => {
    const dir = `${scratchDir}/${randomText(12)}`
    await filesOf().makeDirectory(dir, { parents: true })
    const encoder = new TextEncoder()
    await filesOf().writeAll(
      Object.entries(contents).map(([name, text]) => ({
        path: `${dir}/${name}`,
        data: encoder.encode(text),
      })),
    )
    return dir
  }
  const walk = async (path: string, options?: WalkOptions) => {
    const { results, summary } = await drained(filesOf().walk(path, options))
    return { names: results.map(({ name }) => name), entries: results, summary }
  }
  const search = async (path: string, pattern: string, more: Partial<SearchOptions> = {}) => {
    const { results, summary } = await drained(
      filesOf().search(path, { pattern, syntax: 'literal', ...more }),
    )
    const places = results.map(({ path: file, line, column }) => `${file}:${line}:${column}`).sort()
    return { places, matches: results, summary }
  }
  const project = {
    'README.md': 'A project\nwith a needle\nand an end\n',
    'src/main.ts': 'const Needle = 1\n',
    'src/deep/er/a.go': 'package needle\n',
    'node_modules/x/index.js': 'needle',
    '.env': 'needle=1\n',
  }

  test('many files are written in one go, in the order they are given', async () => {
    const names = Array.from({ length: 500 }, (_, at) => `d${at % 7}/f${at}`)
    const dir = await newDir(Object.fromEntries(names.map((name) => [name, `content of ${name}`])))
    expect((await walk(dir, { types: 'files' })).names.length).toBe(500)
    const { body } = await filesOf().read(`${dir}/d3/f3`)
    expect(await new Response(body).text()).toBe('content of d3/f3')
    const large = new Uint8Array(3_000_000).fill(7)
    await filesOf().writeAll([
      { path: `${dir}/large`, data: large, mode: 0o600 },
      { path: `${dir}/empty`, data: new Uint8Array(0) },
    ])
    expect(await filesOf().stat(`${dir}/large`)).toMatchObject({ size: 3_000_000, mode: 0o600 })
    expect((await filesOf().stat(`${dir}/empty`)).size).toBe(0)
  })

  test('of many files the first that cannot be written is told, and the connection goes on', async () => {
    const dir = await newDir({ 'sub/x': '1' })
    const data = new TextEncoder().encode('2')
    const writing = filesOf().writeAll(
      ['before', 'sub', 'behind'].map((name) => ({ path: `${dir}/${name}`, data })),
    )
    expect(await failureOf(writing)).toMatchObject({
      code: 'conflict',
      message: expect.stringContaining('/sub'),
    })
    expect((await filesOf().stat(`${dir}/before`)).size).toBe(1)
    await filesOf().writeAll([{ path: `${dir}/again`, data }])
    expect((await filesOf().stat(`${dir}/again`)).size).toBe(1)
  })

  test('a tree is walked level by level, in the order of names', async () => {
    const dir = await newDir({ 'b/z': '1', 'b/a/q': '22', c: '3', a: '4' })
    const { names, entries, summary } = await walk(dir)
    expect(names).toEqual(['a', 'b', 'c', 'b/a', 'b/z', 'b/a/q'])
    expect(entries[5]).toMatchObject({ type: 'file', size: 2 })
    expect(summary).toEqual({ entries: 6, bytes: 0, skipped: 0, truncated: false })
    expect((await walk(dir, { depthMax: 1 })).names).toEqual(['a', 'b', 'c'])
    expect((await walk(dir, { types: 'files' })).names).toEqual(['a', 'c', 'b/z', 'b/a/q'])
    expect((await walk(dir, { types: 'directories', details: false })).entries).toMatchObject([
      { name: 'b', type: 'directory', size: 0 },
      { name: 'b/a', type: 'directory' },
    ])
  })

  test('a walk finds by name, leaves out what it is told to, and stops at a limit', async () => {
    const dir = await newDir(project)
    expect((await walk(dir, { include: ['*.go', 'src/*.ts'] })).names).toEqual([
      'src/main.ts',
      'src/deep/er/a.go',
    ])
    const excluding = { excludeDirectories: ['node_modules'], excludeHidden: true, types: 'files' as const }
    expect((await walk(dir, excluding)).names).toEqual(['README.md', 'src/main.ts', 'src/deep/er/a.go'])
    expect((await walk(dir, { ...excluding, exclude: ['deep'] })).names).toEqual(['README.md', 'src/main.ts'])
    const limited = await walk(dir, { resultsMax: 2 })
    expect([limited.names.length, limited.summary.truncated]).toEqual([2, true])
    expect((await walk(dir, { resultsMax: 1, include: ['README.md'] })).summary.truncated).toBe(false)
  })

  test('what cannot be walked has its code', async () => {
    const dir = await newDir({ file: 'x' })
    expect((await failureOf(walk(`${dir}/missing`)))?.code).toBe('not_found')
    expect((await failureOf(walk(`${dir}/file`)))?.code).toBe('conflict')
    expect(await failureOf(walk(dir, { include: ['[a'] }))).toMatchObject({
      code: 'bad_request',
      message: expect.stringContaining('include: a class in the glob is not closed'),
    })
  })

  test('lines are found by text and by expression, with the place of the first match', async () => {
    const dir = await newDir(project)
    const filter = { excludeDirectories: ['node_modules'] }
    const found = await search(dir, 'needle', filter)
    expect(found.places).toEqual(['.env:1:1', 'README.md:2:8', 'src/deep/er/a.go:1:9'])
    expect(found.summary).toMatchObject({ entries: 4, truncated: false })
    const ignoring = await search(dir, 'NEEDLE', { ...filter, ignoreCase: true, excludeHidden: true })
    expect(ignoring.places).toEqual(['README.md:2:8', 'src/deep/er/a.go:1:9', 'src/main.ts:1:7'])
    const expression = await search(dir, '\\bn[aeiou]+dle$', { ...filter, syntax: 'regex' })
    expect(expression.places).toEqual(['README.md:2:8', 'src/deep/er/a.go:1:9'])
    expect(expression.matches[0]).toMatchObject({ length: 6 })
    expect((await search(dir, 'n.*e|end', { syntax: 'regex', include: ['*.md'] })).places).toEqual([
      'README.md:2:8',
      'README.md:3:2',
    ])
  })

  test('lines come with what stands around them', async () => {
    const dir = await newDir({ f: '1\n\n3\r\nhit\n5\n\n7\n', g: 'hit' })
    const { matches } = await search(dir, 'hit', { contextBefore: 2, contextAfter: 2 })
    const ordered = matches.sort((a, b) => (a.path < b.path ? -1 : 1))
    expect(ordered[0]).toMatchObject({ line: 4, text: 'hit', before: ['', '3'], after: ['5', ''] })
    expect(ordered[1]).toMatchObject({ line: 1, text: 'hit', before: [], after: [] })
    const whole = await search(dir, 'hit', { contextBefore: 9, contextAfter: 9, include: ['f'] })
    expect(whole.matches[0]).toMatchObject({ before: ['1', '', '3'], after: ['5', '', '7'] })
  })

  test('a search is limited, skips binary files unless told, and can be of one file', async () => {
    const dir = await newDir({ many: 'hit\n'.repeat(50), binary: 'hit\0hit\n' })
    const limited = await search(dir, 'hit', { resultsMax: 7 })
    expect([limited.matches.length, limited.summary.truncated]).toEqual([7, true])
    const exact = await search(dir, 'hit', { resultsMax: 50 })
    expect([exact.matches.length, exact.summary.truncated]).toEqual([50, false])
    expect((await search(dir, 'hit', { binary: true, include: ['bin*'] })).places).toEqual(['binary:1:1'])
    expect((await search(`${dir}/many`, 'hit', { resultsMax: 1 })).places).toEqual([':1:1'])
    expect((await search(dir, 'nothing like it')).places).toEqual([])
  })

  test('patterns that mean nothing are refused with the reason', async () => {
    const dir = await newDir()
    expect(await failureOf(search(dir, '(a', { syntax: 'regex' }))).toMatchObject({
      code: 'bad_request',
      message: 'pattern: a group is not closed (at character 1)',
    })
    expect((await failureOf(search(dir, '')))?.code).toBe('bad_request')
    expect((await failureOf(search(`${dir}/missing`, 'x')))?.code).toBe('not_found')
  })

  test('walks and searches that are aborted end, and leave room for others', async () => {
    const names = Array.from({ length: 300 }, (_, at) => `${at % 20}/${at}`)
    const dir = await newDir(Object.fromEntries(names.map((name) => [name, 'line\n'.repeat(1000)])))
    for (let round = 0; round < 20; round++) {
      const controller = new AbortController()
      const searching = filesOf().search(dir, {
        pattern: 'line',
        syntax: 'literal',
        signal: controller.signal,
      })
      await searching.next()
      controller.abort(new Error('enough'))
      await expect(drained(searching)).rejects.toThrow('enough')
      for await (const _ of filesOf().walk(dir)) break
    }
    expect((await walk(dir)).names.length).toBe(320)
  })

  test('changes are told as they happen', async () => {
    const dir = await newDir({ 'old.txt': '1', 'sub/inner.txt': '2' })
    await using watcher = await Watcher.start(filesOf(), dir)
    await filesOf().write(`${dir}/new.txt`, Buffer.from('x'))
    await watcher.until('created new.txt', 'written new.txt')
    await filesOf().write(`${dir}/old.txt`, Buffer.from('2'))
    await watcher.until('written old.txt')
    await filesOf().setMode(`${dir}/old.txt`, 0o600)
    await watcher.until('attributes old.txt')
    await filesOf().rename(`${dir}/old.txt`, `${dir}/newer.txt`)
    await watcher.until('renamed old.txt', 'created newer.txt')
    await filesOf().remove(`${dir}/newer.txt`)
    await watcher.until('removed newer.txt')
    await filesOf().write(`${dir}/sub/inner.txt`, Buffer.from('3'))
    await filesOf().makeDirectory(`${dir}/last`)
    await watcher.until('created last')
    expect(watcher.seen.filter((change) => change.includes('/') || change.includes('.hutch'))).toEqual([])
    expect(watcher.seen.filter((change) => change === 'created new.txt').length).toBe(1)
    expect(watcher.seen).not.toContain('created old.txt')
  })

  test('changes in a tree are told, those in new directories too, but not what is ignored', async () => {
    const dir = await newDir({ 'a/b/c.txt': '1' })
    const ignore = ['/cache/', '*.log']
    await using watcher = await Watcher.start(filesOf(), dir, { recursive: true, ignore })
    await filesOf().write(`${dir}/a/b/c.txt`, Buffer.from('2'))
    await watcher.until('written a/b/c.txt')
    for (let round = 0; round < 20; round++) {
      await filesOf().write(`${dir}/new${round}/deep/file.txt`, Buffer.from('x'))
    }
    await filesOf().write(`${dir}/cache/x.txt`, Buffer.from('x'))
    await filesOf().write(`${dir}/a/x.log`, Buffer.from('x'))
    await filesOf().rename(`${dir}/a/b`, `${dir}/moved`)
    await watcher.until('renamed a/b', 'created moved')
    await filesOf().write(`${dir}/moved/c.txt`, Buffer.from('3'))
    await watcher.until('written moved/c.txt')
    for (let round = 0; round < 20; round++) {
      expect(watcher.seen).toContain(`created new${round}/deep/file.txt`)
      expect(watcher.seen.filter((change) => change === `created new${round}`).length).toBe(1)
    }
    expect(watcher.seen.filter((change) => /cache\/|\.log/.test(change))).toEqual([])
  })

  test('what cannot be watched has its code, and many watches go on beside each other', async () => {
    const dir = await newDir({ file: 'x' })
    expect((await failureOf(filesOf().watch(`${dir}/missing`)))?.code).toBe('not_found')
    expect((await failureOf(filesOf().watch(`${dir}/file`)))?.code).toBe('conflict')
    const controller = new AbortController()
    const watches = []
    // As many as a few editors and servers open; watchesMax would take all that a user of the host has.
    for (let count = 0; count < 24; count++)
      watches.push(await filesOf().watch(dir, { signal: controller.signal }))
    await filesOf().write(`${dir}/seen`, Buffer.from('x'))
    for (const watch of watches) {
      const { value: changes } = await watch.next()
      expect((changes as FileChange[])[0]).toMatchObject({ kind: 'created', path: 'seen' })
    }
    const ending = watches.map((watch) => failureOf(drained(watch)))
    controller.abort(new Error('done'))
    await Promise.all(ending.map((end) => end.catch(() => {})))
    await using watcher = await Watcher.start(filesOf(), dir)
    await filesOf().write(`${dir}/after`, Buffer.from('x'))
    await watcher.until('created after')
  })

  test('files and trees are copied, whole and with their modes', async () => {
    const dir = await newDir(project)
    await filesOf().setMode(`${dir}/src/main.ts`, 0o755)
    const copied = await filesOf().copy(`${dir}/src`, `${dir}/a/b`)
    expect(copied).toMatchObject({ skipped: 0, truncated: false })
    expect((await walk(`${dir}/a/b`)).names).toEqual(['deep', 'main.ts', 'deep/er', 'deep/er/a.go'])
    expect((await filesOf().stat(`${dir}/a/b/main.ts`)).mode).toBe(0o755)
    await filesOf().copy(`${dir}/.env`, `${dir}/a/b/main.ts`)
    expect(await filesOf().stat(`${dir}/a/b/main.ts`)).toMatchObject({ mode: 0o755, size: 9 })
    await filesOf().copy(`${dir}/src`, `${dir}/a/b`)
    expect((await filesOf().stat(`${dir}/a/b/main.ts`)).size).toBe(17)
  })

  test('copies that make no sense are refused', async () => {
    const dir = await newDir({ 'd/f': '1', g: '2' })
    const copy = (from: string, to: string, exclusive = false) =>
      failureOf(filesOf().copy(`${dir}/${from}`, `${dir}/${to}`, { exclusive }))
    expect((await copy('g', 'd/f', true))?.code).toBe('already_exists')
    expect((await copy('d', 'd/inside'))?.code).toBe('unprocessable')
    expect((await copy('g', 'g'))?.code).toBe('unprocessable')
    expect((await copy('missing', 'x'))?.code).toBe('not_found')
    expect((await walk(dir)).names).toEqual(['d', 'g', 'd/f'])
  })

  test('files and trees are moved', async () => {
    const dir = await newDir({ 'd/f': '1', g: '2' })
    await filesOf().move(`${dir}/d`, `${dir}/e`)
    expect((await failureOf(filesOf().move(`${dir}/g`, `${dir}/e/f`, { exclusive: true })))?.code).toBe(
      'already_exists',
    )
    await filesOf().move(`${dir}/g`, `${dir}/e/f`)
    expect((await walk(dir)).names).toEqual(['e', 'e/f'])
  })

  test('an owner can be set to what it is', async () => {
    const dir = await newDir({ f: '1' })
    const { uid, gid } = await filesOf().stat(`${dir}/f`)
    await filesOf().setOwner(`${dir}/f`, { uid, gid })
    expect(await filesOf().stat(`${dir}/f`)).toMatchObject({ uid, gid })
    expect((await failureOf(filesOf().setOwner(`${dir}/missing`, { uid })))?.code).toBe('not_found')
  })
}

/** What a watch tells, as 'kind path'. */
class Watcher implements AsyncDisposable {
  readonly seen: string[] = []
  #wake = () => {}
  #ended: Promise<void>

  private constructor(
    changes: AsyncGenerator<FileChange[]>,
    private readonly controller: AbortController,
  ) {
    this.#ended = (async () => {
      for await (const batch of changes) {
        this.seen.push(...batch.map(({ kind, path }) => `${kind} ${path}`))
        this.#wake()
      }
    })().catch(() => {})
  }

  static async start(
    files: GuestFiles,
    path: string,
    options: { recursive?: boolean; ignore?: string[] } = {},
  ): Promise<Watcher> {
    const controller = new AbortController()
    return new Watcher(await files.watch(path, { ...options, signal: controller.signal }), controller)
  }

  async until(...changes: string[]): Promise<void> {
    const deadline = performance.now() + eventMs
    while (!changes.every((change) => this.seen.includes(change))) {
      const leftMs = deadline - performance.now()
      if (leftMs <= 0) throw new Error(`of ${changes} there is only ${this.seen}`)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leftMs)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.controller.abort()
    await this.#ended
  }
}

async function drained<Item extends FileEntry | LineMatch | FileChange, Result>(
  batches: AsyncGenerator<Item[], Result>,
): Promise<{ results: Item[]; summary: Result }> {
  const results: Item[] = []
  for (;;) {
    const next = await batches.next()
    if (next.done) return { results, summary: next.value }
    results.push(...next.value)
  }
}

async function failureOf(work: Promise<unknown>): Promise<PlatformError | null> {
  try {
    await work
    return null
  } catch (error) {
    if (PlatformError.is(error)) return error
    throw error
  }
}
