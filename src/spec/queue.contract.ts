import { afterEach, beforeEach, describe } from 'bun:test'
import { type Clock, systemClock } from '../lib/clock.ts'
import { queueContext } from './queue.contract-context.ts'
import { endsContract } from './queue.contract-ends.ts'
import { listsContract } from './queue.contract-lists.ts'
import { turnsContract } from './queue.contract-turns.ts'
import type { Queue } from './queue.ts'

/** What every queue driver passes. `open` makes an empty queue on the given clock; the suite closes it. */
export function queueContract(
  name: string,
  open: (options: { clock: Clock }) => Promise<AsyncDisposable & { queue: Queue }>,
): void {
  describe(`queue contract: ${name}`, () => {
    const context = queueContext()
    let opened: (AsyncDisposable & { queue: Queue }) | null = null
    beforeEach(async () => {
      context.nowMs = 1_800_000_000_000
      opened = await open({ clock: { ...systemClock, now: () => context.nowMs } })
      context.queue = opened.queue
    })
    afterEach(async () => {
      await opened?.[Symbol.asyncDispose]()
    })

    turnsContract(context)
    endsContract(context)
    listsContract(context)
  })
}
