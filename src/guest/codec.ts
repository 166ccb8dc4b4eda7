/** What frames carry about processes, files and connections (docs/guest-protocol.md), as suspicious as frame.ts. */
import { ProtocolError } from './frame.ts'
import { PayloadReader } from './payload.ts'

export const stdinBytesMax = 64 * 1024
export const processIdMax = 2 ** 31

export interface ProcessRecord {
  id: number
  pid: number
  state: 'running' | 'exited' | 'signaled'
  /** Exit code, or number of the signal. */
  code: number
  startedMs: number
  endedMs: number
  endOffset: number
}

const processStates = [undefined, 'running', 'exited', 'signaled'] as const

export function readProcess(payload: Uint8Array): ProcessRecord {
  const reader = new PayloadReader(payload)
  const id = reader.u32()
  const pid = reader.u32()
  const state = processStates[reader.u8()]
  if (state === undefined) throw new ProtocolError('unknown process state')
  const record = {
    id,
    pid,
    state,
    code: reader.u32(),
    startedMs: reader.u64(),
    endedMs: reader.u64(),
    endOffset: reader.u64(),
  }
  reader.end()
  return record
}

export interface EntryRecord {
  type: 'f' | 'd' | 'l' | 'p' | 's' | 'c' | 'b'
  mode: number
  uid: number
  gid: number
  size: number
  modifiedMs: number
  links: number
  name: string
  linkTarget: string
}

/** Bytes of an ENTRY whose two strings are empty. */
export const entryBytesMin = 1 + 4 + 4 + 4 + 8 + 8 + 4 + 4 + 4
const nameCharactersMax = 4096
/** The last moment that a Date can hold. */
const dateMsMax = 8.64e15

export function readEntryFields(reader: PayloadReader): EntryRecord {
  const type = String.fromCharCode(reader.u8())
  if (!'fdlpscb'.includes(type)) throw new ProtocolError('unknown file type')
  const mode = reader.u32()
  if (mode > 0o7777) throw new ProtocolError('mode has other bits than permissions')
  const entry = {
    type: type as EntryRecord['type'],
    mode,
    uid: reader.u32(),
    gid: reader.u32(),
    size: reader.u64Clamped(Number.MAX_SAFE_INTEGER),
    modifiedMs: reader.i64Clamped(dateMsMax),
    links: reader.u32(),
    name: reader.str(),
    linkTarget: reader.str(),
  }
  if (entry.name.length > nameCharactersMax || entry.linkTarget.length > nameCharactersMax) {
    throw new ProtocolError('name is too long')
  }
  return entry
}

export function readEntry(payload: Uint8Array): EntryRecord {
  const reader = new PayloadReader(payload)
  const entry = readEntryFields(reader)
  reader.end()
  return entry
}

export function readEntries(payload: Uint8Array): EntryRecord[] {
  const reader = new PayloadReader(payload)
  const entries = reader.list(entryBytesMin, readEntryFields)
  reader.end()
  for (const { name } of entries) {
    if (name === '' || name === '.' || name === '..' || name.includes('/')) {
      throw new ProtocolError('directory entry has an impossible name')
    }
  }
  return entries
}

export function readError(payload: Uint8Array): { errno: number; message: string } {
  const reader = new PayloadReader(payload)
  const error = { errno: reader.u32(), message: reader.str() }
  reader.end()
  return error
}

const connectionKinds = [undefined, 'outgoing', 'api'] as const

export interface ConnectRecord {
  kind: 'outgoing' | 'api'
  port: number
  /** 4 or 16 bytes, none of an `api`. A copy. */
  address: Uint8Array
}

export function readConnect(payload: Uint8Array): ConnectRecord {
  const reader = new PayloadReader(payload)
  const kind = connectionKinds[reader.u8()]
  const family = reader.u8()
  const port = reader.u16()
  const address = reader.rest().slice()
  if (kind === undefined || address.length !== (family === 4 ? 4 : family === 6 ? 16 : 0)) {
    throw new ProtocolError('a connection of no known kind or family')
  }
  if (kind === 'outgoing' && family === 0) throw new ProtocolError('a connection to nowhere')
  return { kind, port, address }
}

export interface OutputNotice {
  startOffset: number
  endOffset: number
  eof: boolean
}

export function readOutputNotice(payload: Uint8Array): OutputNotice {
  const reader = new PayloadReader(payload)
  const notice = { startOffset: reader.u64(), endOffset: reader.u64(), eof: reader.u8() !== 0 }
  reader.end()
  if (notice.startOffset > notice.endOffset) throw new ProtocolError('output starts behind its end')
  return notice
}

export function readGuestState(payload: Uint8Array): {
  state: 'running' | 'exited' | 'signaled'
  code: number
} {
  const reader = new PayloadReader(payload)
  const state = processStates[reader.u8()]
  if (state === undefined) throw new ProtocolError('unknown state of process 1')
  const code = reader.u32()
  reader.end()
  return { state, code }
}
