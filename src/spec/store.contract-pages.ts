import { describe, expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { StoreContext } from './store.contract-context.ts'
import {
  cursorAgeMsMax,
  type PageQuery,
  pageLimitDefault,
  pageLimitMax,
  type SortOrder,
  sortOrders,
} from './store.ts'

/** Lists by page and cursor. */
export function pagesContract(context: StoreContext): void {
  const { add, collect, sandbox } = context

  describe('pages', () => {
    const fill = async (total: number) => {
      const names: string[] = []
      for (let n = 0; n < total; n++) {
        // Some share a millisecond; names run against creation.
        if (n % 3 === 0) context.nowMs += 1
        const name = `n${String(total - n).padStart(4, '0')}`
        names.push(name)
      }
      await Promise.all(
        names.map((name, n) =>
          context.store.create({
            ...sandbox(name),
            body: {},
            createdAt: 1_700_000_000_000 + Math.floor(n / 3),
          }),
        ),
      )
      return names
    }

    test('an empty kind is one empty page', async () => {
      expect(await context.store.page({ kind: 'sandbox', workspace: 'main' })).toEqual({
        data: [],
        nextCursor: '',
        hasMore: false,
        total: 0,
      })
    })

    test('are counted, and begin behind as many as a client leaves out', async () => {
      const start = 1_700_000_000_000
      for (let n = 0; n < 12; n++) {
        const indexes = { agent: n % 2 === 0 ? 'even' : 'odd', status: n < 6 ? 'new' : 'done' }
        const workspace = n === 11 ? 'other' : 'main'
        const key = { ...sandbox(`task-${n}`), kind: 'task', workspace }
        await context.store.create({ ...key, body: { n }, indexes, createdAt: start + n })
      }
      const tasks = { kind: 'task', workspace: 'main' }
      const found = async (query: Partial<PageQuery>) => {
        const { data } = await context.store.page<{ n: number }>({ ...tasks, ...query })
        const all = await context.store.count({ ...tasks, ...query })
        return { numbers: data.map(({ body }) => body.n), all }
      }
      expect(await found({ limit: 3 })).toEqual({ numbers: [10, 9, 8], all: 11 })
      expect(await found({ limit: 3, offset: 9 })).toEqual({ numbers: [1, 0], all: 11 })
      expect(await found({ limit: 3, offset: 30 })).toEqual({ numbers: [], all: 11 })
      const where = { agent: 'even', status: ['done', 'lost'] }
      expect(await found({ where })).toEqual({ numbers: [10, 8, 6], all: 3 })
      expect(await found({ where, limit: 1, offset: 1 })).toEqual({ numbers: [8], all: 3 })
      const times = { since: start + 2, until: start + 4 }
      expect(await found(times)).toEqual({ numbers: [4, 3, 2], all: 3 })
      expect(await found({ ...times, where: { agent: 'odd' } })).toEqual({ numbers: [3], all: 1 })
      expect(await context.store.count({ kind: 'task' })).toBe(12)
      expect(await context.store.count({ kind: 'task', where: { agent: 'odd' } })).toBe(6)
      for (const offset of [-1, 1.5, Number.NaN]) {
        expect(await refusalCodeOf(context.store.page({ ...tasks, offset }))).toBe('bad_request')
      }
      expect(await refusalCodeOf(context.store.page({ ...tasks, offset: 1, anchor: 'end' }))).toBe(
        'bad_request',
      )
      expect(await refusalCodeOf(context.store.count({ ...tasks, since: 0.5 }))).toBe('bad_request')
    })

    test('a cursor is of its query, its times included', async () => {
      await fill(9)
      const query = { kind: 'sandbox', workspace: 'main', limit: 2, since: 1_700_000_000_001 }
      const { nextCursor } = await context.store.page(query)
      expect((await context.store.page({ ...query, cursor: nextCursor })).data).toHaveLength(2)
      const other = context.store.page({ ...query, since: 1_700_000_000_002, cursor: nextCursor })
      expect(await refusalCodeOf(other)).toBe('bad_request')
    })

    test('50 by default, from 1 to 200', async () => {
      await fill(pageLimitMax + 5)
      expect((await context.store.page({ kind: 'sandbox', workspace: 'main' })).data).toHaveLength(
        pageLimitDefault,
      )
      expect(
        (await context.store.page({ kind: 'sandbox', workspace: 'main', limit: pageLimitMax })).data,
      ).toHaveLength(pageLimitMax)
      for (const limit of [0, -1, pageLimitMax + 1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
        expect(await refusalCodeOf(context.store.page({ kind: 'sandbox', limit }))).toBe('bad_request')
      }
      expect(await refusalCodeOf(context.store.page({ kind: 'sandbox', sort: 'name' as SortOrder }))).toBe(
        'bad_request',
      )
    })

    for (const sort of sortOrders) {
      for (const limit of [1, 7, 200]) {
        test(`${sort} by ${limit} gives everything once, in order`, async () => {
          const created = await fill(31)
          const ascending = sort.startsWith('name') ? [...created].sort() : created
          const expected = sort.endsWith(':asc') ? ascending : [...ascending].reverse()
          expect(await collect({ kind: 'sandbox', workspace: 'main', sort, limit })).toEqual(expected)
        })
      }

      test(`${sort} misses and repeats nothing while others are created and removed`, async () => {
        const created = await fill(40)
        const staying = new Set(created.filter((_, n) => n % 2 === 0))
        const leaving = created.filter((_, n) => n % 2 === 1)
        let round = 0
        const seen = await collect({ kind: 'sandbox', workspace: 'main', sort, limit: 3 }, async (page) => {
          round++
          const last = page.at(-1)!.name
          // The very resource the cursor stands on goes, too.
          if (leaving.includes(last)) await context.store.remove(sandbox(last))
          const other = leaving[round % leaving.length]!
          await context.store.remove(sandbox(other))
          await context.store.create({
            ...sandbox(`n0000-${round}`),
            body: {},
            createdAt: 1_600_000_000_000 + round,
          })
          await context.store.create({
            ...sandbox(`n9999-${round}`),
            body: {},
            createdAt: 1_900_000_000_000 + round,
          })
        })
        expect(new Set(seen).size).toBe(seen.length)
        expect([...staying].filter((name) => !seen.includes(name))).toEqual([])
      })
    }

    test('without a workspace gives all workspaces, each name as often as it is there', async () => {
      for (const workspace of ['b', 'a', 'c']) for (const name of ['x', 'y']) await add(name, { workspace })
      for (const sort of sortOrders) {
        const names = await collect({ kind: 'sandbox', sort, limit: 1 })
        expect(names.sort()).toEqual(['x', 'x', 'x', 'y', 'y', 'y'])
      }
      expect((await context.store.page({ kind: 'sandbox', limit: 1 })).total).toBe(6)
      expect((await context.store.page({ kind: 'sandbox', workspace: 'a', limit: 1 })).total).toBe(2)
    })

    test('searches names, display names and labels, in any case, over pages; the total ignores it', async () => {
      await add('alpha', { body: { displayName: 'Größe', labels: { team: 'Blue' } } })
      await add('beta', { body: { labels: { ALPHA: 'x' } }, indexes: { status: 'FAILED' } })
      await add('gamma', { body: { displayName: 7, labels: ['alpha'], other: 'alpha' } })
      // More than are read at once, so that what matches lies behind what does not.
      for (let at = 0; at < 120; at++) await add(`no${at}`, { body: null })
      await add('delta', { body: { displayName: 'the alphabet' } })
      await add('alpha', { workspace: 'other' })
      const matching = (search: string, more: Partial<PageQuery> = {}) =>
        collect({ kind: 'sandbox', workspace: 'main', search, sort: 'name:asc', limit: 1, ...more })
      expect(await matching('alpha')).toEqual(['alpha', 'beta', 'delta', 'gamma'])
      expect(await matching('ALPHA', { sort: 'createdAt:desc', limit: 3 })).toEqual([
        'delta',
        'gamma',
        'beta',
        'alpha',
      ])
      expect(await matching('alpha', { where: { status: 'FAILED' } })).toEqual(['beta'])
      expect(await matching('GRÖSSE')).toEqual([])
      expect(await matching('größ')).toEqual(['alpha'])
      expect(await matching('blue')).toEqual(['alpha'])
      expect(await matching('100%_')).toEqual([])
      expect(await matching('', { limit: 200 })).toHaveLength(124)
      const query: PageQuery = { kind: 'sandbox', workspace: 'main', search: 'alpha', limit: 1 }
      const { total, nextCursor: cursor } = await context.store.page(query)
      expect(total).toBe(124)
      expect(await refusalCodeOf(context.store.page({ ...query, cursor, search: 'beta' }))).toBe(
        'bad_request',
      )
    })

    test('gives the last page at once, in its order, of lists by time', async () => {
      for (const name of ['a', 'b', 'c', 'd', 'e'])
        await add(name, { indexes: { odd: 'ace'.includes(name) ? 'yes' : 'no' } })
      const end = async (more: Partial<PageQuery>) => {
        const page = await context.store.page({ kind: 'sandbox', workspace: 'main', anchor: 'end', ...more })
        expect([page.hasMore, page.nextCursor, page.total]).toEqual([false, '', 5])
        return page.data.map(({ name }) => name)
      }
      expect(await end({ limit: 2 })).toEqual(['b', 'a'])
      expect(await end({ limit: 2, sort: 'createdAt:asc' })).toEqual(['d', 'e'])
      expect(await end({})).toEqual(['e', 'd', 'c', 'b', 'a'])
      expect(await end({ limit: 2, where: { odd: 'yes' } })).toEqual(['c', 'a'])
      expect(await end({ limit: 2, search: 'b' })).toEqual(['b'])
      const query: PageQuery = { kind: 'sandbox', workspace: 'main', limit: 1 }
      const { nextCursor: cursor } = await context.store.page(query)
      for (const wrong of [{ cursor }, { sort: 'name:asc' as SortOrder }])
        expect(await refusalCodeOf(context.store.page({ ...query, anchor: 'end', ...wrong }))).toBe(
          'bad_request',
        )
    })

    test('filters by one value or a list, all filters at once; the total ignores them', async () => {
      await add('a', { indexes: { status: 'DEPLOYED', region: 'x' } })
      await add('b', { indexes: { status: 'FAILED', region: 'x' } })
      await add('c', { indexes: { status: 'TERMINATED', region: 'x' } })
      await add('d', { indexes: { status: 'DEPLOYED', region: 'y' } })
      await add('e')
      await add('f', { workspace: 'other', indexes: { status: 'DEPLOYED', region: 'x' } })
      const matching = (where: PageQuery['where']) =>
        collect({ kind: 'sandbox', workspace: 'main', where, sort: 'name:asc', limit: 1 })
      expect(await matching({ status: 'DEPLOYED' })).toEqual(['a', 'd'])
      expect(await matching({ status: ['DEPLOYED', 'FAILED'] })).toEqual(['a', 'b', 'd'])
      expect(await matching({ status: ['DEPLOYED', 'FAILED'], region: 'x' })).toEqual(['a', 'b'])
      expect(await matching({ status: [] })).toEqual([])
      expect(await matching({ none: 'x' })).toEqual([])
      expect(await matching({})).toEqual(['a', 'b', 'c', 'd', 'e'])
      const page = await context.store.page({
        kind: 'sandbox',
        workspace: 'main',
        where: { status: 'FAILED' },
      })
      expect(page.total).toBe(5)
      expect(page.data).toHaveLength(1)
    })

    test('a cursor is good for its own workspace, filters and sort only, whatever the limit', async () => {
      for (const name of ['a', 'b', 'c', 'd']) await add(name, { indexes: { status: 'x', region: 'r' } })
      const query: PageQuery = {
        kind: 'sandbox',
        workspace: 'main',
        where: { status: ['x', 'y'], region: 'r' },
        limit: 1,
      }
      const { nextCursor: cursor } = await context.store.page(query)
      const others: Partial<PageQuery>[] = [
        { kind: 'preview' },
        { workspace: 'other' },
        { workspace: undefined },
        { where: { status: ['x'], region: 'r' } },
        { where: { status: ['x', 'y'] } },
        { where: undefined },
        { sort: 'createdAt:asc' },
        { sort: 'name:asc' },
      ]
      for (const other of others)
        expect(await refusalCodeOf(context.store.page({ ...query, cursor, ...other }))).toBe('bad_request')
      const same = await context.store.page({
        ...query,
        cursor,
        limit: 2,
        where: { region: 'r', status: ['y', 'x'] },
      })
      expect(same.data.map(({ name }) => name)).toEqual(['c', 'b'])
    })

    test('a cursor dies after 24 hours, and every page gives a fresh one', async () => {
      for (const name of ['a', 'b', 'c', 'd']) await add(name)
      const query: PageQuery = { kind: 'sandbox', workspace: 'main', limit: 1 }
      const first = await context.store.page(query)
      context.nowMs += cursorAgeMsMax
      const second = await context.store.page({ ...query, cursor: first.nextCursor })
      context.nowMs += 1
      expect(await refusalCodeOf(context.store.page({ ...query, cursor: first.nextCursor }))).toBe(
        'bad_request',
      )
      const third = await context.store.page({ ...query, cursor: second.nextCursor })
      expect(third.data.map(({ name }) => name)).toEqual(['b'])
    })

    test('what is not a cursor is a bad request', async () => {
      await add('a')
      await add('b')
      const { nextCursor } = await context.store.page({ kind: 'sandbox', workspace: 'main', limit: 1 })
      const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
      const forged = JSON.parse(
        Buffer.from(nextCursor, 'base64url')
          .toString('utf8')
          .match(/^\[.*\]$/)?.[0] ?? '[]',
      )
      const bad = [
        'x',
        '%%%',
        '0',
        'null',
        nextCursor.slice(0, -4),
        encode(null),
        encode({}),
        encode([]),
        encode([1, 2]),
        'A'.repeat(100_000),
      ]
      if (Array.isArray(forged) && forged.length > 0)
        bad.push(encode([...forged, 1]), encode(forged.map(String)))
      for (const cursor of bad) {
        expect(
          await refusalCodeOf(context.store.page({ kind: 'sandbox', workspace: 'main', limit: 1, cursor })),
        ).toBe('bad_request')
      }
    })
  })
}
