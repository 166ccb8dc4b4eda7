import { describe, expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { StoreContext } from './store.contract-context.ts'
import { batchStepsMax, type Store } from './store.ts'

/** Several at once, finding by index, and the end. */
export function batchesContract(context: StoreContext): void {
  const { add, collect, sandbox } = context

  describe('batch', () => {
    test('applies every step in order and answers each', async () => {
      await add('old', { body: { n: 1 } })
      const answers = await context.store.batch([
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
      expect(await context.store.get(sandbox('new'))).toMatchObject({ version: 2, body: { n: 2 } })
      expect(await context.store.get(sandbox('old'))).toMatchObject({ version: 1, body: { n: 9 } })
    })

    test('one failing step undoes all of them and says why', async () => {
      await add('taken', { indexes: { status: 'x' } })
      const failing = (last: Parameters<Store['batch']>[0][number]) =>
        refusalCodeOf(
          context.store.batch([
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
      expect(await failing({ op: 'create', input: { ...sandbox('taken'), body: {} } })).toBe('already_exists')
      expect(
        await failing({ op: 'update', key: sandbox('gone'), expectedVersion: 1, change: { body: {} } }),
      ).toBe('not_found')
      expect(await failing({ op: 'remove', key: sandbox('taken'), expectedVersion: 1 })).toBe(
        'version_mismatch',
      )
      expect(await collect({ kind: 'sandbox', workspace: 'main' })).toEqual(['taken'])
      expect(await context.store.get(sandbox('taken'))).toMatchObject({
        version: 1,
        indexes: { status: 'x' },
      })
      expect(await context.store.find({ kind: 'sandbox', index: 'status', value: 'x' })).toHaveLength(1)
    })

    test('a failing batch takes nothing else with it', async () => {
      await add('taken')
      const codes = await Promise.all([
        refusalCodeOf(add('one')),
        refusalCodeOf(
          context.store.batch([
            { op: 'create', input: { ...sandbox('two'), body: {} } },
            { op: 'create', input: { ...sandbox('taken'), body: {} } },
          ]),
        ),
        refusalCodeOf(add('three')),
      ])
      expect(codes).toEqual([null, 'already_exists', null])
      expect(await collect({ kind: 'sandbox', workspace: 'main', sort: 'name:asc' })).toEqual([
        'one',
        'taken',
        'three',
      ])
    })

    test('can require that a resource is there, or that a workspace has none of a kind', async () => {
      await add('here')
      await add('elsewhere', { workspace: 'other' })
      const refused = (step: Parameters<Store['batch']>[0][number]) =>
        refusalCodeOf(context.store.batch([{ op: 'create', input: { ...sandbox('new'), body: {} } }, step]))
      expect(await refused({ op: 'require', key: sandbox('gone') })).toBe('not_found')
      expect(await refused({ op: 'requireNone', kind: 'sandbox', workspace: 'other' })).toBe('conflict')
      // What the batch itself did counts.
      expect(await refused({ op: 'requireNone', kind: 'sandbox', workspace: 'main' })).toBe('conflict')
      expect(await context.store.get(sandbox('new'))).toBeNull()
      const events = context.store.watch({}, new AbortController().signal)[Symbol.asyncIterator]()
      const answers = await context.store.batch([
        { op: 'require', key: sandbox('here') },
        { op: 'requireNone', kind: 'preview', workspace: 'main' },
        { op: 'remove', key: sandbox('here') },
        { op: 'requireNone', kind: 'sandbox', workspace: 'main' },
      ])
      expect(answers).toEqual([true, true, true, true])
      expect((await events.next()).value).toMatchObject({ type: 'removed', key: sandbox('here') })
    })

    test('is bounded, and may be empty', async () => {
      const steps = Array.from(
        { length: batchStepsMax + 1 },
        (_, n) => ({ op: 'remove', key: sandbox(`n${n}`) }) as const,
      )
      expect(await refusalCodeOf(context.store.batch(steps))).toBe('bad_request')
      expect(await context.store.batch(steps.slice(1))).toHaveLength(batchStepsMax)
      expect(await context.store.batch([])).toEqual([])
    })
  })

  describe('find', () => {
    test('finds by kind and value, in one workspace or in all, newest first, within the limit', async () => {
      for (const [n, workspace] of ['main', 'other', 'main', 'main'].entries()) {
        context.nowMs += 10
        await add(`n${n}`, { workspace, indexes: { externalId: 'ext', n: String(n) } })
      }
      await context.store.create({
        kind: 'preview',
        workspace: 'main',
        name: 'p',
        body: {},
        indexes: { externalId: 'ext' },
      })
      const find = async (query: { workspace?: string; limit?: number; value?: string }) =>
        (await context.store.find({ kind: 'sandbox', index: 'externalId', value: 'ext', ...query })).map(
          ({ name }) => name,
        )
      expect(await find({})).toEqual(['n3', 'n2', 'n1', 'n0'])
      expect(await find({ workspace: 'main' })).toEqual(['n3', 'n2', 'n0'])
      expect(await find({ workspace: 'main', limit: 2 })).toEqual(['n3', 'n2'])
      expect(await find({ value: 'Ext' })).toEqual([])
      expect(await refusalCodeOf(find({ limit: 0 }))).toBe('bad_request')
      expect(await refusalCodeOf(find({ limit: 1001 }))).toBe('bad_request')
    })

    test('follows updates and removals', async () => {
      const found = async (value: string) =>
        (await context.store.find({ kind: 'sandbox', index: 'status', value })).map(({ name }) => name)
      await add('a', { indexes: { status: 'DEPLOYING', owner: 'me' } })
      await context.store.update(sandbox('a'), 1, { body: {}, indexes: { status: 'DEPLOYED' } })
      expect(await found('DEPLOYING')).toEqual([])
      expect(await found('DEPLOYED')).toEqual(['a'])
      expect(await context.store.find({ kind: 'sandbox', index: 'owner', value: 'me' })).toEqual([])
      await context.store.update(sandbox('a'), 2, { body: { n: 1 } })
      expect(await found('DEPLOYED')).toEqual(['a'])
      await context.store.remove(sandbox('a'))
      expect(await found('DEPLOYED')).toEqual([])
    })
  })

  describe('closing', () => {
    test('writes what was submitted, ends watchers, and refuses what comes after', async () => {
      const events = context.store.watch({}, new AbortController().signal)[Symbol.asyncIterator]()
      const pending = Array.from({ length: 100 }, (_, n) => refusalCodeOf(add(`n${n}`)))
      const closing = context.store[Symbol.asyncDispose]()
      expect(new Set(await Promise.all(pending))).toEqual(new Set([null]))
      await closing
      await context.store[Symbol.asyncDispose]()
      while (!(await events.next()).done);
      expect(await refusalCodeOf(add('late'))).toBe('unavailable')
      expect(await refusalCodeOf(context.store.get(sandbox('n1')))).toBe('unavailable')
      expect(await refusalCodeOf(context.store.page({ kind: 'sandbox' }))).toBe('unavailable')
    })
  })
}
