import { ptr } from 'bun:ffi'
import { afterEach, beforeEach, expect, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import {
  closeSync,
  constants,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { messageSockets, plainFileBytes, receiveDescriptor, sendWithDescriptor } from './descriptors.ts'
import { libc } from './libc.ts'

const pathOnly = 0o10000000
const closeOnExec = 0o2000000
const byte = new Uint8Array([7])

let dir: string
let file: string
let ours: number
let theirs: number
let openBefore: number
const opened: number[] = []

function open(path: string, flags: number | string = 'r'): number {
  const descriptor = openSync(path, flags)
  opened.push(descriptor)
  return descriptor
}

const openNow = () => readdirSync('/proc/self/fd').length

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-descriptors-'))
  file = join(dir, 'f')
  writeFileSync(file, 'content')
  ;[ours, theirs] = messageSockets()!
  openBefore = openNow()
})
afterEach(() => {
  for (const descriptor of [ours, theirs, ...opened.splice(0)]) closeSync(descriptor)
  rmSync(dir, { recursive: true })
})

test('an open file passes over a socket, and is not inherited by programs', () => {
  expect(sendWithDescriptor(theirs, byte, open(file))).toBe(1)
  const received = receiveDescriptor(ours)!
  opened.push(received)
  expect(readFileSync(received, 'utf8')).toBe('content')
  const flags = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${received}`, 'utf8'))?.[1]
  expect(Number.parseInt(flags!, 8) & closeOnExec).toBe(closeOnExec)
})

test('nothing to receive is told at once', () => {
  expect(receiveDescriptor(ours)).toBeNull()
  closeSync(theirs)
  expect(receiveDescriptor(ours)).toBeNull()
  theirs = openSync(file, 'r')
})

test('a message of another shape is refused, and every descriptor in it closed', () => {
  const descriptor = open(file)
  const before = openNow()
  sendWithDescriptor(theirs, new Uint8Array(2), descriptor)
  expect(receiveDescriptor(ours)).toBeNull()
  sendRaw(theirs, [])
  expect(receiveDescriptor(ours)).toBeNull()
  for (const count of [2, 3, 100]) {
    sendRaw(theirs, new Array(count).fill(descriptor))
    expect(receiveDescriptor(ours)).toBeNull()
  }
  expect(openNow()).toBe(before)
  expect(openNow()).toBe(openBefore + 1)
})

test('only a regular file that is open for reading, on an ordinary file system, is a plain one', () => {
  const fifo = join(dir, 'p')
  execFileSync('mkfifo', [fifo])
  expect(plainFileBytes(open(file))).toBe(7)
  expect(plainFileBytes(open(file, constants.O_RDONLY | constants.O_NONBLOCK))).toBe(7)
  const others: [string, number][] = [
    [file, pathOnly],
    [file, constants.O_WRONLY],
    [file, constants.O_RDWR],
    [dir, constants.O_RDONLY],
    [fifo, constants.O_RDONLY | constants.O_NONBLOCK],
    ['/dev/zero', constants.O_RDONLY],
    ['/proc/version', constants.O_RDONLY],
  ]
  for (const [path, flags] of others)
    expect([path, flags, plainFileBytes(open(path, flags))]).toEqual([path, flags, null])
  expect(plainFileBytes(ours)).toBeNull()
  const closed = openSync(file, 'r')
  closeSync(closed)
  expect(plainFileBytes(closed)).toBeNull()
})

/** One byte with any number of descriptors. */
function sendRaw(socket: number, descriptors: number[]): void {
  const part = new BigUint64Array([BigInt(ptr(byte)), 1n])
  const length = 16 + 4 * descriptors.length
  const control = new DataView(new ArrayBuffer(Math.ceil(length / 8) * 8))
  control.setBigUint64(0, BigInt(length), true)
  control.setInt32(8, 1, true)
  control.setInt32(12, 1, true)
  for (const [at, descriptor] of descriptors.entries()) {
    fstatSync(descriptor)
    control.setInt32(16 + 4 * at, descriptor, true)
  }
  const bytes = new Uint8Array(control.buffer)
  const fields = new BigUint64Array(7)
  fields[2] = BigInt(ptr(part))
  fields[3] = 1n
  fields[4] = BigInt(ptr(bytes))
  fields[5] = descriptors.length === 0 ? 0n : BigInt(bytes.length)
  expect(libc()!.sendmsg(socket, ptr(fields), 0)).toBe(1)
}
