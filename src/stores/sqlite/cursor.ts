import { createHash } from 'node:crypto'
import { PlatformError } from '../../errors.ts'
import { cursorAgeMsMax, type PageQuery, type SortOrder } from '../../spec/store.ts'

/** Where a page ended: the sort keys of its last resource. */
export type Position = [key: string | number, tie: string]

const cursorLengthMax = 8192

export function encodeCursor(query: PageQuery, sort: SortOrder, position: Position, nowMs: number): string {
  return Buffer.from(JSON.stringify([nowMs, binding(query, sort), ...position])).toString('base64url')
}

/** @throws bad_request */
export function decodeCursor(cursor: string, query: PageQuery, sort: SortOrder, nowMs: number): Position {
  const parts = parse(cursor)
  const [issuedAtMs, bound, key, tie] = parts
  if (
    parts.length !== 4 ||
    typeof issuedAtMs !== 'number' ||
    typeof key !== (sort.startsWith('name:') ? 'string' : 'number') ||
    typeof tie !== 'string'
  ) {
    throw malformed()
  }
  if (bound !== binding(query, sort)) {
    throw new PlatformError(
      'bad_request',
      'cursor belongs to another query: send it with the same filters and sort, or start again without it',
    )
  }
  // The clock may have been set back since: that, too, is an age nobody can vouch for.
  if (Math.abs(nowMs - issuedAtMs) > cursorAgeMsMax) {
    throw new PlatformError('bad_request', 'cursor is older than 24 hours: start again without it')
  }
  return [key as string | number, tie]
}

function parse(cursor: string): unknown[] {
  if (cursor.length > cursorLengthMax) throw malformed()
  try {
    const parts: unknown = JSON.parse(Buffer.from(cursor, 'base64url').toString())
    if (Array.isArray(parts)) return parts
  } catch (cause) {
    throw malformed(cause)
  }
  throw malformed()
}

function malformed(cause?: unknown): PlatformError {
  return new PlatformError('bad_request', 'cursor is not one that this platform gave out', { cause })
}

/** What the cursor is good for. Not the limit: a client may ask for larger pages half-way. */
function binding(query: PageQuery, sort: SortOrder): string {
  const { kind, workspace, where = {}, search, since, until } = query
  const filters = Object.entries(where)
    .map(([name, value]) => [name, Array.isArray(value) ? [...value].sort() : [value]])
    .sort(([left], [right]) => (left! < right! ? -1 : 1))
  const sought = search ? [search.toLowerCase()] : []
  const times = since === undefined && until === undefined ? [] : [[since ?? null, until ?? null]]
  const text = JSON.stringify([kind, workspace ?? null, sort, filters, ...sought, ...times])
  return createHash('sha256').update(text).digest('base64url').slice(0, 16)
}
