import { PlatformError } from '../../errors.ts'
import {
  type PageQuery,
  pageFiltersMax,
  pageLimitDefault,
  pageLimitMax,
  pageOffsetMax,
  type Resource,
  resourceBodyBytesMax,
  resourceNameLengthMax,
  type SortOrder,
  sortOrders,
} from '../../spec/store.ts'
import type { ResourceRow } from './schema.ts'

export function decodeRow<Body>(row: ResourceRow): Resource<Body> {
  const { id, kind, workspace, name, version, createdAt, updatedAt } = row
  return {
    id,
    kind,
    workspace,
    name,
    version,
    createdAt,
    updatedAt,
    indexes: JSON.parse(row.indexes) as Record<string, string>,
    body: JSON.parse(row.body) as Body,
  }
}

/** @throws bad_request, body_too_large */
export function encodeBody(body: unknown): string {
  const text = JSON.stringify(body) as string | undefined
  if (text === undefined) throw new PlatformError('bad_request', `body must be JSON, got ${typeof body}`)
  // A UTF-16 unit is at most three bytes, so that most bodies need no second look.
  if (text.length * 3 > resourceBodyBytesMax && Buffer.byteLength(text) > resourceBodyBytesMax) {
    throw new PlatformError(
      'body_too_large',
      `the resource is ${Buffer.byteLength(text)} bytes of JSON, at most ${resourceBodyBytesMax} can be stored`,
    )
  }
  return text
}

export function encodeIndexes(indexes: Record<string, string>): string {
  for (const [name, value] of Object.entries(indexes)) {
    checkText('index name', name)
    checkText(`index ${name}`, value)
  }
  return JSON.stringify(indexes)
}

export function checkKey(key: { kind: string; workspace?: string; name?: string }): void {
  checkText('kind', key.kind)
  if (key.workspace !== undefined) checkText('workspace', key.workspace)
  if (key.name !== undefined) checkText('name', key.name)
}

/** What SQLite can keep and give back as it was: text without NUL that UTF-8 can express. */
export function checkText(field: string, value: string): void {
  if (typeof value !== 'string') {
    throw new PlatformError('bad_request', `${field} must be a string, got ${typeof value}`)
  }
  if (value.length > resourceNameLengthMax) {
    throw new PlatformError(
      'bad_request',
      `${field} is ${value.length} characters long, at most ${resourceNameLengthMax} are allowed`,
    )
  }
  if (value.includes('\0') || !value.isWellFormed()) {
    throw new PlatformError(
      'bad_request',
      `${field} must be valid Unicode without NUL, got ${JSON.stringify(value)}`,
    )
  }
}

export function checkTime(field: string, value: number): number {
  if (!Number.isSafeInteger(value)) {
    throw new PlatformError('bad_request', `${field} must be milliseconds since the epoch, got ${value}`)
  }
  return value
}

export function checkVersion(value: number): number {
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new PlatformError('bad_request', `expectedVersion must be a positive integer, got ${value}`)
  }
  return value
}

/** Whether a resource has `text`, in lower case, in what people call it by. */
export function isCalled({ name, body }: Pick<ResourceRow, 'name' | 'body'>, text: string): boolean {
  const has = (value: unknown) => typeof value === 'string' && value.toLowerCase().includes(text)
  if (has(name)) return true
  const { displayName, labels } = (JSON.parse(body) ?? {}) as { displayName?: unknown; labels?: unknown }
  if (has(displayName)) return true
  return typeof labels === 'object' && labels !== null && Object.entries(labels).flat().some(has)
}

/** @throws bad_request */
export function checkPageQuery(query: PageQuery): { limit: number; sort: SortOrder } {
  checkKey(query)
  const { limit = pageLimitDefault, sort = 'createdAt:desc' } = query
  if (!Number.isInteger(limit) || limit < 1 || limit > pageLimitMax) {
    throw new PlatformError('bad_request', `limit must be an integer from 1 to ${pageLimitMax}, got ${limit}`)
  }
  if (!sortOrders.includes(sort)) {
    throw new PlatformError(
      'bad_request',
      `sort must be one of ${sortOrders.join(', ')}, got ${String(sort)}`,
    )
  }
  if (query.search !== undefined) checkText('search', query.search)
  if (query.anchor === 'end' && (query.cursor || !sort.startsWith('createdAt:'))) {
    throw new PlatformError(
      'bad_request',
      `anchor=end is for lists by createdAt, without a cursor; got ${query.cursor ? 'a cursor' : `sort=${sort}`}`,
    )
  }
  const { offset } = query
  if (offset !== undefined) {
    if (!Number.isInteger(offset) || offset < 0 || offset > pageOffsetMax) {
      throw new PlatformError(
        'bad_request',
        `offset must be an integer from 0 to ${pageOffsetMax}, got ${offset}`,
      )
    }
    if (query.cursor || query.search || query.anchor) {
      throw new PlatformError('bad_request', 'offset is for pages without a cursor, a search and an anchor')
    }
  }
  checkFilters(query)
  return { limit, sort }
}

/** @throws bad_request */
export function checkFilters(query: Pick<PageQuery, 'where' | 'since' | 'until'>): void {
  for (const bound of ['since', 'until'] as const) {
    if (query[bound] !== undefined) checkTime(bound, query[bound])
  }
  const filters = Object.entries(query.where ?? {})
  if (filters.length > pageFiltersMax) {
    throw new PlatformError(
      'bad_request',
      `${filters.length} filters were given, at most ${pageFiltersMax} are allowed`,
    )
  }
  for (const [name, value] of filters) {
    checkText('filter', name)
    for (const one of Array.isArray(value) ? value : [value]) checkText(`filter ${name}`, one)
  }
}
