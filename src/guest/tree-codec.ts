import { encodeCode, type LinePattern, type Program } from '../lib/patterns/index.ts'
import type { FileChange, LineMatch, TreeSummary } from '../spec/guest.ts'
import { type EntryRecord, entryBytesMin, readEntryFields } from './codec.ts'
import { type FrameWriter, ProtocolError } from './frame.ts'
import { PayloadReader } from './payload.ts'

/** The frames about whole directory trees (docs/guest-protocol.md), as suspicious of what comes in as codec.ts. */

const matchBytesMin = 32
const changeBytesMin = 6
const pathCharactersMax = 4096

export function putProgram(writer: FrameWriter, program: Program | null): FrameWriter {
  if (program === null) return writer.u16(0).u32(0)
  return writer.u16(program.start).u32(program.code.length).raw(encodeCode(program))
}

export function putLinePattern(writer: FrameWriter, { program, literals }: LinePattern): FrameWriter {
  putProgram(writer, program).u32(literals.length)
  for (const { bytes, masks } of literals) writer.u32(bytes.length).raw(bytes).raw(masks)
  return writer
}

export function readFound(payload: Uint8Array): EntryRecord[] {
  const reader = new PayloadReader(payload)
  const entries = reader.list(entryBytesMin, readEntryFields)
  reader.end()
  for (const { name } of entries) checkRelative(name)
  return entries
}

export function readMatches(payload: Uint8Array): LineMatch[] {
  const reader = new PayloadReader(payload)
  const matches = reader.list(matchBytesMin, readMatch)
  reader.end()
  return matches
}

const text = new TextDecoder('utf-8', { ignoreBOM: true })

function readMatch(reader: PayloadReader): LineMatch {
  const path = reader.str()
  if (path !== '') checkRelative(path)
  const match = {
    path,
    line: reader.u64Clamped(Number.MAX_SAFE_INTEGER),
    column: reader.u32() + 1,
    length: reader.u32(),
    text: text.decode(reader.sized()),
  }
  const before = text.decode(reader.sized())
  const after = text.decode(reader.sized())
  return {
    ...match,
    before:
      before === ''
        ? []
        : before
            .slice(0, before.endsWith('\n') ? -1 : undefined)
            .split('\n')
            .map(withoutReturn),
    after:
      after === ''
        ? []
        : after
            .slice(after.startsWith('\n') ? 1 : 0)
            .split('\n')
            .map(withoutReturn),
  }
}

function withoutReturn(line: string): string {
  return line.endsWith('\r') ? line.slice(0, -1) : line
}

export function readSummary(payload: Uint8Array): TreeSummary {
  const reader = new PayloadReader(payload)
  const summary = {
    entries: reader.u64Clamped(Number.MAX_SAFE_INTEGER),
    bytes: reader.u64Clamped(Number.MAX_SAFE_INTEGER),
    skipped: reader.u64Clamped(Number.MAX_SAFE_INTEGER),
    truncated: reader.u8() !== 0,
  }
  reader.end()
  return summary
}

const changeKinds = [undefined, 'created', 'written', 'removed', 'renamed', 'attributes', 'lost'] as const

export function readChanges(payload: Uint8Array): FileChange[] {
  const reader = new PayloadReader(payload)
  const changes = reader.list(changeBytesMin, readChange)
  reader.end()
  return changes
}

function readChange(reader: PayloadReader): FileChange {
  const kind = changeKinds[reader.u8()]
  if (kind === undefined) throw new ProtocolError('unknown kind of change')
  const change = { kind, directory: reader.u8() !== 0, path: reader.str() }
  if (change.path !== '') checkRelative(change.path)
  return change
}

/** A path that leads down from the root of the tree, and nowhere else. */
function checkRelative(path: string) {
  const names = path.split('/')
  const isOdd = names.some((name) => name === '' || name === '.' || name === '..')
  if (isOdd || path.length > pathCharactersMax) throw new ProtocolError('impossible path in a tree')
}
