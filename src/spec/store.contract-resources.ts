import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import { byCodePoint, type StoreContext } from './store.contract-context.ts'
import { resourceBodyBytesMax, resourceNameLengthMax } from './store.ts'

/** One resource at a time. */
export function resourcesContract(context: StoreContext): void {
  const { add, collect, sandbox } = context

  describe('single resources', () => {
    test('what was created is read back, with version 1 and both times', async () => {
      const body = { spec: { memory: 4096, list: [1, null, 'x'], deep: { yes: true } } }
      const created = await context.store.create({ ...sandbox('a'), body, indexes: { status: 'DEPLOYED' } })
      expect(created).toEqual({
        ...sandbox('a'),
        id: created.id,
        version: 1,
        createdAt: context.nowMs,
        updatedAt: context.nowMs,
        indexes: { status: 'DEPLOYED' },
        body,
      })
      expect(created.id).not.toBe('')
      expect(await context.store.get(sandbox('a'))).toEqual(created)
    })

    test('a creation time that was given is kept', async () => {
      const created = await context.store.create({ ...sandbox('a'), body: {}, createdAt: 12345 })
      expect(created.createdAt).toBe(12345)
      expect((await context.store.get(sandbox('a')))?.createdAt).toBe(12345)
    })

    test('what is absent reads as null', async () => {
      await add('a')
      expect(await context.store.get(sandbox('b'))).toBeNull()
      expect(await context.store.get(sandbox('a', 'other'))).toBeNull()
      expect(await context.store.get({ kind: 'preview', workspace: 'main', name: 'a' })).toBeNull()
    })

    test('a name is taken once per kind and workspace', async () => {
      await add('a')
      expect(await refusalCodeOf(add('a'))).toBe('already_exists')
      await add('a', { workspace: 'other' })
      await context.store.create({ kind: 'preview', workspace: 'main', name: 'a', body: {} })
      await context.store.create({ kind: 'user', workspace: '', name: 'a', body: {} })
    })

    test('of many concurrent creates of one name exactly one succeeds', async () => {
      const codes = await Promise.all(
        Array.from({ length: 50 }, (_, n) => refusalCodeOf(add('a', { body: { n } }))),
      )
      expect(codes.filter((code) => code === null)).toHaveLength(1)
      expect(codes.filter((code) => code === 'already_exists')).toHaveLength(49)
      expect((await context.store.page({ kind: 'sandbox', workspace: 'main' })).total).toBe(1)
    })

    test('an update replaces the body, counts the version and keeps id, creation time and absent indexes', async () => {
      const created = await add('a', { indexes: { status: 'DEPLOYING' }, body: { n: 1, gone: true } })
      context.nowMs += 1000
      const updated = await context.store.update(sandbox('a'), 1, { body: { n: 2 } })
      expect(updated).toEqual({ ...created, version: 2, updatedAt: context.nowMs, body: { n: 2 } })
      expect(await context.store.get(sandbox('a'))).toEqual(updated)
      const indexed = await context.store.update(sandbox('a'), 2, {
        body: { n: 3 },
        indexes: { owner: 'me' },
      })
      expect(indexed.indexes).toEqual({ owner: 'me' })
      expect(indexed.version).toBe(3)
    })

    test('an update of another version, or of nothing, changes nothing', async () => {
      await add('a', { body: { n: 1 } })
      expect(await refusalCodeOf(context.store.update(sandbox('a'), 2, { body: { n: 2 } }))).toBe(
        'version_mismatch',
      )
      expect(await refusalCodeOf(context.store.update(sandbox('b'), 1, { body: { n: 2 } }))).toBe('not_found')
      expect((await context.store.get<{ n: number }>(sandbox('a')))?.body).toEqual({ n: 1 })
      expect(await context.store.get(sandbox('b'))).toBeNull()
    })

    test('of concurrent updates of one version exactly one succeeds, and counting by retry loses nothing', async () => {
      await add('a', { body: { n: 0 } })
      const increment = async () => {
        for (;;) {
          const read = await context.store.get<{ n: number }>(sandbox('a'))
          const code = await refusalCodeOf(
            context.store.update(sandbox('a'), read!.version, { body: { n: read!.body.n + 1 } }),
          )
          if (code === null) return
          expect(code).toBe('version_mismatch')
        }
      }
      await Promise.all(Array.from({ length: 16 }, increment))
      const last = await context.store.get<{ n: number }>(sandbox('a'))
      expect(last?.body.n).toBe(16)
      expect(last?.version).toBe(17)
    })

    test('remove answers whether there was something, and with a version removes only that version', async () => {
      await add('a')
      expect(await refusalCodeOf(context.store.remove(sandbox('a'), 2))).toBe('version_mismatch')
      expect(await context.store.get(sandbox('a'))).not.toBeNull()
      expect(await context.store.remove(sandbox('a'), 1)).toBe(true)
      expect(await context.store.get(sandbox('a'))).toBeNull()
      expect(await context.store.remove(sandbox('a'))).toBe(false)
      expect(await context.store.remove(sandbox('a'), 1)).toBe(false)
    })

    test('a name used again is a new resource with another id and version 1', async () => {
      const ids = new Set<string>()
      for (let round = 0; round < 20; round++) {
        const created = await add('a')
        expect(created.version).toBe(1)
        ids.add(created.id)
        await context.store.update(sandbox('a'), 1, { body: {} })
        await context.store.remove(sandbox('a'))
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
        expect(await context.store.get(sandbox(`n${round}`))).not.toBeNull()
        expect(
          await context.store.find({ kind: 'sandbox', index: 'round', value: String(round) }),
        ).toHaveLength(1)
        expect((await context.store.page({ kind: 'sandbox', workspace: 'main', limit: 1 })).total).toBe(
          round + 1,
        )
      }
    })

    test('what is handed in and what is handed out are separate copies', async () => {
      const body = { list: ['a'] }
      const indexes = { status: 'x' }
      const pending = context.store.create({ ...sandbox('a'), body, indexes })
      body.list.push('changed')
      indexes.status = 'changed'
      const created = await pending
      created.body.list.push('changed')
      const read = await context.store.get<{ list: string[] }>(sandbox('a'))
      expect(read?.body.list).toEqual(['a'])
      expect(read?.indexes).toEqual({ status: 'x' })
      read?.body.list.push('changed')
      expect((await context.store.get<{ list: string[] }>(sandbox('a')))?.body.list).toEqual(['a'])
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
        expect((await context.store.get(sandbox(name)))?.name).toBe(name)
        const found = await context.store.find({
          kind: 'sandbox',
          workspace: 'main',
          index: name,
          value: name,
        })
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
            await context.store.create({ ...key, body, indexes: { value } })
            const read = await context.store.get(key)
            // -0 is 0 in JSON.
            expect(JSON.stringify(read?.body)).toBe(JSON.stringify(body))
            const found = await context.store.find({ kind: 'sandbox', index: 'value', value, limit: 1000 })
            expect(found.some((resource) => resource.name === key.name)).toBe(true)
          },
        ),
        { numRuns: 60 },
      )
    })

    test('text that cannot be kept as it is, or is too long, is refused', async () => {
      for (const bad of ['a\0b', 'a\ud800', 'a'.repeat(resourceNameLengthMax + 1)]) {
        expect(await refusalCodeOf(add(bad))).toBe('bad_request')
        expect(await refusalCodeOf(add('a', { workspace: bad }))).toBe('bad_request')
        expect(await refusalCodeOf(add('a', { indexes: { x: bad } }))).toBe('bad_request')
        expect(await refusalCodeOf(add('a', { indexes: { [bad]: 'x' } }))).toBe('bad_request')
      }
      expect(await refusalCodeOf(context.store.create({ ...sandbox('a'), body: undefined }))).toBe(
        'bad_request',
      )
      expect((await context.store.page({ kind: 'sandbox', workspace: 'main' })).total).toBe(0)
    })

    test('a large body is kept, one over the limit is refused', async () => {
      const body = { text: 'ü'.repeat(2 * 1024 * 1024) }
      await add('large', { body })
      expect((await context.store.get<{ text: string }>(sandbox('large')))?.body.text).toBe(body.text)
      expect(await refusalCodeOf(add('larger', { body: 'x'.repeat(resourceBodyBytesMax) }))).toBe(
        'body_too_large',
      )
      expect(
        await refusalCodeOf(
          context.store.update(sandbox('large'), 1, { body: 'ü'.repeat(resourceBodyBytesMax / 2) }),
        ),
      ).toBe('body_too_large')
    })
  })
}
