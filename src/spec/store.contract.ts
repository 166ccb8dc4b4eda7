import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { type ErrorCode, PlatformError } from '../errors.ts'
import { type Clock, systemClock } from '../lib/clock.ts'
import {
  batchStepsMax,
  cursorAgeMsMax,
  type PageQuery,
  pageLimitDefault,
  pageLimitMax,
  type Resource,
  type ResourceEvent,
  resourceBodyBytesMax,
  resourceNameLengthMax,
  type SortOrder,
  type Store,
  sortOrders,
  watchBufferMax,
} from './store.ts'

/** What every store driver passes. `open` makes an empty store on the given clock; the suite closes it. */
export function storeContract(name: string, open: (options: { clock: Clock }) => Promise<Store>): void {
  describe(`store contract: ${name}`, () => {
    let store: Store
    let nowMs: number

    beforeEach(async () => {
      nowMs = 1_800_000_000_000
      store = await open({ clock: { ...systemClock, now: () => nowMs } })
    })
    afterEach(async () => {
      await store[Symbol.asyncDispose]()
    })

    const sandbox = (name: string, workspace = 'main') => ({ kind: 'sandbox', workspace, name })
    const add = (
      name: string,
      extra: { workspace?: string; indexes?: Record<string, string>; body?: unknown } = {},
    ) => store.create({ ...sandbox(name, extra.workspace), body: extra.body ?? {}, indexes: extra.indexes })

    describe('single resources', () => {
      test('what was created is read back, with version 1 and both times', async () => {
        const body = { spec: { memory: 4096, list: [1, null, 'x'], deep: { yes: true } } }
        const created = await store.create({ ...sandbox('a'), body, indexes: { status: 'DEPLOYED' } })
        expect(created).toEqual({
          ...sandbox('a'),
          id: created.id,
          version: 1,
          createdAt: nowMs,
          updatedAt: nowMs,
          indexes: { status: 'DEPLOYED' },
          body,
        })
        expect(created.id).not.toBe('')
        expect(await store.get(sandbox('a'))).toEqual(created)
      })

      test('a creation time that was given is kept', async () => {
        const created = await store.create({ ...sandbox('a'), body: {}, createdAt: 12345 })
        expect(created.createdAt).toBe(12345)
        expect((await store.get(sandbox('a')))?.createdAt).toBe(12345)
      })

      test('what is absent reads as null', async () => {
        await add('a')
        expect(await store.get(sandbox('b'))).toBeNull()
        expect(await store.get(sandbox('a', 'other'))).toBeNull()
        expect(await store.get({ kind: 'preview', workspace: 'main', name: 'a' })).toBeNull()
      })

      test('a name is taken once per kind and workspace', async () => {
        await add('a')
        expect(await codeOf(add('a'))).toBe('already_exists')
        await add('a', { workspace: 'other' })
        await store.create({ kind: 'preview', workspace: 'main', name: 'a', body: {} })
        await store.create({ kind: 'user', workspace: '', name: 'a', body: {} })
      })

      test('of many concurrent creates of one name exactly one succeeds', async () => {
        const codes = await Promise.all(
          Array.from({ length: 50 }, (_, n) => codeOf(add('a', { body: { n } }))),
        )
        expect(codes.filter((code) => code === null)).toHaveLength(1)
        expect(codes.filter((code) => code === 'already_exists')).toHaveLength(49)
        expect((await store.page({ kind: 'sandbox', workspace: 'main' })).total).toBe(1)
      })

      test('an update replaces the body, counts the version and keeps id, creation time and absent indexes', async () => {
        const created = await add('a', { indexes: { status: 'DEPLOYING' }, body: { n: 1, gone: true } })
        nowMs += 1000
        const updated = await store.update(sandbox('a'), 1, { body: { n: 2 } })
        expect(updated).toEqual({ ...created, version: 2, updatedAt: nowMs, body: { n: 2 } })
        expect(await store.get(sandbox('a'))).toEqual(updated)
        const indexed = await store.update(sandbox('a'), 2, { body: { n: 3 }, indexes: { owner: 'me' } })
        expect(indexed.indexes).toEqual({ owner: 'me' })
        expect(indexed.version).toBe(3)
      })

      test('an update of another version, or of nothing, changes nothing', async () => {
        await add('a', { body: { n: 1 } })
        expect(await codeOf(store.update(sandbox('a'), 2, { body: { n: 2 } }))).toBe('version_mismatch')
        expect(await codeOf(store.update(sandbox('b'), 1, { body: { n: 2 } }))).toBe('not_found')
        expect((await store.get<{ n: number }>(sandbox('a')))?.body).toEqual({ n: 1 })
        expect(await store.get(sandbox('b'))).toBeNull()
      })

      test('of concurrent updates of one version exactly one succeeds, and counting by retry loses nothing', async () => {
        await add('a', { body: { n: 0 } })
        const increment = async () => {
          for (;;) {
            const read = await store.get<{ n: number }>(sandbox('a'))
            const code = await codeOf(
              store.update(sandbox('a'), read!.version, { body: { n: read!.body.n + 1 } }),
            )
            if (code === null) return
            expect(code).toBe('version_mismatch')
          }
        }
        await Promise.all(Array.from({ length: 16 }, increment))
        const last = await store.get<{ n: number }>(sandbox('a'))
        expect(last?.body.n).toBe(16)
        expect(last?.version).toBe(17)
      })

      test('remove answers whether there was something, and with a version removes only that version', async () => {
        await add('a')
        expect(await codeOf(store.remove(sandbox('a'), 2))).toBe('version_mismatch')
        expect(await store.get(sandbox('a'))).not.toBeNull()
        expect(await store.remove(sandbox('a'), 1)).toBe(true)
        expect(await store.get(sandbox('a'))).toBeNull()
        expect(await store.remove(sandbox('a'))).toBe(false)
        expect(await store.remove(sandbox('a'), 1)).toBe(false)
      })

      test('a name used again is a new resource with another id and version 1', async () => {
        const ids = new Set<string>()
        for (let round = 0; round < 20; round++) {
          const created = await add('a')
          expect(created.version).toBe(1)
          ids.add(created.id)
          await store.update(sandbox('a'), 1, { body: {} })
          await store.remove(sandbox('a'))
        }
        expect(ids.size).toBe(20)
      })

      test('ids sort by creation', async () => {
        const created = await Promise.all(Array.from({ length: 100 }, (_, n) => add(`n${n}`)))
        const ids = created.map(({ id }) => id)
        expect(ids).toEqual([...ids].sort())
      })

      test('every read that begins after a write resolved sees it', async () => {
        for (let round = 0; round < 50; round++) {
          await add(`n${round}`, { indexes: { round: String(round) } })
          expect(await store.get(sandbox(`n${round}`))).not.toBeNull()
          expect(await store.find({ kind: 'sandbox', index: 'round', value: String(round) })).toHaveLength(1)
          expect((await store.page({ kind: 'sandbox', workspace: 'main', limit: 1 })).total).toBe(round + 1)
        }
      })

      test('what is handed in and what is handed out are separate copies', async () => {
        const body = { list: ['a'] }
        const indexes = { status: 'x' }
        const pending = store.create({ ...sandbox('a'), body, indexes })
        body.list.push('changed')
        indexes.status = 'changed'
        const created = await pending
        created.body.list.push('changed')
        const read = await store.get<{ list: string[] }>(sandbox('a'))
        expect(read?.body.list).toEqual(['a'])
        expect(read?.indexes).toEqual({ status: 'x' })
        read?.body.list.push('changed')
        expect((await store.get<{ list: string[] }>(sandbox('a')))?.body.list).toEqual(['a'])
      })
    })

    describe('odd values', () => {
      const names = [
        '',
        ' ',
        '..',
        '../../etc',
        "'; DROP TABLE resources; --",
        '%',
        '_',
        '"',
        '\n',
        'É',
        'e\u0301',
        '日本',
        '😀',
        '__proto__',
        'constructor',
        'a'.repeat(resourceNameLengthMax),
      ]

      test('any text is a name, an index name and a value of its own', async () => {
        await Promise.all(names.map((name) => add(name, { indexes: Object.fromEntries([[name, name]]) })))
        for (const name of names) {
          expect((await store.get(sandbox(name)))?.name).toBe(name)
          const found = await store.find({ kind: 'sandbox', workspace: 'main', index: name, value: name })
          expect(found.map((resource) => resource.name)).toEqual([name])
        }
        expect(await collect({ kind: 'sandbox', workspace: 'main', sort: 'name:asc', limit: 1 })).toEqual(
          [...names].sort(byCodePoint),
        )
      })

      test('random bodies, names and indexes come back as they went in', async () => {
        let round = 0
        await fc.assert(
          fc.asyncProperty(
            fc.jsonValue(),
            fc.string({ unit: 'grapheme', maxLength: 40 }).filter((text) => !text.includes('\0')),
            async (body, value) => {
              const key = sandbox(`${value}-${round++}`)
              await store.create({ ...key, body, indexes: { value } })
              const read = await store.get(key)
              // -0 is 0 in JSON.
              expect(JSON.stringify(read?.body)).toBe(JSON.stringify(body))
              const found = await store.find({ kind: 'sandbox', index: 'value', value, limit: 1000 })
              expect(found.some((resource) => resource.name === key.name)).toBe(true)
            },
          ),
          { numRuns: 60 },
        )
      })

      test('text that cannot be kept as it is, or is too long, is refused', async () => {
        for (const bad of ['a\0b', 'a\ud800', 'a'.repeat(resourceNameLengthMax + 1)]) {
          expect(await codeOf(add(bad))).toBe('bad_request')
          expect(await codeOf(add('a', { workspace: bad }))).toBe('bad_request')
          expect(await codeOf(add('a', { indexes: { x: bad } }))).toBe('bad_request')
          expect(await codeOf(add('a', { indexes: { [bad]: 'x' } }))).toBe('bad_request')
        }
        expect(await codeOf(store.create({ ...sandbox('a'), body: undefined }))).toBe('bad_request')
        expect((await store.page({ kind: 'sandbox', workspace: 'main' })).total).toBe(0)
      })

      test('a large body is kept, one over the limit is refused', async () => {
        const body = { text: 'ü'.repeat(2 * 1024 * 1024) }
        await add('large', { body })
        expect((await store.get<{ text: string }>(sandbox('large')))?.body.text).toBe(body.text)
        expect(await codeOf(add('larger', { body: 'x'.repeat(resourceBodyBytesMax) }))).toBe('body_too_large')
        expect(
          await codeOf(store.update(sandbox('large'), 1, { body: 'ü'.repeat(resourceBodyBytesMax / 2) })),
        ).toBe('body_too_large')
      })
    })

    describe('batch', () => {
      test('applies every step in order and answers each', async () => {
        await add('old', { body: { n: 1 } })
        const answers = await store.batch([
          { op: 'create', input: { ...sandbox('new'), body: { n: 1 } } },
          { op: 'update', key: sandbox('new'), expectedVersion: 1, change: { body: { n: 2 } } },
          { op: 'remove', key: sandbox('old'), expectedVersion: 1 },
          { op: 'create', input: { ...sandbox('old'), body: { n: 9 } } },
          { op: 'remove', key: sandbox('never') },
        ])
        expect(answers[0]).toMatchObject({ name: 'new', version: 1, body: { n: 1 } })
        expect(answers[1]).toMatchObject({ name: 'new', version: 2, body: { n: 2 } })
        expect(answers[2]).toBe(true)
        expect(answers[3]).toMatchObject({ name: 'old', version: 1, body: { n: 9 } })
        expect(answers[4]).toBe(false)
        expect(await store.get(sandbox('new'))).toMatchObject({ version: 2, body: { n: 2 } })
        expect(await store.get(sandbox('old'))).toMatchObject({ version: 1, body: { n: 9 } })
      })

      test('one failing step undoes all of them and says why', async () => {
        await add('taken', { indexes: { status: 'x' } })
        const failing = (last: Parameters<Store['batch']>[0][number]) =>
          codeOf(
            store.batch([
              { op: 'create', input: { ...sandbox('new'), body: {}, indexes: { status: 'x' } } },
              {
                op: 'update',
                key: sandbox('taken'),
                expectedVersion: 1,
                change: { body: { n: 2 }, indexes: {} },
              },
              last,
              { op: 'create', input: { ...sandbox('after'), body: {} } },
            ]),
          )
        expect(await failing({ op: 'create', input: { ...sandbox('taken'), body: {} } })).toBe(
          'already_exists',
        )
        expect(
          await failing({ op: 'update', key: sandbox('gone'), expectedVersion: 1, change: { body: {} } }),
        ).toBe('not_found')
        expect(await failing({ op: 'remove', key: sandbox('taken'), expectedVersion: 1 })).toBe(
          'version_mismatch',
        )
        expect(await collect({ kind: 'sandbox', workspace: 'main' })).toEqual(['taken'])
        expect(await store.get(sandbox('taken'))).toMatchObject({ version: 1, indexes: { status: 'x' } })
        expect(await store.find({ kind: 'sandbox', index: 'status', value: 'x' })).toHaveLength(1)
      })

      test('a failing batch takes nothing else with it', async () => {
        await add('taken')
        const codes = await Promise.all([
          codeOf(add('one')),
          codeOf(
            store.batch([
              { op: 'create', input: { ...sandbox('two'), body: {} } },
              { op: 'create', input: { ...sandbox('taken'), body: {} } },
            ]),
          ),
          codeOf(add('three')),
        ])
        expect(codes).toEqual([null, 'already_exists', null])
        expect(await collect({ kind: 'sandbox', workspace: 'main', sort: 'name:asc' })).toEqual([
          'one',
          'taken',
          'three',
        ])
      })

      test('is bounded, and may be empty', async () => {
        const steps = Array.from(
          { length: batchStepsMax + 1 },
          (_, n) => ({ op: 'remove', key: sandbox(`n${n}`) }) as const,
        )
        expect(await codeOf(store.batch(steps))).toBe('bad_request')
        expect(await store.batch(steps.slice(1))).toHaveLength(batchStepsMax)
        expect(await store.batch([])).toEqual([])
      })
    })

    describe('find', () => {
      test('finds by kind and value, in one workspace or in all, newest first, within the limit', async () => {
        for (const [n, workspace] of ['main', 'other', 'main', 'main'].entries()) {
          nowMs += 10
          await add(`n${n}`, { workspace, indexes: { externalId: 'ext', n: String(n) } })
        }
        await store.create({
          kind: 'preview',
          workspace: 'main',
          name: 'p',
          body: {},
          indexes: { externalId: 'ext' },
        })
        const find = async (query: { workspace?: string; limit?: number; value?: string }) =>
          (await store.find({ kind: 'sandbox', index: 'externalId', value: 'ext', ...query })).map(
            ({ name }) => name,
          )
        expect(await find({})).toEqual(['n3', 'n2', 'n1', 'n0'])
        expect(await find({ workspace: 'main' })).toEqual(['n3', 'n2', 'n0'])
        expect(await find({ workspace: 'main', limit: 2 })).toEqual(['n3', 'n2'])
        expect(await find({ value: 'Ext' })).toEqual([])
        expect(await codeOf(find({ limit: 0 }))).toBe('bad_request')
        expect(await codeOf(find({ limit: 1001 }))).toBe('bad_request')
      })

      test('follows updates and removals', async () => {
        const found = async (value: string) =>
          (await store.find({ kind: 'sandbox', index: 'status', value })).map(({ name }) => name)
        await add('a', { indexes: { status: 'DEPLOYING', owner: 'me' } })
        await store.update(sandbox('a'), 1, { body: {}, indexes: { status: 'DEPLOYED' } })
        expect(await found('DEPLOYING')).toEqual([])
        expect(await found('DEPLOYED')).toEqual(['a'])
        expect(await store.find({ kind: 'sandbox', index: 'owner', value: 'me' })).toEqual([])
        await store.update(sandbox('a'), 2, { body: { n: 1 } })
        expect(await found('DEPLOYED')).toEqual(['a'])
        await store.remove(sandbox('a'))
        expect(await found('DEPLOYED')).toEqual([])
      })
    })

    const collect = async (
      query: PageQuery,
      between?: (page: Resource[]) => Promise<void>,
    ): Promise<string[]> => {
      const names: string[] = []
      let cursor: string | undefined
      // More pages than there can be resources: a cursor that leads nowhere would go round for ever.
      for (let pages = 0; pages < 1000; pages++) {
        const page = await store.page({ ...query, cursor })
        expect(page.hasMore).toBe(page.nextCursor !== '')
        names.push(...page.data.map(({ name }) => name))
        if (!page.hasMore) return names
        cursor = page.nextCursor
        await between?.(page.data)
      }
      throw new Error('the pages do not end')
    }

    describe('pages', () => {
      const fill = async (total: number) => {
        const names: string[] = []
        for (let n = 0; n < total; n++) {
          // Some share a millisecond; names run against creation.
          if (n % 3 === 0) nowMs += 1
          const name = `n${String(total - n).padStart(4, '0')}`
          names.push(name)
        }
        await Promise.all(
          names.map((name, n) =>
            store.create({ ...sandbox(name), body: {}, createdAt: 1_700_000_000_000 + Math.floor(n / 3) }),
          ),
        )
        return names
      }

      test('an empty kind is one empty page', async () => {
        expect(await store.page({ kind: 'sandbox', workspace: 'main' })).toEqual({
          data: [],
          nextCursor: '',
          hasMore: false,
          total: 0,
        })
      })

      test('50 by default, from 1 to 200', async () => {
        await fill(pageLimitMax + 5)
        expect((await store.page({ kind: 'sandbox', workspace: 'main' })).data).toHaveLength(pageLimitDefault)
        expect(
          (await store.page({ kind: 'sandbox', workspace: 'main', limit: pageLimitMax })).data,
        ).toHaveLength(pageLimitMax)
        for (const limit of [0, -1, pageLimitMax + 1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
          expect(await codeOf(store.page({ kind: 'sandbox', limit }))).toBe('bad_request')
        }
        expect(await codeOf(store.page({ kind: 'sandbox', sort: 'name' as SortOrder }))).toBe('bad_request')
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
            if (leaving.includes(last)) await store.remove(sandbox(last))
            const other = leaving[round % leaving.length]!
            await store.remove(sandbox(other))
            await store.create({
              ...sandbox(`n0000-${round}`),
              body: {},
              createdAt: 1_600_000_000_000 + round,
            })
            await store.create({
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
        expect((await store.page({ kind: 'sandbox', limit: 1 })).total).toBe(6)
        expect((await store.page({ kind: 'sandbox', workspace: 'a', limit: 1 })).total).toBe(2)
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
        const page = await store.page({ kind: 'sandbox', workspace: 'main', where: { status: 'FAILED' } })
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
        const { nextCursor: cursor } = await store.page(query)
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
          expect(await codeOf(store.page({ ...query, cursor, ...other }))).toBe('bad_request')
        const same = await store.page({
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
        const first = await store.page(query)
        nowMs += cursorAgeMsMax
        const second = await store.page({ ...query, cursor: first.nextCursor })
        nowMs += 1
        expect(await codeOf(store.page({ ...query, cursor: first.nextCursor }))).toBe('bad_request')
        const third = await store.page({ ...query, cursor: second.nextCursor })
        expect(third.data.map(({ name }) => name)).toEqual(['b'])
      })

      test('what is not a cursor is a bad request', async () => {
        await add('a')
        await add('b')
        const { nextCursor } = await store.page({ kind: 'sandbox', workspace: 'main', limit: 1 })
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
          expect(await codeOf(store.page({ kind: 'sandbox', workspace: 'main', limit: 1, cursor }))).toBe(
            'bad_request',
          )
        }
      })
    })

    describe('watch', () => {
      const take = async (events: AsyncIterator<ResourceEvent>, amount: number) => {
        const taken: ResourceEvent[] = []
        for (let n = 0; n < amount; n++) {
          const { value, done } = await events.next()
          if (done) break
          taken.push(value)
        }
        return taken
      }
      const iterate = (filter: Parameters<Store['watch']>[0], signal: AbortSignal) =>
        store.watch(filter, signal)[Symbol.asyncIterator]()

      test('gives what happens after the call, in order, also before anybody reads', async () => {
        const abort = new AbortController()
        await add('before')
        const events = iterate({}, abort.signal)
        const created = await add('a', { body: { n: 1 } })
        const updated = await store.update(sandbox('a'), 1, { body: { n: 2 } })
        await codeOf(store.update(sandbox('a'), 1, { body: { n: 3 } }))
        await store.remove(sandbox('a'))
        await store.remove(sandbox('a'))
        await store.batch([
          { op: 'create', input: { ...sandbox('b'), body: {} } },
          { op: 'remove', key: sandbox('before') },
        ])
        const taken = await take(events, 5)
        expect(taken.slice(0, 3)).toEqual([
          { type: 'created', resource: created },
          { type: 'updated', resource: updated },
          { type: 'removed', key: sandbox('a'), id: created.id },
        ])
        expect(taken[3]).toMatchObject({ type: 'created', resource: { name: 'b' } })
        expect(taken[4]).toMatchObject({ type: 'removed', key: sandbox('before') })
        abort.abort()
      })

      test('an undone batch is not heard of', async () => {
        const abort = new AbortController()
        const events = iterate({}, abort.signal)
        await codeOf(
          store.batch([
            { op: 'create', input: { ...sandbox('a'), body: {} } },
            { op: 'update', key: sandbox('b'), expectedVersion: 1, change: { body: {} } },
          ]),
        )
        await add('c')
        expect(await take(events, 1)).toMatchObject([{ resource: { name: 'c' } }])
        abort.abort()
      })

      test('a change is readable when it is heard of, and each watcher owns its copy', async () => {
        const abort = new AbortController()
        const watchers = [iterate({}, abort.signal), iterate({}, abort.signal)]
        const heard = watchers.map(async (events) => {
          const [event] = await take(events, 1)
          if (event?.type !== 'created') throw new Error('expected a creation')
          expect((await store.get(sandbox('a')))?.version).toBe(1)
          return event.resource
        })
        await add('a', { body: { list: [] } })
        const [left, right] = await Promise.all(heard)
        expect(left).toEqual(right!)
        expect(left).not.toBe(right)
        expect(left?.body).not.toBe(right?.body)
        abort.abort()
      })

      test('only of the kind and workspace asked for', async () => {
        const abort = new AbortController()
        const events = iterate({ kind: 'sandbox', workspace: 'main' }, abort.signal)
        await add('no', { workspace: 'other' })
        await store.create({ kind: 'preview', workspace: 'main', name: 'no', body: {} })
        await store.remove(sandbox('no', 'other'))
        await add('yes')
        expect(await take(events, 1)).toMatchObject([{ type: 'created', resource: { name: 'yes' } }])
        abort.abort()
      })

      test('ends when aborted: waiting, idle, before the call, and by leaving the loop', async () => {
        const abort = new AbortController()
        const waiting = iterate({}, abort.signal)
        const next = waiting.next()
        const idle = iterate({}, abort.signal)
        await add('a')
        expect((await next).done).toBe(false)
        const last = waiting.next()
        abort.abort()
        expect((await last).done).toBe(true)
        expect((await waiting.next()).done).toBe(true)
        expect((await idle.next()).done).toBe(true)
        expect((await iterate({}, abort.signal).next()).done).toBe(true)

        const other = new AbortController()
        const events = store.watch({}, other.signal)
        await add('b')
        for await (const event of events) {
          expect(event.type).toBe('created')
          break
        }
        expect((await events[Symbol.asyncIterator]().next()).done).toBe(true)
      })

      test('a consumer too far behind is told once, and then goes on with what is new', async () => {
        const abort = new AbortController()
        const slow = iterate({}, abort.signal)
        const fast = iterate({}, abort.signal)
        await add('a')
        const writeOver = async () => {
          for (let written = 0; written <= watchBufferMax; ) {
            const read = await store.get(sandbox('a'))
            const steps = Array.from(
              { length: 512 },
              (_, n) =>
                ({
                  op: 'update',
                  key: sandbox('a'),
                  expectedVersion: read!.version + n,
                  change: { body: { n } },
                }) as const,
            )
            await store.batch(steps)
            written += steps.length
            await take(fast, steps.length)
          }
        }
        await take(fast, 1)
        await writeOver()
        await add('b')
        expect(await take(slow, 1)).toEqual([{ type: 'lost' }])
        const after = await take(slow, 1)
        expect(after[0]?.type).not.toBe('lost')
        let last: ResourceEvent | undefined = after[0]
        while (!(last?.type === 'created' && last.resource.name === 'b')) last = (await take(slow, 1))[0]
        expect(await take(fast, 1)).toMatchObject([{ type: 'created', resource: { name: 'b' } }])
        abort.abort()
      })
    })

    describe('closing', () => {
      test('writes what was submitted, ends watchers, and refuses what comes after', async () => {
        const events = store.watch({}, new AbortController().signal)[Symbol.asyncIterator]()
        const pending = Array.from({ length: 100 }, (_, n) => codeOf(add(`n${n}`)))
        const closing = store[Symbol.asyncDispose]()
        expect(new Set(await Promise.all(pending))).toEqual(new Set([null]))
        await closing
        await store[Symbol.asyncDispose]()
        while (!(await events.next()).done);
        expect(await codeOf(add('late'))).toBe('unavailable')
        expect(await codeOf(store.get(sandbox('n1')))).toBe('unavailable')
        expect(await codeOf(store.page({ kind: 'sandbox' }))).toBe('unavailable')
      })
    })
  })
}

/** Null when it succeeded. */
async function codeOf(work: Promise<unknown>): Promise<ErrorCode | null> {
  try {
    await work
    return null
  } catch (error) {
    if (PlatformError.is(error)) return error.code
    throw error
  }
}

function byCodePoint(left: string, right: string): number {
  return Buffer.compare(Buffer.from(left), Buffer.from(right))
}
