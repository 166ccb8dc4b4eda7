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

/** struct msghdr with one part, and room for one descriptor. Everything it points to is kept alive by it. */
class Message {
  readonly #fields = new BigUint64Array(7)
  readonly #part = new BigUint64Array(2)
  readonly #control = new ArrayBuffer(24)
  readonly #controlFields = new DataView(this.#control)

  constructor(private readonly bytes: Uint8Array) {
    this.#part[0] = BigInt(ptr(bytes))
    this.#part[1] = BigInt(bytes.length)
    this.#fields[2] = BigInt(ptr(this.#part))
    this.#fields[3] = 1n
    this.#fields[4] = BigInt(ptr(this.#control))
  }

  /** Bytes sent, -1 when none were. */
  send(socket: number, descriptor: number): number {
    this.#fields[5] = BigInt(this.#control.byteLength)
    this.#controlFields.setBigUint64(0, BigInt(controlBytes), true)
    this.#controlFields.setInt32(8, solSocket, true)
    this.#controlFields.setInt32(12, scmRights, true)
    this.#controlFields.setInt32(16, descriptor, true)
    return Number(libc()?.sendmsg(socket, ptr(this.#fields), msgDontwait | msgNosignal) ?? -1)
  }

  /** The descriptor of a message that has exactly one, and as many bytes as there is room for; null for any other. */
  receive(socket: number): number | null {
    this.#fields[5] = BigInt(controlBytes)
    this.#controlFields.setBigUint64(0, 0n, true)
    const got = Number(libc()?.recvmsg(socket, ptr(this.#fields), msgDontwait | msgCmsgCloexec) ?? -1)
    // With so little room the kernel makes one descriptor at most, and says that there were more.
    const carries =
      got >= 0 &&
      this.#fields[5] === BigInt(controlBytes) &&
      this.#controlFields.getBigUint64(0, true) === BigInt(controlBytes) &&
      this.#controlFields.getInt32(8, true) === solSocket &&
      this.#controlFields.getInt32(12, true) === scmRights
    if (!carries) return null
    const descriptor = this.#controlFields.getInt32(16, true)
    const flags = Number(this.#fields[6]! & 0xffff_ffffn)
    if (got === this.bytes.length && (flags & (msgCtrunc | msgTrunc)) === 0) return descriptor
    closeSync(descriptor)
    return null
  }
}

/** Sends bytes over a stream socket, with a descriptor beside the first of them. Answers how many went, -1 for none. */
export function sendWithDescriptor(socket: number, bytes: Uint8Array, descriptor: number): number {
  return new Message(bytes).send(socket, descriptor)
}

let oneByte: Message | undefined

/**
 * The descriptor of the next message: one byte with one descriptor. Null when none is there, or it is something else,
 * whose descriptors are closed then. The caller closes what it gets.
 */
export function receiveDescriptor(socket: number): number | null {
  oneByte ??= new Message(new Uint8Array(1))
  return oneByte.receive(socket)
}

/** A regular file that is open for reading only, on an ordinary file system. */
export function isPlainFile(descriptor: number): boolean {
  const flags = libc()?.fcntl(descriptor, getFlags) ?? -1
  if (flags < 0 || (flags & accessModes) !== readOnly || (flags & pathOnly) !== 0) return false
  if (!fstatSync(descriptor).isFile()) return false
  const filesystem = new Uint32Array(64)
  if (libc()?.fstatfs(descriptor, ptr(filesystem)) !== 0) return false
  return ordinaryFilesystems.has(filesystem[0]!)
}
