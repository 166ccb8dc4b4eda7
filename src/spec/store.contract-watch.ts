import { describe, expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { StoreContext } from './store.contract-context.ts'
import { type ResourceEvent, type Store, watchBufferMax } from './store.ts'

/** The change feed. */
export function watchContract(context: StoreContext): void {
  const { add, sandbox } = context

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
      context.store.watch(filter, signal)[Symbol.asyncIterator]()

    test('gives what happens after the call, in order, also before anybody reads', async () => {
      const abort = new AbortController()
      await add('before')
      const events = iterate({}, abort.signal)
      const created = await add('a', { body: { n: 1 } })
      const updated = await context.store.update(sandbox('a'), 1, { body: { n: 2 } })
      await refusalCodeOf(context.store.update(sandbox('a'), 1, { body: { n: 3 } }))
      await context.store.remove(sandbox('a'))
      await context.store.remove(sandbox('a'))
      await context.store.batch([
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
      await refusalCodeOf(
        context.store.batch([
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
        expect((await context.store.get(sandbox('a')))?.version).toBe(1)
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
      await context.store.create({ kind: 'preview', workspace: 'main', name: 'no', body: {} })
      await context.store.remove(sandbox('no', 'other'))
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
      const events = context.store.watch({}, other.signal)
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
          const read = await context.store.get(sandbox('a'))
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
          await context.store.batch(steps)
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
}
