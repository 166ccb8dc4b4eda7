import { expect, test } from 'bun:test'
import { type QueueContext, refusalOf } from './queue.contract-context.ts'
import { type WorkQuery, workInputBytesMax, workLabelsMax, workResultBytesMax } from './queue.ts'

/** Reading, keeping and removing. */
export function listsContract(context: QueueContext): void {
  const ids = (query: Partial<WorkQuery>) =>
    context.queue.list({ workspace: 'main', limit: 100, ...query }).map(({ id }) => id)

  test('lists are of one workspace, newest first, by what is asked for', async () => {
    await context.add('a', { labels: { trigger: 'cron', user: 'one' } })
    context.nowMs += 1000
    await context.add('b', { target: 'agent/other', labels: { trigger: 'cron' } })
    await context.add('c', { queue: 'job' })
    await context.add('d', { workspace: 'second' })
    context.nowMs += 1000
    await context.add('e')
    expect(ids({})).toEqual(['e', 'c', 'b', 'a'])
    expect(ids({ sort: 'oldest' })).toEqual(['a', 'b', 'c', 'e'])
    expect(ids({ queue: 'agent' })).toEqual(['e', 'b', 'a'])
    expect(ids({ queue: 'agent', target: 'agent/echo' })).toEqual(['e', 'a'])
    expect(ids({ labels: { trigger: 'cron' } })).toEqual(['b', 'a'])
    expect(ids({ labels: { trigger: 'cron', user: 'one' } })).toEqual(['a'])
    expect(ids({ since: context.nowMs - 1000 })).toEqual(['e', 'c', 'b'])
    expect(ids({ until: context.nowMs - 1000 })).toEqual(['c', 'b', 'a'])
    await context.claim(1)
    await context.end('b', 'failed')
    expect(ids({ states: ['running'] })).toEqual(['a'])
    expect(ids({ states: ['running', 'failed'] })).toEqual(['b', 'a'])
    expect(ids({ states: [] })).toEqual([])
  })

  test('pages go on behind the last one, whatever is added or removed meanwhile', async () => {
    for (const id of ['a', 'b', 'c', 'd']) await context.add(id)
    const first = context.queue.list({ workspace: 'main', limit: 2 })
    await context.add('new')
    await context.queue.remove('c')
    const second = context.queue.list({ workspace: 'main', limit: 2, after: first.at(-1)!.order })
    expect([...first, ...second].map(({ id }) => id)).toEqual(['d', 'c', 'b', 'a'])
  })

  test('parts of a group are listed by their index', async () => {
    for (const index of [2, 0, 1]) await context.add(`part-${index}`, { group: 'g', index })
    expect(ids({ group: 'g', sort: 'index' })).toEqual(['part-0', 'part-1', 'part-2'])
    expect(ids({ group: 'g', sort: 'index', after: 0 })).toEqual(['part-1', 'part-2'])
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
    expect(ids({})).toEqual(['open', 'd', 'c', 'b'])
    expect(await prune(0, 1, 1)).toBe(1)
    expect(await prune(0, 1)).toBe(1)
    expect(ids({})).toEqual(['open', 'd'])
    expect(ids({ labels: { id: 'b' } })).toEqual([])
    expect(context.queue.input('b')).toBeNull()
    expect(await prune(context.nowMs + 1, 0)).toBe(1)
    expect(ids({})).toEqual(['open'])
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
    expect(ids({})).toEqual([])
    expect(context.queue.known('main', 'k')).toBeNull()
    expect(context.queue.waiting('agent')).toBe(1)
    expect(await context.claim(10)).toEqual(['c'])
  })

  test('what is too large, or cannot be kept as it is, is refused', async () => {
    const refused = (given: object) => refusalOf(context.add('a', given))
    expect(await refused({ input: new Uint8Array(workInputBytesMax + 1) })).toBe('body_too_large')
    expect(await refused({ body: 'x'.repeat(1024 * 1024) })).toBe('body_too_large')
    expect(await refused({ labels: { a: 'x'.repeat(257) } })).toBe('bad_request')
    const many = Array.from({ length: workLabelsMax + 1 }, (_, index) => [`label-${index}`, ''])
    expect(await refused({ labels: Object.fromEntries(many) })).toBe('bad_request')
    expect(await refused({ key: 'nul\0' })).toBe('bad_request')
    expect(await refused({ priority: 0.5 })).toBe('bad_request')
    await context.add('a')
    const result = new Uint8Array(workResultBytesMax + 1)
    expect(await refusalOf(context.queue.change({ id: 'a', expect: {}, result }))).toBe('body_too_large')
  })
}
