import { afterEach, expect, test } from 'bun:test'
import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import type { FileEntry, Guest } from '../../spec/guest.ts'
import { CodebaseSearch } from './codebase.ts'
import { startIndexesWorker } from './indexes-thread.ts'

const logged: string[] = []
const log: Logger = { debug() {}, info() {}, warn: (message) => void logged.push(message), error() {} }
const signal = new AbortController().signal

/** A machine with these files, which counts what is read. */
function machine(files: Record<string, string>): {
  guest: Guest
  files: Record<string, string>
  read: string[]
} {
  const read: string[] = []
  const entry = (name: string, text: string) =>
    ({ name, type: 'file', size: Buffer.byteLength(text), modifiedMs: text.length }) as FileEntry
  const guest = {
    files: {
      async *walk(root: string) {
        yield Object.entries(files).map(([path, text]) => entry(path.slice(root.length + 1), text))
        return { entries: 0, bytes: 0, skipped: 0, truncated: false }
      },
      async read(path: string) {
        if (!(path in files)) throw new PlatformError('not_found', 'no such file')
        read.push(path)
        return { entry: entry(path, files[path]!), body: new Blob([files[path]!]).stream() }
      },
    },
  } as unknown as Guest
  return { guest, files, read }
}

let search: CodebaseSearch
afterEach(() => search.close())

const ask = async (guest: Guest, query: string) => {
  const question = { query, directories: ['/w'], project: '/w', resultsMax: 10, perFileMax: 1 }
  return (await search.search(guest, question, { signal })).found.map(({ path }) => path)
}

test('a thread that a text brings down fails one search; the next has a new one, and leaves that text alone', async () => {
  let started = 0
  search = new CodebaseSearch({
    log,
    startWorker: () => {
      if (started++ > 0) return startIndexesWorker()
      return new Worker(
        new URL('./testdata/crashing.worker.ts', import.meta.url).href,
      ) as unknown as Bun.Worker
    },
  })
  const { guest, files, read } = machine({ '/w/bad.ts': 'export function evil() {}\n' })
  await expect(ask(guest, 'evil')).rejects.toMatchObject({ code: 'unprocessable' })
  expect(logged).toHaveLength(1)
  files['/w/good.ts'] = 'export function kind() {}\n'
  expect(await ask(guest, 'kind')).toEqual(['/w/good.ts'])
  expect(await ask(guest, 'evil')).toEqual([])
  expect(read).toEqual(['/w/bad.ts', '/w/good.ts'])
  // Once it is another text it is looked at again.
  files['/w/bad.ts'] = 'export function evil() { mended() }\n'
  expect(await ask(guest, 'evil')).toEqual(['/w/bad.ts'])
})

test('indexes of machines are apart', async () => {
  search = new CodebaseSearch({ log })
  const [one, other] = [
    machine({ '/w/one.ts': 'export function shared() {}\n' }),
    machine({ '/w/other.ts': 'shared()\n' }),
  ]
  expect(await ask(one.guest, 'shared')).toEqual(['/w/one.ts'])
  expect(await ask(other.guest, 'shared')).toEqual(['/w/other.ts'])
})

test('of too much text the rest is left out, and said to be', async () => {
  search = new CodebaseSearch({ log, indexBytesMax: 1000 })
  const text = 'export function filler() { return filler() }\n'.repeat(5)
  const { guest, read } = machine(
    Object.fromEntries(Array.from({ length: 10 }, (_, at) => [`/w/${at}.ts`, text])),
  )
  const question = { query: 'filler', directories: ['/w'], project: '/w', resultsMax: 10, perFileMax: 1 }
  const answer = await search.search(guest, question, { signal })
  expect(answer).toMatchObject({ complete: false, files: 4 })
  expect(answer.found).toHaveLength(4)
  expect(read).toHaveLength(4)
})
