import { expect, test } from 'bun:test'
import fc from 'fast-check'
import type { OutputChunk, ProcessView } from '../../../sandboxes/processes.ts'
import { outputEvents, outputRecords, prefixedLines, resultEvent } from './output-streams.ts'

type Form = (batches: AsyncIterable<OutputChunk[]>) => AsyncIterable<Uint8Array>

async function formed(form: Form, chunks: OutputChunk[]): Promise<string> {
  async function* batches() {
    for (const chunk of chunks) yield [chunk]
  }
  return Buffer.concat(await Array.fromAsync(form(batches()))).toString()
}

const bytes = (text: string) => new TextEncoder().encode(text)
const events = async (form: Form, chunks: OutputChunk[]) =>
  (await formed(form, chunks))
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as { type: string; data: string; encoding?: string })

/** What a program writes to one stream, in pieces as they may arrive, cut anywhere. */
const written = fc
  .array(
    fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('\n', '\r\n', '"', '\\', '\x7f', '\t', '\n\n')),
  )
  .map((parts) => parts.join(''))
const cut = fc.tuple(written, written, fc.infiniteStream(fc.nat(7))).map(([stdout, stderr, sizes]) => {
  const rest = { stdout: bytes(stdout), stderr: bytes(stderr) }
  const chunks: OutputChunk[] = []
  while (rest.stdout.length + rest.stderr.length > 0) {
    const kind = (sizes.next().value ?? 0) % 2 === 0 ? 'stdout' : 'stderr'
    const size = 1 + (sizes.next().value ?? 0)
    if (rest[kind].length > 0) chunks.push({ kind, data: rest[kind].slice(0, size) })
    rest[kind] = rest[kind].slice(size)
  }
  return { stdout, stderr, chunks }
})

/** Lines as a reader of text sees them. */
const linesOf = (text: string) => (text.endsWith('\n') || text === '' ? text.slice(0, -1) : text).split('\n')
const expected = (text: string) => (text === '' ? [] : linesOf(text))

test('each line of each stream comes out once, with its prefix, however it was cut', async () => {
  await fc.assert(
    fc.asyncProperty(cut, async ({ stdout, stderr, chunks }) => {
      const text = await formed(prefixedLines, chunks)
      const lines = expected(text)
      for (const [stream, whole] of Object.entries({ stdout, stderr })) {
        const own = lines.filter((line) => line.startsWith(`${stream}:`)).map((line) => line.slice(7))
        expect(own).toEqual(expected(whole))
      }
      expect(lines).toHaveLength(expected(stdout).length + expected(stderr).length)
    }),
  )
})

test('as events, an event a line with its end, they are what was written, however it was cut', async () => {
  await fc.assert(
    fc.asyncProperty(cut, async ({ stdout, stderr, chunks }) => {
      const all = await events(outputEvents, chunks)
      for (const [stream, whole] of Object.entries({ stdout, stderr })) {
        const own = all.filter(({ type }) => type === stream).map(({ data }) => data)
        expect(own.join('')).toBe(whole)
        expect(own).toHaveLength(expected(whole).length)
      }
    }),
  )
})

test('what begins a line is told once nothing follows it, and not again with the rest of the line', async () => {
  const answered = Promise.withResolvers<void>()
  async function* batches(): AsyncGenerator<OutputChunk[]> {
    yield [{ kind: 'stdout', data: bytes('one\nname? €').slice(0, -1) }]
    await answered.promise
    yield [{ kind: 'stdout', data: bytes('€').slice(-1) }]
    yield [{ kind: 'stdout', data: bytes('\ntwo') }]
  }
  const told: { data: string }[] = []
  for await (const chunk of outputEvents(batches())) {
    for (const line of chunk.toString().trimEnd().split('\n')) told.push(JSON.parse(line))
    if (told.at(-1)?.data === 'name? ') answered.resolve()
  }
  expect(told.map(({ data }) => data)).toEqual(['one\n', 'name? ', '€\n', 'two'])
})

test('as records the output is what it was, to the byte', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.uint8Array({ minLength: 1, maxLength: 9 })), async (parts) => {
      const chunks = parts.map((data): OutputChunk => ({ kind: 'stdout', data }))
      const records = await events(outputRecords, chunks)
      const whole = records.map(({ data, encoding }) =>
        Buffer.from(data, encoding === 'base64' ? 'base64' : 'utf8'),
      )
      expect(Buffer.concat(whole)).toEqual(Buffer.concat(parts))
    }),
  )
})

test('text stays text when a character is cut in two, and only what is no text is base64', async () => {
  const euro = bytes('€')
  const records = await events(outputRecords, [
    { kind: 'stdout', data: euro.slice(0, 1) },
    { kind: 'stderr', data: bytes('x') },
    { kind: 'stdout', data: euro.slice(1) },
    { kind: 'stdout', data: new Uint8Array([0xff, 0x00]) },
  ])
  expect(records).toEqual([
    { type: 'stderr', data: 'x' },
    { type: 'stdout', data: '€' },
    { type: 'stdout', data: '/wA=', encoding: 'base64' },
  ])
})

test('a line of several MiB comes in pieces that are no larger than a line may be', async () => {
  const line = 'é'.repeat(1_500_000)
  const lines = await events(outputEvents, [
    { kind: 'stdout', data: bytes(line) },
    { kind: 'stdout', data: bytes('end\nnext\n') },
  ])
  expect(
    lines
      .slice(0, -1)
      .map(({ data }) => data)
      .join(''),
  ).toBe(`${line}end\n`)
  expect(Math.max(...lines.map(({ data }) => Buffer.byteLength(data)))).toBeLessThanOrEqual(1024 * 1024)
  expect(lines.at(-1)).toEqual({ type: 'stdout', data: 'next\n' })
})

test('what is gone and what was started again is told, where it belongs, in each form', async () => {
  const note = '\n[Process failed with exit code 7. Attempting restart 1/2...]\n'
  const chunks: OutputChunk[] = [
    { kind: 'truncated' },
    { kind: 'stdout', data: bytes('begun') },
    { kind: 'restart', note, attempt: 1, exitCode: 7 },
    { kind: 'stdout', data: bytes('again\n') },
  ]
  expect(await formed(prefixedLines, chunks)).toBe(
    '[... truncated, see the process log file for the full output ...]\nstdout:begun\n' +
      'stdout:[Process failed with exit code 7. Attempting restart 1/2...]\nstdout:again\n',
  )
  expect(await events(outputEvents, chunks)).toEqual([
    { type: 'truncated' },
    { type: 'stdout', data: 'begun\n' },
    { type: 'stdout', data: '[Process failed with exit code 7. Attempting restart 1/2...]\n' },
    { type: 'stdout', data: 'again\n' },
  ] as never)
  expect((await events(outputRecords, chunks)).slice(2)).toEqual([
    { type: 'restart', data: note, attempt: 1, exitCode: 7 },
    { type: 'stdout', data: 'again\n' },
  ] as never)
})

test('the process at the end of a streamed execution is whole, whatever it wrote and wherever it is cut', async () => {
  const kept = (text: string, mark = '') => ({ mark, bytes: Buffer.from(text) })
  await fc.assert(
    fc.property(written, written, fc.nat(3), (stdout, stderr, shift) => {
      const long = `${'x'.repeat(64 * 1024 - shift)}${stdout}\nplain\n`
      const fields = { pid: '1', name: 'a"b', command: 'echo \\n' }
      const pieces = resultEvent(fields as ProcessView, {
        stdout: kept(long, '[gone]\n'),
        stderr: kept(stderr),
      })
      const line = Buffer.concat([...pieces]).toString()
      expect(line.indexOf('\n')).toBe(line.length - 1)
      const { type, data } = JSON.parse(line) as { type: string; data: string }
      expect(type).toBe('result')
      const whole = `[gone]\n${long}`
      expect(JSON.parse(data)).toEqual({ ...fields, logs: whole + stderr, stdout: whole, stderr })
    }),
  )
})

test('what was given is freed when the next is asked for, for a reader that is done with it by then', async () => {
  async function* batches(): AsyncGenerator<OutputChunk[]> {
    for (let count = 0; count < 2; count++)
      yield [{ kind: 'stdout', data: bytes(`${'x'.repeat(99)}\n`.repeat(1000)) }]
  }
  for (const form of [outputEvents, prefixedLines]) {
    for (const freeing of [true, false]) {
      const chunks = form(batches(), { freeing })
      const first: Uint8Array = (await chunks.next()).value!
      const length = first.length
      expect(length).toBeGreaterThan(100_000)
      await chunks.next()
      expect(first.length).toBe(freeing ? 0 : length)
      await chunks.return(undefined)
    }
  }
})
