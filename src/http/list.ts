import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import {
  type Page,
  type PageAsked,
  pageLimitMax,
  type Resource,
  type SortOrder,
  sortOrders,
} from '../spec/store.ts'

/** Without a `Blaxel-Version` header a client gets the first one. */
export const apiVersionDefault = '2026-04-16'
/** From this version on, lists are pages; before it, bare arrays. */
export const pagedListsVersion = '2026-04-28'
/** How many pages a bare array without a limit of its own is collected from. */
const barePagesMax = 50
const cursorCharactersMax = 2048
const searchCharactersMin = 2
const searchCharactersMax = 200

const limitRange = `a whole number from 1 to ${pageLimitMax}`

/**
 * Query parameters that every list takes; extend it with the list's own filters. A larger limit is refused instead of
 * being made smaller, since a client that counts on what it asked for would take the page for everything. No client of
 * the contract asks for more: the SDK's `autoPagingToArray({ limit })` counts entries of its own and is not sent.
 */
export const listQuery = z.object({
  limit: z
    .string()
    .transform((text, context) => {
      const limit = /^\d{1,9}$/.test(text) ? Number(text) : 0
      if (limit >= 1 && limit <= pageLimitMax) return limit
      context.issues.push({ code: 'custom', message: `must be ${limitRange}`, input: text })
      return z.NEVER
    })
    .meta({ type: 'integer', minimum: 1, maximum: pageLimitMax })
    .optional(),
  cursor: z.string().max(cursorCharactersMax).optional(),
  sort: z.enum(sortOrders).optional(),
  q: z
    .string()
    .max(searchCharactersMax)
    .meta({
      description: `Text in the name, the display name or a label, in any case; shorter than ${searchCharactersMin} characters it filters nothing`,
    })
    .optional(),
  anchor: z.enum(['end']).meta({ description: 'The last page, of a list by createdAt' }).optional(),
})

export type ListQuery = z.output<typeof listQuery>

interface ListContext {
  readonly apiVersion: string
  readonly query: ListQuery
}

/** Reads one page; `listAnswer` calls it again where a client expects everything in one array. */
export type PageReader<Body> = (query: PageAsked) => Promise<Page<Body>>

/** What `listAnswer` makes, for /v0/openapi.json. */
export function listSchema<Item extends z.ZodType>(item: Item) {
  return z.union([pageSchema(item), z.array(item)]).meta({
    description: `A page from Blaxel-Version ${pagedListsVersion} on; before it, and without the header, a bare array`,
  })
}

export function pageSchema<Item extends z.ZodType>(item: Item) {
  const meta = z.object({ hasMore: z.boolean(), nextCursor: z.string(), total: z.number() })
  return z.object({ data: z.array(item), meta })
}

export interface PagedList {
  data: object[]
  meta: { hasMore: boolean; nextCursor: string; total: number }
}

/**
 * A list in the shape of the client's version: `{ data, meta }`, or before 2026-04-28 a bare array.
 * Given a reader instead of a page, a bare array is complete when the client asked for no limit and no cursor.
 */
export async function listAnswer<Body>(
  context: ListContext,
  source: Page<Body> | PageReader<Body>,
  toBody: (resource: Resource<Body>) => object,
): Promise<PagedList | object[]> {
  const paged = context.apiVersion >= pagedListsVersion
  const { limit, cursor, sort, q = '', anchor } = context.query
  if (typeof source === 'function' && !paged && limit === undefined && cursor === undefined) {
    return collect(source, sort, toBody)
  }
  const text = q.trim()
  // Both are of the version that has pages.
  const more = paged ? { anchor, ...(text.length < searchCharactersMin ? {} : { search: text }) } : {}
  const page = typeof source === 'function' ? await source({ limit, cursor, sort, ...more }) : source
  const data = page.data.map(toBody)
  if (!paged) return data
  const { hasMore, nextCursor, total } = page
  return { data, meta: { hasMore, nextCursor, total } }
}

async function collect<Body>(
  read: PageReader<Body>,
  sort: SortOrder | undefined,
  toBody: (resource: Resource<Body>) => object,
): Promise<object[]> {
  const bodies: object[] = []
  let cursor: string | undefined
  for (let pages = 0; pages < barePagesMax; pages++) {
    const page = await read({ limit: pageLimitMax, cursor, sort })
    for (const resource of page.data) bodies.push(toBody(resource))
    if (!page.hasMore) return bodies
    cursor = page.nextCursor
  }
  throw new PlatformError(
    'bad_request',
    `More than ${barePagesMax * pageLimitMax} entries: ask for pages with limit, cursor and Blaxel-Version ${pagedListsVersion}`,
  )
}

/** @throws bad_request for what is not a version of the API */
export function parseApiVersion(header: string | null): string {
  if (header === null || header === '') return apiVersionDefault
  if (header === pagedListsVersion || header === apiVersionDefault) return header
  const isDate = /^\d{4}-\d{2}-\d{2}$/.test(header) && !Number.isNaN(Date.parse(header))
  if (!isDate || header < apiVersionDefault) {
    throw new PlatformError(
      'bad_request',
      `Blaxel-Version: "${header.slice(0, 40)}" is not a version: a date such as ${pagedListsVersion}, from ${apiVersionDefault} on`,
    )
  }
  return header
}
