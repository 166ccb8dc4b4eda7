import { expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { QueueContext } from './queue.contract-context.ts'
import { type InputRoom, largeInputBytes } from './queue.ts'

/** Who is claimed when. */
export function turnsContract(context: QueueContext): void {
  test('work of one key is claimed by priority, then in the order it came', async () => {
    await context.add('first')
    await context.add('second')
    await context.add('urgent', { priority: 5 })
    await context.add('later', { priority: -5 })
    expect(await context.claim(10)).toEqual(['urgent', 'first', 'second', 'later'])
  })

  test('a claim finds what was added right before it, however large or much that is', async () => {
    const large = [context.add('large', { input: new Uint8Array(32 * 1024 * 1024) }), context.claim(10)]
    expect(await large[1]).toEqual(['large'])
    const ids = Array.from({ length: 400 }, (_, index) => `one-${index}`)
    await Promise.all([...large, context.end('large'), ...ids.map((id) => context.add(id))])
    expect(new Set(await context.claim(1000))).toEqual(new Set(ids))
    // Ends that wait to be written stand before none of it.
    const ends = ids.map((id) => context.end(id))
    const more = Array.from({ length: 300 }, (_, index) => context.add(`more-${index}`))
    expect((await context.claim(1000)).length).toBe(300)
    await Promise.all([...ends, ...more])
  }, 60_000)

  test('what is not due yet is not claimed, and hides nothing that is', async () => {
    await context.add('delayed', { runAt: context.nowMs + 5000, priority: 9 })
    await context.add('now')
    expect(await context.claim(10)).toEqual(['now'])
    expect(context.queue.nextAt()).toBe(context.nowMs + 5000)
    context.nowMs += 5000
    expect(await context.claim(10)).toEqual(['delayed'])
  })

  test('targets get turns, however much one of them has', async () => {
    for (let index = 0; index < 6; index++) await context.add(`greedy-${index}`, { target: 'agent/greedy' })
    await context.add('modest-0', { target: 'agent/modest' })
    await context.add('modest-1', { target: 'agent/modest' })
    expect(await context.claim(4)).toEqual(['greedy-0', 'modest-0', 'greedy-1', 'modest-1'])
  })

  test('the same target of two workspaces is two', async () => {
    for (const id of ['a', 'b', 'c']) await context.add(id)
    await context.add('other', { workspace: 'second' })
    expect(await context.claim(2)).toEqual(['a', 'other'])
  })

  test('keys of a target get turns', async () => {
    for (const key of ['one', 'one', 'one', 'two', 'three']) {
      await context.add(`${key}-${context.queue.depth().waiting}`, { key })
    }
    expect(await context.claim(3)).toEqual(['one-0', 'two-3', 'three-4'])
    expect(await context.claim(3)).toEqual(['one-1', 'one-2'])
  })

  test('a target has as many running as it may; ended ones make room, and held ones do not', async () => {
    for (const id of ['a', 'b', 'c', 'd']) await context.add(id, { targetMax: 2 })
    expect(await context.claim(10)).toEqual(['a', 'b'])
    expect(await context.claim(10)).toEqual([])
    expect(await context.queue.change({ id: 'a', expect: {}, state: 'held' })).not.toBeNull()
    expect(await context.claim(10)).toEqual([])
    expect(context.queue.depth()).toMatchObject({ waiting: 2, running: 1, held: 1 })
    await context.end('a')
    expect(await context.claim(10)).toEqual(['c'])
    await context.end('b')
    await context.end('c')
    expect(await context.claim(10)).toEqual(['d'])
  })

  test('a key has as many running as it may, and costs the others of its target nothing', async () => {
    for (const id of ['a', 'b']) await context.add(id, { key: 'narrow', keyMax: 1 })
    await context.add('c', { key: 'wide' })
    expect(await context.claim(10)).toEqual(['a', 'c'])
    await context.end('a')
    expect(await context.claim(10)).toEqual(['b'])
  })

  test('large inputs have room of their own, of which a target leaves some, and hold up nothing that is small', async () => {
    const large = new Uint8Array(largeInputBytes)
    const small = new Uint8Array(1000)
    const times = (count: number) => count * largeInputBytes
    const claim = async (limit: number, held: InputRoom['held'] = [], smallBytes = 10_000) => {
      const room = { smallBytes, largeBytesMax: times(3), largeBytesOfTargetMax: times(2), held }
      return (await context.queue.claim('agent', limit, room)).map(({ id }) => id)
    }
    const add = (target: string, id: string, input: Uint8Array) =>
      context.add(`${target}-${id}`, { target: `agent/${target}`, input })
    for (const id of ['1', '2', '3']) await add('greedy', id, large)
    for (const id of ['1', '2']) await add('other', id, large)
    await add('greedy', '4', small)
    await add('modest', '1', small)
    expect(await claim(10)).toEqual(['greedy-1', 'other-1', 'modest-1', 'greedy-2'])
    const held = (greedy: number, other: number) => [
      { workspace: 'main', target: 'agent/greedy', largeBytes: times(greedy) },
      { workspace: 'main', target: 'agent/other', largeBytes: times(other) },
    ]
    await add('modest', '2', small)
    expect(await claim(10, held(2, 1))).toEqual(['modest-2'])
    // A target that has its share leaves the rest to others.
    expect(await claim(10, held(2, 0))).toEqual(['other-2'])
    expect(await claim(10, held(0, 2))).toEqual(['greedy-3', 'greedy-4'])
    // Of one that is larger than all of the room there is one at a time.
    await add('huge', '1', new Uint8Array(times(4)))
    expect(await claim(10, held(0, 1))).toEqual([])
    expect(await claim(10)).toEqual(['huge-1'])
    for (const id of ['3', '4', '5']) await add('modest', id, small)
    expect(await claim(10, [], 1001)).toEqual(['modest-3', 'modest-4'])
  })

  test('the limits that came last are those that hold', async () => {
    for (const id of ['a', 'b', 'c']) await context.add(id, { keyMax: 1 })
    expect(await context.claim(10)).toEqual(['a'])
    await context.add('d', { keyMax: 3 })
    expect(await context.claim(10)).toEqual(['b', 'c'])
  })

  test('of a closed key nothing is claimed until it is opened with what else is written', async () => {
    const place = { queue: 'agent', workspace: 'main', target: 'agent/echo', key: 'group' }
    await context.add('part-0', { key: 'group', keyMax: 0, group: 'group', index: 0 })
    await context.add('part-1', { key: 'group', keyMax: 0, group: 'group', index: 1 })
    expect(await context.claim(10)).toEqual([])
    expect(context.queue.closedKeys()).toEqual([place])
    await context.add('group', { state: 'held', parts: 2 }, { limitKey: { ...place, max: 1 } })
    expect(context.queue.closedKeys()).toEqual([])
    expect(await context.claim(10)).toEqual(['part-0'])
    await context.end('part-0')
    expect(await context.claim(10)).toEqual(['part-1'])
  })

  test('queues know nothing of each other', async () => {
    await context.add('a')
    await context.add('b', { queue: 'job' })
    expect(await context.claim(10, 'job')).toEqual(['b'])
    expect(await context.claim(10)).toEqual(['a'])
  })

  test('what nobody works for any more leaves no turn behind', async () => {
    for (let round = 0; round < 3; round++) {
      for (const target of ['x', 'y']) await context.add(`${target}-${round}`, { target, targetMax: 1 })
      const claimed = await context.claim(10)
      expect(claimed.sort()).toEqual([`x-${round}`, `y-${round}`])
      for (const id of claimed) await context.end(id)
      expect(context.queue.depth()).toEqual({ waiting: 0, running: 0, held: 0, oldestWaitingAt: null })
    }
  })

  test('more than may wait is refused, whole, with when to come again', async () => {
    await context.add('a', {}, { waitingMax: 2 })
    const two = [context.work('b'), context.work('c')]
    expect(await refusalCodeOf(context.queue.enqueue(two, { waitingMax: 2 }))).toBe('too_many_requests')
    expect(context.queue.get('b')).toBeNull()
    await context.add('d', {}, { waitingMax: 2 })
    expect(await refusalCodeOf(context.add('e', {}, { waitingMax: 2 }))).toBe('too_many_requests')
    await context.claim(1)
    await context.add('f', {}, { waitingMax: 2 })
    expect(context.queue.waiting('agent')).toBe(2)
  })

  test('claimed work comes with its input, and says how often it was begun', async () => {
    const input = new TextEncoder().encode('ünï')
    await context.add('a', { input })
    await context.add('empty', { input: new Uint8Array() })
    const [claimed, empty] = await context.queue.claim('agent', 2)
    expect(claimed).toMatchObject({ id: 'a', state: 'running', attempts: 1, startedAt: context.nowMs })
    expect(claimed!.input).toEqual(input)
    expect(empty!.input).toEqual(new Uint8Array())
    expect(claimed!.until).toBe(context.nowMs + 60_000)
    expect(context.queue.input('a')).toEqual(input)
  })
}
