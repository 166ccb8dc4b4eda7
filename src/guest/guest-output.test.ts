import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../lib/test-eventually.ts'
import { readOutputNotice } from './codec.ts'
import { type Frame, FrameType, FrameWriter } from './frame.ts'
import { type TestConnection, TestGuest } from './test-guest.ts'

setDefaultTimeout(120_000)

const flag = { stdin: 1 }
const esrch = 'errno 3 '

let guest: TestGuest
let control: TestConnection
let lastId = 0
const nextId = () => ++lastId

beforeAll(async () => {
  guest = await TestGuest.start()
  control = await guest.control()
})
afterAll(() => guest[Symbol.asyncDispose]())

const isOutput = (id: number) => (frame: Frame) => frame.type === FrameType.output && frame.id === id
const attach = (id: number, consumed: number) => new FrameWriter(FrameType.attach, id).u64(consumed)
const forget = (id: number) => new FrameWriter(FrameType.forget, id)
/** What a program waits with, and what lets it go on. */
const until = (name: string) => `while [ ! -e ${guest.dir}/inside/${name} ]; do sleep 0.02; done`
const allow = (name: string) => writeFile(join(guest.dir, 'inside', name), '')

describe('background children that keep the pipes', () => {
  test('EXIT does not wait for them, and their output is kept', async () => {
    const id = nextId()
    await control.shell(id, `(${until('ended')}; echo later) & echo now`)
    const exit = await control.exit(id)
    expect(exit.endOffset).toBe(16 + 4)
    await allow('ended')
    await eventually(async () => (await guest.text(id)) === 'now\nlater\n')
  })

  test('they outlive FORGET and do not get SIGPIPE', async () => {
    const id = nextId()
    const script = `(${until('forgotten')}; echo one; echo two; echo fine > ${guest.dir}/inside/fine) & echo now`
    await control.shell(id, script)
    await control.exit(id)
    expect(await control.request(forget(id), id)).toBe('OK')
    await allow('forgotten')
    await eventually(() => Bun.file(join(guest.dir, 'inside/fine')).exists())
    expect(await readdir(guest.logDir)).not.toContain(String(id))
  })
})

describe('output logs', () => {
  test('keep the newest outputBytesMax, in segments', async () => {
    const id = nextId()
    await control.shell(id, 'seq 1 200000', { outputBytesMax: 512 * 1024 })
    const exit = await control.exit(id)
    expect(exit.endOffset).toBeGreaterThan(1_288_894)
    const names = await readdir(join(guest.logDir, String(id)))
    expect(names.length).toBeGreaterThan(1)
    expect(names.length).toBeLessThanOrEqual(10)
    const text = await guest.text(id)
    expect(text.length).toBeLessThanOrEqual(512 * 1024)
    expect(text.length).toBeGreaterThan(300 * 1024)
    expect(text).toEndWith('\n199999\n200000\n')
  })

  test('a follower gets every byte of a flood, since the program waits for it', async () => {
    const id = nextId()
    const follower = await guest.control()
    const count = 100_000
    // Nobody waits for a follower that is not there yet.
    const options = { outputBytesMax: 128 * 1024, flags: flag.stdin }
    await control.shell(id, `read attached; seq 1 ${count}`, options)
    expect(await follower.request(attach(id, 0), id)).toBe('OK')
    await control.request(new FrameWriter(FrameType.stdin, id).raw(Buffer.from('yes\n')), id)
    let consumed = 0
    let text = ''
    for (;;) {
      const notice = readOutputNotice((await follower.next(isOutput(id))).payload)
      expect(notice.startOffset).toBeLessThanOrEqual(consumed)
      text += await readLog(id, consumed, notice.endOffset)
      consumed = notice.endOffset
      if (notice.eof) break
      expect(await follower.request(attach(id, consumed), id)).toBe('OK')
    }
    const lines = text.trimEnd().split('\n')
    expect(lines.length).toBe(count)
    expect(lines.at(-1)).toBe(String(count))
    follower.close()
  })

  test('a follower that stalls holds the program, and closing it lets go', async () => {
    const id = nextId()
    const follower = await guest.control()
    const options = { outputBytesMax: 128 * 1024, flags: flag.stdin }
    await control.shell(id, 'read attached; seq 1 500000; echo end', options)
    await follower.request(attach(id, 0), id)
    await control.request(new FrameWriter(FrameType.stdin, id).raw(Buffer.from('yes\n')), id)
    await follower.next(isOutput(id))
    let last = -1
    await eventually(async () => {
      const before = last
      last = (await control.list()).find((item) => item.id === id)?.endOffset ?? 0
      await Bun.sleep(100)
      return last > 0 && last === before
    })
    expect(last).toBeLessThanOrEqual(128 * 1024)
    follower.close()
    await control.exit(id)
    expect(await guest.text(id)).toEndWith('500000\nend\n')
  })

  test('OUTPUT is announced once, then again only after the next ATTACH', async () => {
    const id = nextId()
    await control.shell(id, 'while read line; do echo "$line"; done', { flags: flag.stdin })
    const say = (text: string) =>
      control.request(new FrameWriter(FrameType.stdin, id).raw(Buffer.from(text)), id)
    expect(await control.request(attach(id, 0), id)).toBe('OK')
    await say('a\n')
    const first = readOutputNotice((await control.next(isOutput(id))).payload)
    expect(first).toEqual({ startOffset: 0, endOffset: 18, eof: false })
    await say('b\n')
    await eventually(async () => (await guest.text(id)) === 'a\nb\n')
    control.send(new FrameWriter(FrameType.ping, 1))
    const next = await control.next((frame) => frame.type === FrameType.pong || isOutput(id)(frame))
    expect(next.type).toBe(FrameType.pong)
    expect(await control.request(attach(id, 18), id)).toBe('OK')
    expect(readOutputNotice((await control.next(isOutput(id))).payload).endOffset).toBe(36)
    expect(await control.request(attach(id, 36), id)).toBe('OK')
    expect(await control.request(new FrameWriter(FrameType.closeStdin, id), id)).toBe('OK')
    expect(readOutputNotice((await control.next(isOutput(id))).payload)).toEqual({
      startOffset: 0,
      endOffset: 36,
      eof: true,
    })
    expect(await control.request(attach(id, 37), id)).toStartWith('errno 22 ')
    expect(await control.request(new FrameWriter(FrameType.detach, id), id)).toBe('OK')
    expect(await control.request(attach(999_999, 0), 999_999)).toStartWith(esrch)
  })

  test('an ATTACH after the end still announces eof', async () => {
    const id = nextId()
    await control.spawn(id, ['true'])
    await control.exit(id)
    expect(await control.request(attach(id, 0), id)).toBe('OK')
    expect(readOutputNotice((await control.next(isOutput(id))).payload)).toEqual({
      startOffset: 0,
      endOffset: 0,
      eof: true,
    })
  })

  async function readLog(id: number, from: number, to: number): Promise<string> {
    const directory = join(guest.logDir, String(id))
    let text = ''
    let position = from
    for (const name of (await readdir(directory)).sort()) {
      const start = Number.parseInt(name, 16)
      // A segment that was consumed may go at any moment; one that was not is missed below.
      const bytes = await readFile(join(directory, name)).catch(() => Buffer.alloc(0))
      while (position >= start && position < Math.min(to, start + bytes.length)) {
        const at = position - start
        const length = bytes.readUInt32LE(at)
        text += bytes.toString('latin1', at + 16, at + 16 + length)
        position += 16 + length
      }
    }
    if (position !== to) throw new Error(`read up to ${position}, announced ${to}`)
    return text
  }
})

const asRoot = process.getuid?.() === 0 ? test : test.skip

asRoot('a full disk drops output, and the program goes on (needs root)', async () => {
  let mount = ''
  const full = await TestGuest.start({
    prepare: (dir) => {
      mount = join(dir, 'log')
      mkdirSync(mount)
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', mount])
    },
  })
  try {
    const connection = await full.control()
    await connection.shell(1, 'head -c 5000000 /dev/zero; echo err >&2; exit 3', { outputBytesMax: 8 << 20 })
    const exit = await connection.exit(1)
    expect(exit).toMatchObject({ state: 'exited', code: 3 })
    expect(exit.endOffset).toBeGreaterThan(500_000)
    expect(exit.endOffset).toBeLessThanOrEqual(1 << 20)
    const kept = await full.output(1)
    expect(kept.reduce((sum, record) => sum + record.data.length + 16, 0)).toBe(exit.endOffset)
    expect(await connection.request(forget(1), 1)).toBe('OK')
    await connection.shell(2, 'echo room again')
    await connection.exit(2)
    expect(await full.text(2)).toBe('room again\n')
    connection.close()
  } finally {
    execFileSync('umount', ['-l', mount])
    await full[Symbol.asyncDispose]()
  }
})
