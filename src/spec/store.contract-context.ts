import { expect } from 'bun:test'
import type { PageQuery, Resource, ResourceKey, Store } from './store.ts'

/** What the parts of the store's contract share: the store under test, its clock, and short ways to say things. */
export interface StoreContext {
  /** A new one for every test. */
  store: Store
  /** The store's clock, to be turned. */
  nowMs: number
  sandbox(name: string, workspace?: string): ResourceKey
  add(name: string, extra?: Extra): Promise<Resource<unknown>>
  /** The names on all pages, one after the other. */
  collect(query: PageQuery, between?: (page: Resource[]) => Promise<void>): Promise<string[]>
}

interface Extra {
  workspace?: string
  indexes?: Record<string, string>
  body?: unknown
}

export function storeContext(): StoreContext {
  const sandbox = (name: string, workspace = 'main') => ({ kind: 'sandbox', workspace, name })
  const context = {
    nowMs: 0,
    sandbox,
    add: (name: string, extra: Extra = {}) =>
      context.store.create({
        ...sandbox(name, extra.workspace),
        body: extra.body ?? {},
        indexes: extra.indexes,
      }),
    async collect(query: PageQuery, between?: (page: Resource[]) => Promise<void>): Promise<string[]> {
      const names: string[] = []
      let cursor: string | undefined
      // More pages than there can be resources: a cursor that leads nowhere would go round for ever.
      for (let pages = 0; pages < 1000; pages++) {
        const page = await context.store.page({ ...query, cursor })
        expect(page.hasMore).toBe(page.nextCursor !== '')
        names.push(...page.data.map(({ name }) => name))
        if (!page.hasMore) return names
        cursor = page.nextCursor
        await between?.(page.data)
      }
      throw new Error('the pages do not end')
    },
  } as StoreContext
  return context
}

export function byCodePoint(left: string, right: string): number {
  return Buffer.compare(Buffer.from(left), Buffer.from(right))
}
