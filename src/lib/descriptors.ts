import { ptr } from 'bun:ffi'
import { closeSync, fstatSync } from 'node:fs'
import { libc } from './libc.ts'

/** Open files passed between processes over unix sockets. */

const afUnix = 1
const seqpacket = 5
const nonblocking = 0o4000
const closeOnExec = 0o2000000
const solSocket = 1
const scmRights = 1
const msgCtrunc = 0x8
const msgTrunc = 0x20
const msgDontwait = 0x40
const msgNosignal = 0x4000
const msgCmsgCloexec = 0x40000000
const getFlags = 3
const accessModes = 3
const readOnly = 0
const pathOnly = 0o10000000

/** Of a control message that carries one descriptor. */
const controlBytes = 20

/** File systems on which a read waits for nothing but the host's own disks. */
const ordinaryFilesystems = new Set([
  0x794c7630, // overlay
  0xef53, // ext2 to ext4
  0x01021994, // tmpfs
  0x58465342, // xfs
  0x9123683e, // btrfs
])

/** Two connected ends that keep messages apart. Null when there can be none. */
export function messageSockets(): [number, number] | null {
  const ends = new Int32Array(2)
  const made = libc()?.socketpair(afUnix, seqpacket | nonblocking | closeOnExec, 0, ptr(ends))
  return made === 0 ? [ends[0]!, ends[1]!] : null
}

/** Where the fields of a message are in its memory, in words of 4 bytes: struct msghdr, its one part, its control message. */
const partAt = 16
const controlAt = 20
const wordsOf = { part: 4, partCount: 6, control: 8, controlLength: 10, flags: 12, all: 26 }
const controlWords = { length: 0, level: 2, type: 3, descriptor: 4 }

/** struct msghdr with one part, and room for one descriptor. */
class Message {
  // Over a buffer of its own, which has one address for good.
  readonly #words = new Uint32Array(new ArrayBuffer(wordsOf.all * 4))
  readonly #control = this.#words.subarray(controlAt)
  readonly #address = ptr(this.#words)

  /** The bytes must have one address for good, too. */
  constructor(private readonly bytes: Uint8Array) {
    this.#point(wordsOf.part, this.#address + partAt * 4)
    this.#point(wordsOf.control, this.#address + controlAt * 4)
    this.#words[wordsOf.partCount] = 1
    this.#point(partAt, ptr(bytes))
    this.#words[partAt + 2] = bytes.length
  }

  #point(at: number, address: number) {
    this.#words[at] = address % 2 ** 32
    this.#words[at + 1] = Math.floor(address / 2 ** 32)
  }

  /** Bytes sent, -1 when none were. */
  send(socket: number, descriptor: number): number {
    this.#words[wordsOf.controlLength] = controlBytes
    this.#control[controlWords.length] = controlBytes
    this.#control[controlWords.level] = solSocket
    this.#control[controlWords.type] = scmRights
    this.#control[controlWords.descriptor] = descriptor
    return libc()?.sendmsg(socket, this.#address, msgDontwait | msgNosignal) ?? -1
  }

  /** The descriptor of a message that has exactly one, and as many bytes as there is room for; null for any other. */
  receive(socket: number): number | null {
    this.#words[wordsOf.controlLength] = controlBytes
    this.#control.fill(0)
    const got = libc()?.recvmsg(socket, this.#address, msgDontwait | msgCmsgCloexec) ?? -1
    // With so little room the kernel makes one descriptor at most, and says that there were more.
    const carries =
      got >= 0 &&
      this.#words[wordsOf.controlLength] === controlBytes &&
      this.#control[controlWords.length] === controlBytes &&
      this.#control[controlWords.level] === solSocket &&
      this.#control[controlWords.type] === scmRights
    if (!carries) return null
    const descriptor = this.#control[controlWords.descriptor]!
    const flags = this.#words[wordsOf.flags]!
    if (got === this.bytes.length && (flags & (msgCtrunc | msgTrunc)) === 0) return descriptor
    closeSync(descriptor)
    return null
  }
}

/** Sends bytes over a stream socket, with a descriptor beside the first of them. Answers how many went, -1 for none. */
export function sendWithDescriptor(socket: number, bytes: Uint8Array, descriptor: number): number {
  return new Message(withAddress(bytes)).send(socket, descriptor)
}

function withAddress(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new ArrayBuffer(bytes.length))
  copy.set(bytes)
  return copy
}

let oneByte: Message | undefined
/** struct statfs and then some; its first word is the kind of file system. */
let filesystem: { words: Uint32Array; address: ReturnType<typeof ptr> } | undefined

/**
 * The descriptor of the next message: one byte with one descriptor. Null when none is there, or it is something else,
 * whose descriptors are closed then. The caller closes what it gets.
 */
export function receiveDescriptor(socket: number): number | null {
  oneByte ??= new Message(withAddress(new Uint8Array(1)))
  return oneByte.receive(socket)
}

/** Size of a regular file that is open for reading only, on an ordinary file system; null for anything else. */
export function plainFileBytes(descriptor: number): number | null {
  const flags = libc()?.fcntl(descriptor, getFlags) ?? -1
  if (flags < 0 || (flags & accessModes) !== readOnly || (flags & pathOnly) !== 0) return null
  const stats = fstatSync(descriptor)
  if (!stats.isFile()) return null
  if (filesystem === undefined) {
    const words = new Uint32Array(new ArrayBuffer(256))
    filesystem = { words, address: ptr(words) }
  }
  if (libc()?.fstatfs(descriptor, filesystem.address) !== 0) return null
  return ordinaryFilesystems.has(filesystem.words[0]!) ? stats.size : null
}
