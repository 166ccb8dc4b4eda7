import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { ImageView } from '../../images/index.ts'
import { pageLimitDefault, type SortOrder } from '../../spec/store.ts'
import { type ListQuery, listQuery, type PagedList } from '../list.ts'

/** From this version on images are listed in pages, without their tags, which have a list of their own. */
export const pagedImagesVersion = '2026-09-22'

export const imagesQuery = listQuery.omit({ anchor: true })
export const tagsQuery = imagesQuery.extend({
  name: z.string().max(200).meta({ description: 'One tag alone' }).optional(),
})

const position = z.tuple([z.string(), z.string()])
type Position = z.output<typeof position>

export function imagePage(views: ImageView[], query: ListQuery): PagedList {
  const found = views.filter(({ metadata }) => metadata.name.startsWith(query.q ?? ''))
  const page = pageOf(found, query, ({ metadata }, by) => [
    by === 'name' ? metadata.name : (metadata.createdAt ?? ''),
    `${metadata.resourceType}/${metadata.name}`,
  ])
  const data = page.data.map(({ metadata, spec: { size, tagCount } }) => ({
    metadata,
    spec: { size, tagCount },
  }))
  return { ...page, data }
}

export function tagPage({ spec }: ImageView, { name, ...query }: z.output<typeof tagsQuery>): PagedList {
  const found = spec.tags.filter(
    (tag) => tag.name.startsWith(query.q ?? '') && tag.name === (name ?? tag.name),
  )
  return pageOf(found, query, (tag, by) => [by === 'name' ? tag.name : tag.createdAt, tag.name])
}

/** Of what is at hand: what follows the position that the cursor names, whatever came or went meanwhile. */
function pageOf<Item extends object>(
  items: Item[],
  { limit = pageLimitDefault, cursor, sort = 'name:asc' }: ListQuery,
  positionOf: (item: Item, by: string) => Position,
): Omit<PagedList, 'data'> & { data: Item[] } {
  const [by = '', direction] = sort.split(':')
  const sign = direction === 'desc' ? -1 : 1
  const ordered = items
    .map((item) => ({ item, at: positionOf(item, by) }))
    .sort((one, other) => sign * compare(one.at, other.at))
  const after = cursor === undefined || cursor === '' ? null : decode(cursor, sort)
  const rest = after === null ? ordered : ordered.filter(({ at }) => sign * compare(at, after) > 0)
  const shown = rest.slice(0, limit)
  const last = shown.at(-1)
  const hasMore = rest.length > shown.length
  return {
    data: shown.map(({ item }) => item),
    meta: { hasMore, nextCursor: hasMore && last ? encode(last.at, sort) : '', total: items.length },
  }
}

function compare(one: Position, other: Position): number {
  if (one[0] !== other[0]) return one[0] < other[0] ? -1 : 1
  return one[1] === other[1] ? 0 : one[1] < other[1] ? -1 : 1
}

function encode(at: Position, sort: SortOrder): string {
  return Buffer.from(JSON.stringify([sort, ...at])).toString('base64url')
}

/** @throws bad_request for what is no cursor of a list in this order */
function decode(cursor: string, sort: SortOrder): Position {
  try {
    const [made, ...at] = JSON.parse(Buffer.from(cursor, 'base64url').toString()) as unknown[]
    if (made === sort) return position.parse(at)
  } catch {}
  throw new PlatformError(
    'bad_request',
    'cursor is not one that this list gave, in this order: start without it',
  )
}
