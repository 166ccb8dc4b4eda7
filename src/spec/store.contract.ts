import { afterEach, beforeEach, describe } from 'bun:test'
import { type Clock, systemClock } from '../lib/clock.ts'
import { batchesContract } from './store.contract-batches.ts'
import { storeContext } from './store.contract-context.ts'
import { pagesContract } from './store.contract-pages.ts'
import { resourcesContract } from './store.contract-resources.ts'
import { watchContract } from './store.contract-watch.ts'
import type { Store } from './store.ts'

/** What every store driver passes. `open` makes an empty store on the given clock; the suite closes it. */
export function storeContract(name: string, open: (options: { clock: Clock }) => Promise<Store>): void {
  describe(`store contract: ${name}`, () => {
    const context = storeContext()
    beforeEach(async () => {
      context.nowMs = 1_800_000_000_000
      context.store = await open({ clock: { ...systemClock, now: () => context.nowMs } })
    })
    afterEach(async () => {
      await context.store[Symbol.asyncDispose]()
    })

    resourcesContract(context)
    batchesContract(context)
    pagesContract(context)
    watchContract(context)
  })
}
