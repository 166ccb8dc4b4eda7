import { expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { QueueContext } from './queue.contract-context.ts'

/** How work changes and ends: once, whoever says so. */
export function endsContract(context: QueueContext): void {
  test('each claim has a larger token, and a stale one changes nothing', async () => {
    await context.add('a')
    const [first] = await context.queue.claim('agent', 1)
    const again = await context.queue.change({
      id: 'a',
      expect: { token: first!.token },
      state: 'waiting',
      runAt: context.nowMs,
    })
    expect(again?.work).toMatchObject({ state: 'waiting', until: null })
    const [second] = await context.queue.claim('agent', 1)
    expect(second!.token).toBeGreaterThan(first!.token)
    expect(second!.attempts).toBe(2)
    const stale = { id: 'a', expect: { token: first!.token }, state: 'failed', result: new Uint8Array([1]) }
    expect(await context.queue.change(stale)).toBeNull()
    expect(context.queue.get('a')).toMatchObject({ state: 'running', version: second!.version })
    const ended = await context.queue.change({
      id: 'a',
      expect: { token: second!.token },
      state: 'succeeded',
      result: new Uint8Array([2]),
    })
    expect(ended?.work).toMatchObject({ state: 'succeeded', resultBytes: 1, endedAt: context.nowMs })
    expect(context.queue.result('a')).toEqual(new Uint8Array([2]))
  })

  test('of two that say how it ended the first is believed', async () => {
    await context.add('a')
    await context.claim(1)
    const answers = await Promise.all(
      ['succeeded', 'failed'].map((state) =>
        context.queue.change({ id: 'a', expect: { states: ['running'] }, state }),
      ),
    )
    expect(answers.filter((answer) => answer !== null)).toHaveLength(1)
    expect(context.queue.get('a')?.state).toBe('succeeded')
  })

  test('what ended stays so', async () => {
    await context.add('a')
    await context.end('a')
    expect(await context.queue.change({ id: 'a', expect: {}, state: 'waiting' })).toBeNull()
    expect(await context.claim(10)).toEqual([])
    expect(context.queue.get('a')?.state).toBe('succeeded')
  })

  test('a change expects the version that was read', async () => {
    const { version } = await context.add('a')
    const set = (body: unknown) => context.queue.change({ id: 'a', expect: { version }, body })
    expect((await set({ by: 'one' }))?.work.body).toEqual({ by: 'one' })
    expect(await set({ by: 'two' })).toBeNull()
    expect(context.queue.get('a')?.body).toEqual({ by: 'one' })
  })

  test('there is no work to change that does not exist', async () => {
    expect(await context.queue.change({ id: 'none', expect: {}, state: 'succeeded' })).toBeNull()
  })

  test('what follows an end is made with it, or neither is', async () => {
    await context.add('a')
    await context.claim(1)
    const follow = [context.work('a-delivery', { queue: 'delivery' })]
    const ended = await context.queue.change({ id: 'a', expect: {}, state: 'succeeded', follow })
    expect(ended?.followed.map(({ id }) => id)).toEqual(['a-delivery'])
    expect(await context.claim(10, 'delivery')).toEqual(['a-delivery'])
    await context.add('b')
    const taken = context.queue.change({ id: 'b', expect: {}, state: 'succeeded', follow })
    expect(await refusalCodeOf(taken)).toBe('already_exists')
    expect(context.queue.get('b')?.state).toBe('waiting')
  })

  test('what was claimed is given back as it was, and its old token counts for nothing', async () => {
    for (const id of ['a', 'b']) await context.add(id)
    const [claimed] = await context.queue.claim('agent', 1)
    expect(await context.queue.release('agent')).toBe(1)
    expect(context.queue.get('a')).toMatchObject({ state: 'waiting', attempts: 0, until: null })
    const stale = { id: 'a', expect: { token: claimed!.token, states: ['running'] }, state: 'failed' }
    expect(await context.queue.change(stale)).toBeNull()
    expect(await context.claim(10)).toEqual(['a', 'b'])
    expect(context.queue.waiting('agent')).toBe(0)
  })

  test('what is beyond its time is told of, soonest first', async () => {
    await context.add('leased', { leaseMs: 2000 })
    await context.add('held', { state: 'held', until: context.nowMs + 1000 })
    await context.claim(1)
    expect(context.queue.overdue(context.nowMs, 10)).toEqual([])
    expect(context.queue.nextAt()).toBe(context.nowMs + 1000)
    context.nowMs += 2000
    expect(context.queue.overdue(context.nowMs, 10).map(({ id }) => id)).toEqual(['held', 'leased'])
    expect(context.queue.overdue(context.nowMs, 1)).toHaveLength(1)
    await context.end('held')
    await context.end('leased')
    expect(context.queue.overdue(context.nowMs, 10)).toEqual([])
    expect(context.queue.nextAt()).toBeNull()
  })

  test('a group counts down with each part that ends, once each', async () => {
    const part = (index: number) => ({ group: 'group', index, key: 'group' })
    await context.add('group', { state: 'held', parts: 2 })
    await context.add('part-0', part(0))
    await context.add('part-1', part(1))
    await context.claim(2)
    expect(context.queue.get('group')).toMatchObject({ startedAt: context.nowMs, partsLeft: 2 })
    const end = (id: string) => context.queue.change({ id, expect: { states: ['running'] }, state: 'failed' })
    expect((await end('part-0'))?.groupPartsLeft).toBe(1)
    expect(await end('part-0')).toBeNull()
    expect(context.queue.finishedGroups(10)).toEqual([])
    expect((await end('part-1'))?.groupPartsLeft).toBe(0)
    expect(context.queue.finishedGroups(10).map(({ id }) => id)).toEqual(['group'])
    expect(context.queue.counts('group')).toEqual({ states: { failed: 2 }, retried: 0 })
    await context.end('group')
    expect(context.queue.finishedGroups(10)).toEqual([])
  })

  test('the same idempotency key is the same work, and another request with it is refused', async () => {
    const idempotency = { key: 'k', digest: 'd', expiresAt: context.nowMs + 1000 }
    const enqueue = (id: string, given = {}) =>
      context.queue.enqueue([context.work(id, { idempotency, ...given })])
    expect((await enqueue('a'))[0]).toMatchObject({ existing: false })
    const [again] = await enqueue('b')
    expect(again).toMatchObject({ existing: true, work: { id: 'a' } })
    expect(context.queue.get('b')).toBeNull()
    expect(context.queue.waiting('agent')).toBe(1)
    expect(context.queue.known('main', 'k')).toMatchObject({ digest: 'd', work: { id: 'a' } })
    const other = enqueue('c', { idempotency: { ...idempotency, digest: 'other' } })
    expect(await refusalCodeOf(other)).toBe('conflict')
    expect((await enqueue('d', { workspace: 'second' }))[0]).toMatchObject({ existing: false })
    context.nowMs += 1000
    expect(context.queue.known('main', 'k')).toBeNull()
    const prune = () => context.queue.prune({ endedBefore: 0, keptMax: 100, limit: 1 })
    expect([await prune(), await prune(), await prune()]).toEqual([1, 1, 0])
    expect((await enqueue('e'))[0]).toMatchObject({ existing: false, work: { id: 'e' } })
  })

  test('two at once with one idempotency key are one', async () => {
    const idempotency = { key: 'k', digest: 'd', expiresAt: context.nowMs + 1000 }
    const both = await Promise.all(
      ['a', 'b'].map((id) => context.queue.enqueue([context.work(id, { idempotency })])),
    )
    expect(both.map(([added]) => added!.work.id)).toEqual(['a', 'a'])
    expect(context.queue.waiting('agent')).toBe(1)
  })

  test('an id is taken for ever', async () => {
    await context.add('a')
    expect(await refusalCodeOf(context.add('a'))).toBe('already_exists')
    expect(await refusalCodeOf(context.queue.enqueue([context.work('b'), context.work('a')]))).toBe(
      'already_exists',
    )
    expect(context.queue.get('b')).toBeNull()
    expect(context.queue.waiting('agent')).toBe(1)
  })
}
