import { PlatformError } from '../errors.ts'
import type { ProcessDescent, ProcessSocket } from '../spec/guest.ts'
import { Connection } from './connection.ts'
import { printable } from './errno.ts'
import { type Frame, FrameType, FrameWriter, ProtocolError } from './frame.ts'
import { PayloadReader } from './payload.ts'

const answerTimeoutMs = 10_000
const socketsMax = 4096
const usersMax = 64

interface User {
  uid: number
  gid: number
}

/**
 * Asks a worker of the guest, and, for programs of other users, workers with their credentials: nobody else may see
 * what such a program has open. `pid` is 0 when the process has ended.
 */
export async function surveyDescent(
  socketPath: string,
  process: { id: number; pid: number },
): Promise<ProcessDescent> {
  const sockets = new Map<string, ProcessSocket>()
  const asked = new Set<string>()
  const users: User[] = [{ uid: 0, gid: 0 }]
  let living = 0
  for (let user = users.shift(); user && asked.size < usersMax; user = users.shift()) {
    const key = `${user.uid}:${user.gid}`
    if (asked.has(key)) continue
    asked.add(key)
    const answer = await ask(socketPath, process, user).catch((error) => {
      // One who may not have a worker leaves what the others have.
      if (user?.uid === 0) throw error
      return null
    })
    if (answer === null) continue
    if (user.uid === 0) living = answer.living
    for (const socket of answer.sockets) sockets.set(JSON.stringify(socket), socket)
    if (user.uid === 0) users.push(...answer.others)
  }
  return { living, sockets: [...sockets.values()] }
}

async function ask(
  path: string,
  process: { id: number; pid: number },
  user: User,
): Promise<ProcessDescent & { others: User[] }> {
  const sockets: ProcessSocket[] = []
  const answer = Promise.withResolvers<{ living: number; others: User[] }>()
  answer.promise.catch(() => {})
  const handler = {
    onFrame(frame: Frame) {
      if (frame.type === FrameType.socket) {
        if (sockets.length >= socketsMax) throw new ProtocolError('more sockets than there may be')
        sockets.push(readSocket(frame.payload))
      } else if (frame.type === FrameType.descent) answer.resolve(readDescent(frame.payload))
      else if (frame.type !== FrameType.pong) throw new ProtocolError(`a frame of type ${frame.type}`)
    },
    onClose(cause: Error) {
      answer.reject(new PlatformError('unavailable', 'The sandbox does not tell what listens', { cause }))
    },
  }
  const connection = await Connection.open({ path, role: 'sockets', ...user }, handler)
  const timer = setTimeout(() => connection.close(new Error('no answer in time')), answerTimeoutMs)
  try {
    connection.send(new FrameWriter(FrameType.sockets, 1).u32(process.id).u32(process.pid).finish())
    return { ...(await answer.promise), sockets }
  } finally {
    clearTimeout(timer)
    connection.close(new Error('answered'))
  }
}

/** As the kernel numbers them. */
const tcpStates = [
  '',
  'ESTABLISHED',
  'SYN_SENT',
  'SYN_RECV',
  'FIN_WAIT1',
  'FIN_WAIT2',
  'TIME_WAIT',
  'CLOSE',
  'CLOSE_WAIT',
  'LAST_ACK',
  'LISTEN',
  'CLOSING',
]
const tcp = 6

function readSocket(payload: Uint8Array): ProcessSocket {
  const reader = new PayloadReader(payload)
  const pid = reader.u32()
  const protocol = reader.u8() === tcp ? 'tcp' : 'udp'
  const state = reader.u8()
  const localPort = reader.u16()
  const remotePort = reader.u16()
  const localAddress = addressOf(reader.str())
  const remoteAddress = addressOf(reader.str())
  const processName = printable(reader.str())
  reader.end()
  return {
    pid,
    processName,
    protocol,
    state: protocol === 'tcp' ? (tcpStates[state] ?? '') : '',
    localAddress,
    localPort,
    remoteAddress,
    remotePort,
  }
}

function readDescent(payload: Uint8Array): { living: number; others: User[] } {
  const reader = new PayloadReader(payload)
  const living = reader.u32()
  const count = reader.u32()
  const others: User[] = []
  if (count > usersMax) throw new ProtocolError('more users than there may be')
  for (let at = 0; at < count; at++) others.push({ uid: reader.u32(), gid: reader.u32() })
  reader.end()
  return { living, others }
}

/** From the kernel's spelling: words of four bytes, each in the machine's order, which is little endian. */
function addressOf(hex: string): string {
  if (!/^(?:[0-9A-F]{8}|[0-9A-F]{32})$/.test(hex)) throw new ProtocolError('an address that is none')
  const bytes = Buffer.from(hex, 'hex')
  bytes.swap32()
  if (bytes.length === 4) return bytes.join('.')
  const mapped = bytes.subarray(0, 10).every((byte) => byte === 0) && bytes.readUInt16BE(10) === 0xffff
  if (mapped) return bytes.subarray(12).join('.')
  const groups = Array.from({ length: 8 }, (_, at) => bytes.readUInt16BE(2 * at).toString(16)).join(':')
  return new URL(`http://[${groups}]`).hostname.slice(1, -1)
}
