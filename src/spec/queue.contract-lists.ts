import { expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { QueueContext } from './queue.contract-context.ts'
import { type WorkQuery, workInputBytesMax, workLabelsMax, workResultBytesMax } from './queue.ts'

/** Reading, keeping and removing. */
export function listsContract(context: QueueContext): void {
  const ids = async (query: Partial<WorkQuery>) => {
    const asked = { workspace: 'main', limit: 100, ...query }
    const listed = context.queue.list(asked).map(({ id }) => id)
    expect((await context.queue.search(asked)).map(({ id }) => id)).toEqual(listed)
    return listed
  }

  test('lists are of one workspace, newest first, by what is asked for', async () => {
    await context.add('a', { labels: { trigger: 'cron', user: 'one' } })
    context.nowMs += 1000
    await context.add('b', { target: 'agent/other', labels: { trigger: 'cron' } })
    await context.add('c', { queue: 'job' })
    await context.add('d', { workspace: 'second' })
    context.nowMs += 1000
    await context.add('e')
    expect(await ids({})).toEqual(['e', 'c', 'b', 'a'])
    expect(await ids({ sort: 'oldest' })).toEqual(['a', 'b', 'c', 'e'])
    expect(await ids({ queue: 'agent' })).toEqual(['e', 'b', 'a'])
    expect(await ids({ queue: 'agent', target: 'agent/echo' })).toEqual(['e', 'a'])
    expect(await ids({ labels: { trigger: 'cron' } })).toEqual(['b', 'a'])
    expect(await ids({ labels: { trigger: 'cron', user: 'one' } })).toEqual(['a'])
    expect(await ids({ since: context.nowMs - 1000 })).toEqual(['e', 'c', 'b'])
    expect(await ids({ until: context.nowMs - 1000 })).toEqual(['c', 'b', 'a'])
    await context.claim(1)
    await context.end('b', 'failed')
    expect(await ids({ states: ['running'] })).toEqual(['a'])
    expect(await ids({ states: ['running', 'failed'] })).toEqual(['b', 'a'])
    expect(await ids({ states: [] })).toEqual([])
  })

  test('pages go on behind the last one, whatever is added or removed meanwhile', async () => {
    for (const id of ['a', 'b', 'c', 'd']) await context.add(id)
    const first = context.queue.list({ workspace: 'main', limit: 2 })
    await context.add('new')
    await context.queue.remove('c')
    const second = context.queue.list({ workspace: 'main', limit: 2, after: first.at(-1)!.order })
    expect([...first, ...second].map(({ id }) => id)).toEqual(['d', 'c', 'b', 'a'])
  })

  test('a search looks through all there is, and others have their turn meanwhile', async () => {
    for (let at = 0; at < 1300; at += 100) {
      const some = Array.from({ length: 100 }, (_, index) => at + index)
      await Promise.all(
        some.map((index) =>
          context.add(`w${index}`, {
            target: index % 600 === 0 ? 'agent/rare' : 'agent/echo',
            labels: { parity: String(index % 2), rest: String(index % 650) },
          }),
        ),
      )
      context.nowMs += 1000
    }
    const since = context.nowMs - 13_000
    const queue = 'agent'
    for (const sort of ['newest', 'oldest'] as const) {
      const all = await ids({ queue, since, sort, limit: 1000 })
      expect(all).toHaveLength(1000)
      await ids({ queue, since, sort, limit: 300, after: context.queue.get('w700')!.order })
      expect(await ids({ queue, until: since + 999, sort })).toHaveLength(100)
      expect(await ids({ queue, labels: { parity: '0', rest: '0' }, sort })).toHaveLength(2)
      expect(await ids({ queue, target: 'agent/rare', states: ['waiting'], sort })).toHaveLength(3)
      expect(await ids({ queue, since: context.nowMs, sort })).toEqual([])
      expect(await ids({ queue, states: ['waiting', 'running'], since, sort, limit: 600 })).toHaveLength(600)
    }
    let hadTurn = false
    setImmediate(() => {
      hadTurn = true
    })
    await context.queue.search({ workspace: 'main', queue, since: context.nowMs, limit: 10 })
    expect(hadTurn).toBe(true)
  })

  test('parts of a group are listed by their index', async () => {
    for (const index of [2, 0, 1]) await context.add(`part-${index}`, { group: 'g', index })
    expect(await ids({ group: 'g', sort: 'index' })).toEqual(['part-0', 'part-1', 'part-2'])
    expect(await ids({ group: 'g', sort: 'index', after: 0 })).toEqual(['part-1', 'part-2'])
  })

  test('what waits is counted, and how long its oldest does', async () => {
    expect(context.queue.depth()).toEqual({ waiting: 0, running: 0, held: 0, oldestWaitingAt: null })
    await context.add('a')
    const before = context.nowMs
    context.nowMs += 500
    await context.add('b', { target: 'agent/other' })
    await context.add('c', { queue: 'job', runAt: context.nowMs + 1000 })
    expect(context.queue.depth()).toEqual({ waiting: 3, running: 0, held: 0, oldestWaitingAt: before })
    expect(context.queue.depth({ queue: 'job' }).waiting).toBe(1)
    expect(context.queue.depth({ workspace: 'main', target: 'agent/other' })).toMatchObject({
      waiting: 1,
      oldestWaitingAt: before + 500,
    })
    await context.claim(1)
    expect(context.queue.depth({ queue: 'agent' })).toMatchObject({ waiting: 1, running: 1 })
  })

  test('what is long over goes, the oldest first, and nothing that goes on', async () => {
    for (const id of ['a', 'b', 'c', 'd', 'open']) {
      await context.add(id, { labels: { id }, input: new Uint8Array([1]) })
    }
    for (const id of ['a', 'b', 'c', 'd']) {
      await context.end(id)
      context.nowMs += 1000
    }
    const prune = (endedBefore: number, keptMax: number, limit = 100) =>
      context.queue.prune({ endedBefore, keptMax, limit })
    expect(await prune(context.nowMs - 3000, 100)).toBe(1)
    expect(await ids({})).toEqual(['open', 'd', 'c', 'b'])
    expect(await prune(0, 1, 1)).toBe(1)
    expect(await prune(0, 1)).toBe(1)
    expect(await ids({})).toEqual(['open', 'd'])
    expect(await ids({ labels: { id: 'b' } })).toEqual([])
    expect(context.queue.input('b')).toBeNull()
    expect(await prune(context.nowMs + 1, 0)).toBe(1)
    expect(await ids({})).toEqual(['open'])
  })

  test('parts of a group stay as long as it goes on', async () => {
    await context.add('group', { state: 'held', parts: 2 })
    for (const index of [0, 1]) await context.add(`part-${index}`, { group: 'group', index })
    await context.end('part-0')
    context.nowMs += 1000
    const prune = () => context.queue.prune({ endedBefore: context.nowMs, keptMax: 0, limit: 100 })
    expect(await prune()).toBe(0)
    await context.end('part-1')
    await context.end('group')
    expect(await prune()).toBe(3)
  })

  test('one is removed whatever it does, and leaves its place', async () => {
    for (const id of ['a', 'b']) await context.add(id, { keyMax: 1 })
    await context.claim(1)
    expect(await context.queue.remove('a')).toBe(true)
    expect(await context.queue.remove('a')).toBe(false)
    expect(await context.claim(1)).toEqual(['b'])
    expect(await context.queue.change({ id: 'a', expect: {}, state: 'succeeded' })).toBeNull()
  })

  test('a workspace goes with all its work, and nothing of another', async () => {
    const idempotency = { key: 'k', digest: 'd', expiresAt: context.nowMs + 1000 }
    await context.queue.enqueue([context.work('a', { idempotency }), context.work('b', { state: 'held' })])
    await context.add('c', { workspace: 'second' })
    await context.queue.removeWorkspace('main')
    expect(await ids({})).toEqual([])
    expect(context.queue.known('main', 'k')).toBeNull()
    expect(context.queue.waiting('agent')).toBe(1)
    expect(await context.claim(10)).toEqual(['c'])
  })

  test('what is too large, or cannot be kept as it is, is refused', async () => {
    const refused = (given: object) => refusalCodeOf(context.add('a', given))
    expect(await refused({ input: new Uint8Array(workInputBytesMax + 1) })).toBe('body_too_large')
    expect(await refused({ body: 'x'.repeat(1024 * 1024) })).toBe('body_too_large')
    expect(await refused({ labels: { a: 'x'.repeat(257) } })).toBe('bad_request')
    const many = Array.from({ length: workLabelsMax + 1 }, (_, index) => [`label-${index}`, ''])
    expect(await refused({ labels: Object.fromEntries(many) })).toBe('bad_request')
    expect(await refused({ key: 'nul\0' })).toBe('bad_request')
    expect(await refused({ priority: 0.5 })).toBe('bad_request')
    await context.add('a')
    const result = new Uint8Array(workResultBytesMax + 1)
    expect(await refusalCodeOf(context.queue.change({ id: 'a', expect: {}, result }))).toBe('body_too_large')
  })
}
