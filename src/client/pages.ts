import type { Transport } from './transport.ts'

interface Listing<Item> {
  data: Item[]
  meta?: { nextCursor?: string; hasMore?: boolean; total?: number }
}

const pagesMax = 10_000
const pageLimit = 200

/** Both list shapes: pages with a cursor, and the bare array of those that have none. */
export async function* pages<Item>(transport: Transport, path: string): AsyncIterable<Item> {
  let cursor = ''
  for (let page = 0; page < pagesMax; page++) {
    const query = new URLSearchParams({ limit: String(pageLimit), ...(cursor ? { cursor } : {}) })
    const answer = await transport.json<Listing<Item> | Item[]>('GET', `${path}?${query}`)
    if (Array.isArray(answer)) {
      yield* answer
      return
    }
    yield* answer.data
    const next = answer.meta?.nextCursor ?? ''
    if (!next || next === cursor) return
    cursor = next
  }
}
