import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { silentLogger } from '../lib/log.ts'
import { compileLinePattern, Matcher } from '../lib/patterns/index.ts'
import { eventually } from '../lib/test-eventually.ts'
import { type FileChange, type SearchOptions, type TreeSummary, watchesMax } from '../spec/guest.ts'
import { FilesChannel } from './files.ts'
import { ProtocolError } from './frame.ts'
import { TestGuest } from './test-guest.ts'
import { readChanges, readFound, readMatches, readSummary } from './tree-codec.ts'

setDefaultTimeout(120_000)

let guest: TestGuest
let files: FilesChannel
let dir: string
let lastDir = 0

beforeAll(async () => {
  guest = await TestGuest.start()
  files = new FilesChannel({ socketPath: guest.socketPath, log: silentLogger })
})
afterAll(async () => {
  files.close(new Error('the test is over') as never)
  await guest[Symbol.asyncDispose]()
})
beforeEach(() => {
  dir = join(guest.dir, `trees${++lastDir}`)
  mkdirSync(dir)
})

async function search(pattern: string, more: Partial<SearchOptions> = {}, path = dir) {
  const found = files.search(path, { pattern, syntax: 'regex', ...more })
  const matches = []
  for (;;) {
    const next = await found.next()
    if (next.done) return { matches, summary: next.value as TreeSummary }
    matches.push(...next.value)
  }
}

describe('SEARCH', () => {
  test('finds what the host finds with the same program, line by line', async () => {
    const line = fc.string({ unit: fc.constantFrom('a', 'b', 'A', '_', ' ', '1', 'ä', 'Ä'), maxLength: 30 })
    const piece = fc.constantFrom(
      'a',
      'b+',
      '[ab]',
      '.',
      '\\w+',
      '\\b',
      '^',
      '$',
      '(a|b_)*',
      'ä',
      ' {2}',
      '[^a]',
      'ab',
    )
    const pattern = fc.array(piece, { minLength: 1, maxLength: 5 }).map((pieces) => pieces.join(''))
    await fc.assert(
      fc.asyncProperty(
        fc.array(line, { minLength: 1, maxLength: 40 }),
        pattern,
        fc.boolean(),
        async (lines, source, ignoreCase) => {
          writeFileSync(join(dir, 'f'), `${lines.join('\n')}\n`)
          const matcher = new Matcher(compileLinePattern(source, { syntax: 'regex', ignoreCase }).program)
          const expected = lines.flatMap((text, index) => {
            const match = matcher.find(new TextEncoder().encode(text))
            return match
              ? [{ line: index + 1, column: match.start + 1, length: match.end - match.start, text }]
              : []
          })
          const { matches } = await search(source, { ignoreCase })
          expect(matches.map(({ line, column, length, text }) => ({ line, column, length, text }))).toEqual(
            expected,
          )
        },
      ),
      { numRuns: 150 },
    )
  })

  test('counts lines over files of any size, and looks at lines of any length', async () => {
    const lines = Array.from({ length: 60_000 }, (_, at) => `line ${at + 1}`)
    lines[59_998] += ' needle'
    writeFileSync(join(dir, 'long'), `${lines.join('\n')}\r\nlast needle`)
    writeFileSync(join(dir, 'wide'), `first\n${'x'.repeat(7_000_000)}needle${'y'.repeat(100)} needle\nneedle`)
    const { matches } = await search('needle', { syntax: 'literal', contextAfter: 1 })
    const places = matches.map(({ path, line, text }) => `${path}:${line}:${text.slice(0, 20)}`).sort()
    expect(places).toEqual([
      'long:59999:line 59999 needle',
      'long:60001:last needle',
      expect.stringMatching(/^wide:2:/),
      'wide:3:needle',
    ])
    expect(matches.every(({ text }) => text.length <= 16 * 1024)).toBe(true)
  })

  test('goes on when there are more states than it remembers', async () => {
    const random = Array.from({ length: 200_000 }, (_, at) => ((at * 2654435761) >>> 13) & 1)
    const text = random.map((bit) => (bit ? 'a' : 'b')).join('')
    writeFileSync(join(dir, 'f'), `${text}\n${'ab'.repeat(9)}c\n`)
    const { matches } = await search('a[ab]{15}c')
    expect(matches.map(({ line }) => line)).toEqual([2])
  })

  test('of many files in one directory is done by all processes, and each file once', async () => {
    for (let index = 0; index < 2000; index++) writeFileSync(join(dir, `f${index}`), `needle ${index}\n`)
    const { matches, summary } = await search('needle \\d+$')
    expect(new Set(matches.map(({ path }) => path)).size).toBe(2000)
    expect([matches.length, summary.entries]).toEqual([2000, 2000])
  })

  test('leaves no process behind, ended or aborted', async () => {
    for (let index = 0; index < 300; index++) writeFileSync(join(dir, `f${index}`), 'a'.repeat(100_000))
    for (let round = 0; round < 5; round++) {
      const controller = new AbortController()
      const ending = search('(a+)+b', { signal: controller.signal })
      setTimeout(() => controller.abort(new Error('enough')), 5)
      // Where this process stood still for long, it may have ended before.
      await ending.catch((error: Error) => expect(error.message).toBe('enough'))
    }
    await eventually(() => childrenOf(guest.pid).every((worker) => childrenOf(worker).length === 0))
  })
})

function childrenOf(parent: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) === parent
      } catch {
        return false
      }
    })
    .map(Number)
}

describe('WALK', () => {
  test('does not enter what the kernel makes up, unless it begins there', async () => {
    const names = async (path: string) => {
      const found = []
      for await (const entries of files.walk(path, { depthMax: 2, details: false }))
        found.push(...entries.map(({ name }) => name))
      return found
    }
    const fromRoot = await names('/')
    expect(fromRoot).toContain('proc')
    expect(fromRoot.filter((name) => name.startsWith('proc/'))).toEqual([])
    expect(await names('/proc/self')).toContain('status')
  })

  test('counts what it cannot reach and goes on', async () => {
    // Deeper than any path may be long.
    const script = `import os, sys
at = os.open(sys.argv[1], os.O_RDONLY)
for level in range(30):
    os.mkdir('x' * 200, dir_fd=at)
    at = os.open('x' * 200, os.O_RDONLY, dir_fd=at)`
    execFileSync('python3', ['-c', script, dir])
    symlinkSync('.', join(dir, 'loop'))
    const walk = files.walk(dir)
    const found: string[] = []
    let summary: TreeSummary | null = null
    for (;;) {
      const next = await walk.next()
      if (next.done) {
        summary = next.value
        break
      }
      found.push(...next.value.map(({ name }) => name))
    }
    expect(found).toContain('loop')
    expect(found.filter((name) => name.startsWith('loop/'))).toEqual([])
    expect(summary.skipped).toBe(1)
    await files.remove(join(dir, 'x'.repeat(200)), { recursive: true })
  })
})

describe('WATCH', () => {
  const limit = Number(readFileSync('/proc/sys/fs/inotify/max_queued_events', 'utf8'))
  const tooMany = limit > 200_000 ? ` (skipped: this kernel keeps ${limit} events)` : ''
  test.skipIf(tooMany !== '')(`looks again when more happened than the kernel keeps${tooMany}`, async () => {
    const controller = new AbortController()
    mkdirSync(join(dir, 'busy'))
    const changes = await files.watch(dir, { recursive: true, signal: controller.signal })
    // Nobody reads meanwhile: what the sockets do not hold stays with the kernel, until it has no room either.
    for (let index = 0; index < limit * 3; index++) {
      writeFileSync(
        join(dir, 'busy', `file-${index % 20_000}-with-a-rather-long-name-to-fill-the-sockets`),
        '',
      )
    }
    mkdirSync(join(dir, 'unseen'))
    writeFileSync(join(dir, 'unseen', 'inner'), '1')
    const seen = new Set<string>()
    const reading = (async () => {
      for await (const batch of changes)
        for (const change of batch as FileChange[]) seen.add(`${change.kind} ${change.path}`)
    })().catch(() => {})
    await eventually(() => seen.has('lost ') && seen.has('created unseen/inner'))
    writeFileSync(join(dir, 'unseen', 'later'), '1')
    await eventually(() => seen.has('created unseen/later'))
    controller.abort()
    await reading
  })

  test('as many as there may be are opened in one moment, and each is told what changes', async () => {
    const controller = new AbortController()
    const opening = Array.from({ length: watchesMax }, () => files.watch(dir, { signal: controller.signal }))
    const all = await Promise.all(opening)
    writeFileSync(join(dir, 'one'), '')
    const first = await Promise.all(all.map(async (changes) => (await changes.next()).value?.[0]?.path))
    expect(first).toEqual(Array(watchesMax).fill('one'))
    controller.abort()
    await Promise.all(all.map((changes) => changes.return(undefined)))
  })

  test('ends when the directory goes', async () => {
    mkdirSync(join(dir, 'gone'))
    const changes = await files.watch(join(dir, 'gone'))
    await files.remove(join(dir, 'gone'))
    const seen: FileChange[] = []
    for await (const batch of changes) seen.push(...batch)
    expect(seen).toEqual([{ kind: 'removed', directory: true, path: '' }])
  })
})

describe('COPY', () => {
  test('into itself by a way that leads back is refused before it goes deep', async () => {
    mkdirSync(join(dir, 'd', 'e'), { recursive: true })
    const copying = files.copy(join(dir, 'd'), `${dir}/new/../d/e/z`)
    await expect(copying).rejects.toMatchObject({ code: 'unprocessable' })
    expect(readdirSync(join(dir, 'd'), { recursive: true }).sort()).toEqual(['e', 'e/z', 'e/z/e'])
  })

  test('takes links and fifos along as what they are', async () => {
    execFileSync('mkfifo', [join(dir, 'pipe')])
    symlinkSync('nowhere', join(dir, 'dangling'))
    writeFileSync(join(dir, 'file'), 'x'.repeat(300_000))
    const to = `${dir}-copy`
    expect(await files.copy(dir, to)).toMatchObject({ entries: 3, skipped: 0, bytes: 300_000 })
    expect(readdirSync(to).sort()).toEqual(['dangling', 'file', 'pipe'])
    expect(await files.stat(`${to}/pipe`)).toMatchObject({ type: 'fifo' })
    expect(await files.stat(`${to}/dangling`, { follow: false })).toMatchObject({ linkTarget: 'nowhere' })
  })
})

describe('frames about trees', () => {
  test('of any bytes are read or refused, never more', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        for (const read of [readFound, readMatches, readChanges, readSummary]) {
          try {
            read(bytes)
          } catch (error) {
            expect(error).toBeInstanceOf(ProtocolError)
          }
        }
      }),
    )
  })

  test('that lead out of the tree are refused', () => {
    const change = (path: string) => {
      const name = new TextEncoder().encode(path)
      return Uint8Array.from([1, 0, 0, 0, 1, 0, name.length, 0, 0, 0, ...name])
    }
    expect(readChanges(change('a/b'))).toEqual([{ kind: 'created', directory: false, path: 'a/b' }])
    for (const path of ['..', 'a/../b', '/a', 'a//b', './a']) {
      expect(() => readChanges(change(path))).toThrow(ProtocolError)
    }
  })
})
