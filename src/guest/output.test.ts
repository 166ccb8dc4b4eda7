import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { PlatformError } from '../errors.ts'
import type { OutputRecord } from '../spec/guest.ts'
import { OutputLog } from './output.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(`${tmpdir()}/hutch-output-`)
  mkdirSync(`${dir}/7`)
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

function record(text: string | Uint8Array, stream = 1, at = 1_700_000_000_000): Buffer {
  const data = Buffer.from(text)
  const header = Buffer.alloc(16)
  header.writeUInt32LE(data.length, 0)
  header.writeUInt32LE(stream, 4)
  header.writeBigUInt64LE(BigInt(at), 8)
  return Buffer.concat([header, data])
}

const segment = (start: number) => `${dir}/7/${start.toString(16).padStart(16, '0')}`

async function readAll(log: OutputLog): Promise<OutputRecord[]> {
  const records: OutputRecord[] = []
  for await (const batch of log.read()) records.push(...batch)
  return records
}

async function readOnce(fromOffset = 0): Promise<OutputRecord[]> {
  using log = new OutputLog(dir, 7, fromOffset)
  return await readAll(log)
}

async function damageOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.catch((error) => error)
  if (!PlatformError.is(error)) throw new Error(`not refused: ${error}`)
  return `${error.code}: ${(error.cause as Error).message}`
}

const texts = (records: OutputRecord[]) =>
  records.map(({ kind, data }) => `${kind} ${Buffer.from(data).toString()}`)

describe('output logs', () => {
  test('records come in order, over segments, with the offset behind them', async () => {
    const first = Buffer.concat([record('one'), record('two', 2)])
    writeFileSync(segment(0), first)
    writeFileSync(segment(first.length), record('three'))
    const records = await readOnce()
    expect(texts(records)).toEqual(['stdout one', 'stderr two', 'stdout three'])
    expect(records.map(({ endOffset }) => endOffset)).toEqual([19, 38, 59])
    expect(records[0]?.at).toBe(1_700_000_000_000)
  })

  test('a process without output has none', async () => {
    expect(await readOnce()).toEqual([])
    using unknown = new OutputLog(dir, 8, 0)
    expect(await readAll(unknown)).toEqual([])
  })

  test('reading goes on from any offset, also one in the middle of a record', async () => {
    writeFileSync(segment(0), Buffer.concat([record('one'), record('two'), record('three')]))
    expect(texts(await readOnce(19))).toEqual(['stdout two', 'stdout three'])
    expect(texts(await readOnce(25))).toEqual(['stdout two', 'stdout three'])
    expect(texts(await readOnce(59))).toEqual([])
    expect(texts(await readOnce(5_000))).toEqual([])
  })

  test('a record that is being written is read when it is whole', async () => {
    const whole = record('the second')
    writeFileSync(segment(0), Buffer.concat([record('first'), whole.subarray(0, 20)]))
    using log = new OutputLog(dir, 7, 0)
    expect(texts(await readAll(log))).toEqual(['stdout first'])
    expect(texts(await readAll(log))).toEqual([])
    appendFileSync(segment(0), whole.subarray(20))
    expect(texts(await readAll(log))).toEqual(['stdout the second'])
    const end = log.position
    writeFileSync(segment(end), record('next segment'))
    expect(texts(await readAll(log))).toEqual(['stdout next segment'])
  })

  test('older output that is gone is said, at the beginning and in the middle', async () => {
    writeFileSync(segment(100), record('kept'))
    const records = await readOnce()
    expect(texts(records)).toEqual(['truncated ', 'stdout kept'])
    expect(records[0]?.endOffset).toBe(100)
    using log = new OutputLog(dir, 7, 100)
    expect(texts(await readAll(log))).toEqual(['stdout kept'])
    writeFileSync(segment(500), record('later'))
    unlinkSync(segment(100))
    expect(texts(await readAll(log))).toEqual(['truncated ', 'stdout later'])
  })

  describe('of which only the end is wanted', () => {
    const read = async (lastBytes: number, start = 100) => {
      const records = [record('o1\no2\no'), record('e1\ne', 2), record('3\no4\n'), record('2\ne3\n', 2)]
      writeFileSync(segment(start), Buffer.concat(records))
      using log = new OutputLog(dir, 7, 0, { lastBytes })
      return texts(await readAll(log))
    }

    test('begin with a whole line of each stream', async () => {
      expect(await read(19)).toEqual([
        'truncated ',
        'stdout o2\no',
        'stderr e1\ne',
        'stdout 3\no4\n',
        'stderr 2\ne3\n',
      ])
      expect(await read(17)).toEqual([
        'truncated ',
        'stdout o',
        'stderr e1\ne',
        'stdout 3\no4\n',
        'stderr 2\ne3\n',
      ])
      expect(await read(14)).toEqual(['truncated ', 'stderr e1\ne', 'stdout o4\n', 'stderr 2\ne3\n'])
      expect(await read(10)).toEqual(['truncated ', 'stdout o4\n', 'stderr e3\n'])
      expect(await read(1)).toEqual(['truncated '])
    })

    test('are whole where there is no more, or where nothing is gone yet', async () => {
      expect((await read(25)).join('')).toContain('stdout o1')
      rmSync(segment(100))
      expect((await read(10, 0)).join('')).toContain('stdout o1')
    })

    test('begin within a line that is longer than a record', async () => {
      const long = 'x'.repeat(60_000)
      writeFileSync(segment(100), Buffer.concat([record(long), record(long), record('end\n')]))
      using log = new OutputLog(dir, 7, 0, { lastBytes: 60_004 })
      expect((await readAll(log)).map(({ data }) => data.length)).toEqual([0, 60_000, 4])
    })

    test('go on with what is written later', async () => {
      writeFileSync(segment(100), Buffer.concat([record('one\n'), record('two\n')]))
      using log = new OutputLog(dir, 7, 0, { lastBytes: 4 })
      expect(texts(await readAll(log))).toEqual(['truncated ', 'stdout two\n'])
      appendFileSync(segment(100), record('three\n'))
      expect(texts(await readAll(log))).toEqual(['stdout three\n'])
    })
  })

  test('long records and many of them come whole', async () => {
    const data = new Uint8Array(65_536).map((_, at) => at % 251)
    writeFileSync(segment(0), Buffer.concat(Array.from({ length: 50 }, () => record(data))))
    const records = await readOnce()
    expect(records.length).toBe(50)
    expect(records.every((each) => Buffer.from(each.data).equals(Buffer.from(data)))).toBe(true)
  })

  test('what is no log is refused, and nothing waits for it', async () => {
    writeFileSync(`${dir}/secret`, record('secret'))
    symlinkSync(`${dir}/secret`, segment(0))
    expect(await damageOf(readOnce())).toContain('bad_gateway: found something else')
    unlinkSync(segment(0))
    Bun.spawnSync(['mkfifo', segment(0)])
    expect(await damageOf(readOnce())).toContain('not a regular file')
    rmSync(`${dir}/7`, { recursive: true })
    mkdirSync(`${dir}/other`)
    writeFileSync(`${dir}/other/${'0'.repeat(16)}`, record('secret'))
    symlinkSync(`${dir}/other`, `${dir}/7`)
    expect(await damageOf(readOnce())).toContain('something else')
  })

  test('a header that lies is refused', async () => {
    const long = record('x')
    long.writeUInt32LE(65_537, 0)
    writeFileSync(segment(0), Buffer.concat([long, new Uint8Array(100_000)]))
    expect(await damageOf(readOnce())).toContain('makes no sense')
    writeFileSync(segment(0), record('x', 3))
    expect(await damageOf(readOnce())).toContain('makes no sense')
  })

  test('a time that no date holds is cut', async () => {
    const late = record('x')
    late.writeBigUInt64LE(2n ** 64n - 1n, 8)
    writeFileSync(segment(0), late)
    expect(new Date((await readOnce())[0]?.at ?? Number.NaN).toISOString()).toBeString()
  })

  test('more segments than a process may have are refused', async () => {
    for (let at = 1; at <= 400; at++) writeFileSync(segment(at * 100), record('x'))
    expect(await damageOf(readOnce())).toContain('too many')
  })
})
