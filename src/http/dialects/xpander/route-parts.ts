import type { Principal } from '../../../access/index.ts'
import type { Caller } from './invocations.ts'

/** What all routes of this dialect have in common. */
export const shared = { errors: 'xpander', tag: 'xpander', keyless: false } as const

/** Of a turn: a list or a text may be long, though not as long as an upload. */
export const invocationBytesMax = 16 * 1024 * 1024

export function callerOf(context: {
  workspace: string
  request: Request
  principal: Principal | null
}): Caller {
  const { workspace, request, principal } = context
  return { workspace, request, loopback: principal !== null && principal.kind !== 'workload' }
}

/** As lists are counted here. */
export function pageOf<Item>(
  items: Item[],
  total: number,
  { page, per_page }: { page: number; per_page: number },
) {
  return { items, total, page, per_page, total_pages: Math.ceil(total / per_page) }
}
