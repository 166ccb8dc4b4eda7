import { afterAll, afterEach, beforeAll, beforeEach, expect, setDefaultTimeout, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import { closeSync, fstatSync, readFileSync, renameSync, truncateSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { join } from 'node:path'
import { messageSockets, receiveDescriptor, sendWithDescriptor } from '../lib/descriptors.ts'
import { eventually } from '../lib/test-eventually.ts'
import { readEntry } from './codec.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { describeError, type TestConnection, TestGuest } from './test-guest.ts'

setDefaultTimeout(120_000)

const openMin = 10
const openMax = 3 * 1024 * 1024

let guest: TestGuest
let files: TestConnection
let dir: string
let handover: number | null
let lastId = 0

beforeAll(async () => {
  guest = await TestGuest.start()
})
afterAll(() => guest[Symbol.asyncDispose]())
beforeEach(async () => {
  dir = await mkdtemp(join(guest.dir, 'open-'))
  files = await guest.files()
  handover = null
})
afterEach(() => {
  files.close()
  if (handover !== null) closeSync(handover)
})

const openFrame = (path: string) =>
  new FrameWriter(FrameType.open, ++lastId).u64(openMin).u64(openMax).str(path)

function fdOf(connection: TestConnection): number {
  return (connection.socket as unknown as { _handle: { fd: number } })._handle.fd
}

/** Sends bytes with a new socket for files, in place of the one before. */
function offer(bytes: Uint8Array): void {
  const [ours, theirs] = messageSockets()!
  expect(sendWithDescriptor(fdOf(files), bytes, theirs)).toBe(bytes.length)
  closeSync(theirs)
  if (handover !== null) closeSync(handover)
  handover = ours
}

/** What OPEN answers: the content of the file that was handed over, or of DATA. */
async function answerOf(
  id: number,
): Promise<string | { by: 'file' | 'data'; size: number; content: Buffer }> {
  const first = await files.next((frame) => frame.id === id)
  if (first.type !== FrameType.entryOk) return describeError(first)
  const { size } = readEntry(first.payload)
  const chunks: Uint8Array[] = []
  for (;;) {
    const frame = await files.next((frame) => frame.id === id)
    if (frame.type === FrameType.data) chunks.push(frame.payload)
    else if (frame.type === FrameType.end) return { by: 'data', size, content: Buffer.concat(chunks) }
    else break
  }
  const descriptor = receiveDescriptor(handover!)!
  try {
    return { by: 'file', size, content: readFileSync(descriptor) }
  } finally {
    closeSync(descriptor)
  }
}

function openWith(path: string) {
  offer(openFrame(path).finish())
  return answerOf(lastId)
}

function write(bytes: number): { path: string; content: Buffer<ArrayBuffer> } {
  const content = Buffer.alloc(bytes, 'content ')
  const path = join(dir, `f${bytes}`)
  writeFileSync(path, content)
  return { path, content }
}

test('OPEN hands over a file whose size is asked for, and sends the others as READ does', async () => {
  for (const bytes of [openMin - 1, openMin, openMax, openMax + 1]) {
    const { path, content } = write(bytes)
    const by = bytes >= openMin && bytes <= openMax ? 'file' : 'data'
    expect(await openWith(path)).toEqual({ by, size: bytes, content })
  }
})

test('one socket serves every OPEN of a connection, and other requests between them', async () => {
  const { path, content } = write(100)
  expect(await openWith(path)).toMatchObject({ by: 'file', content })
  for (let round = 0; round < 300; round++) {
    files.send(openFrame(path))
    expect(await answerOf(lastId)).toMatchObject({ by: 'file', content })
    const id = ++lastId
    files.send(new FrameWriter(FrameType.stat, id).u8(0).str(path))
    expect((await files.next((frame) => frame.id === id)).type).toBe(FrameType.entryOk)
  }
  // The host's copy was closed each time, and the worker kept none.
  const open = execFileSync('sh', [
    '-c',
    `ls -l /proc/self/fd $(pgrep -P ${guest.pid} | sed 's#.*#/proc/&/fd#')`,
  ])
  expect(open.toString()).toContain('socket:')
  expect(open.toString()).not.toContain(path)
})

test('without a socket to hand it over, and with one that is gone, the content is sent', async () => {
  const { path, content } = write(100)
  files.send(openFrame(path))
  expect(await answerOf(lastId)).toEqual({ by: 'data', size: 100, content })
  expect(await openWith(path)).toMatchObject({ by: 'file' })
  closeSync(handover!)
  handover = null
  files.send(openFrame(path))
  expect(await answerOf(lastId)).toEqual({ by: 'data', size: 100, content })
})

test('a socket that nobody reads is not waited for', async () => {
  const { path, content } = write(100)
  offer(openFrame(path).finish())
  const frames = Buffer.concat(Array.from({ length: 5_000 }, () => openFrame(path).finish()))
  const first = lastId - 4_999
  files.send(frames)
  let sent = 0
  for (let id = first; id <= lastId; id++) {
    expect((await files.next((frame) => frame.id === id)).type).toBe(FrameType.entryOk)
    const answer = await files.next((frame) => frame.id === id)
    if (answer.type === FrameType.opened) continue
    expect(content.equals(answer.payload)).toBe(true)
    expect((await files.next((frame) => frame.id === id)).type).toBe(FrameType.end)
    sent++
  }
  expect(sent).toBeGreaterThan(0)
})

test('what is no regular file is refused as READ refuses it, and what is made up is sent', async () => {
  execFileSync('mkfifo', [join(dir, 'p')])
  expect(await openWith(join(dir, 'p'))).toStartWith('errno 22 ')
  expect(await openWith(dir)).toStartWith('errno 21 ')
  expect(await openWith('/dev/zero')).toStartWith('errno 22 ')
  expect(await openWith(join(dir, 'none'))).toStartWith('errno 2 ')
  expect(await openWith('relative')).toStartWith('errno 22 ')
  expect(await openWith('/proc/version')).toMatchObject({ by: 'data' })
})

test('what was handed over stays the file it was, for reading only', async () => {
  const { path, content } = write(100)
  offer(openFrame(path).finish())
  await files.next((frame) => frame.type === FrameType.opened)
  const descriptor = receiveDescriptor(handover!)!
  writeFileSync(join(dir, 'other'), 'other')
  renameSync(join(dir, 'other'), path)
  expect(content.equals(readFileSync(descriptor))).toBe(true)
  expect(() => writeFileSync(descriptor, 'x')).toThrow('EBADF')
  closeSync(descriptor)
})

test('a file with holes, and one that became shorter, are handed over as they are', async () => {
  const { path } = write(100)
  truncateSync(path, 2_000_000)
  expect(await openWith(path)).toMatchObject({ by: 'file', size: 2_000_000 })
  truncateSync(path, 20)
  expect(await openWith(path)).toMatchObject({ by: 'file', size: 20 })
})

test('the worker ends with its connection, whatever was not received', async () => {
  const { path } = write(100)
  offer(openFrame(path).finish())
  await files.next((frame) => frame.type === FrameType.opened)
  files.close()
  await eventually(() => execFileSync('sh', ['-c', `pgrep -P ${guest.pid} || true`]).toString() === '')
  const descriptor = receiveDescriptor(handover!)!
  expect(fstatSync(descriptor).size).toBe(100)
  closeSync(descriptor)
})
