import { z } from 'zod'
import { type Deliveries, deliverySchema } from '../../deliveries/index.ts'
import { listQuery } from '../list.ts'
import { type Route, route } from '../route.ts'

const tag = 'deliveries'
const limitDefault = 50
const idCharactersMax = 256

/** Callbacks as they were sent: every attempt, and once more by hand. */
export function deliveryRoutes(deliveries: Deliveries): Route[] {
  return [
    route({
      method: 'GET',
      path: '/v0/deliveries',
      access: 'write',
      errors: 'control',
      summary: 'List callbacks with their attempts, newest first; execution: those of one execution',
      tag,
      query: listQuery
        .pick({ limit: true, cursor: true })
        .extend({ execution: z.string().max(idCharactersMax).optional() }),
      answer: z.lazy(() =>
        z.object({
          data: z.array(deliverySchema),
          meta: z.object({ hasMore: z.boolean(), nextCursor: z.string() }),
        }),
      ),
      handle({ workspace, query }) {
        const { limit = limitDefault, cursor, execution } = query
        const { data, nextCursor } = deliveries.list(workspace, {
          limit,
          ...(cursor ? { cursor } : {}),
          ...(execution ? { execution } : {}),
        })
        return { data, meta: { hasMore: nextCursor !== '', nextCursor } }
      },
    }),
    route({
      method: 'GET',
      path: '/v0/deliveries/{deliveryId}',
      access: 'write',
      errors: 'control',
      summary: 'Get a callback with its attempts',
      tag,
      answer: deliverySchema,
      handle: ({ workspace, params }) => deliveries.get(workspace, params.deliveryId),
    }),
    route({
      method: 'POST',
      path: '/v0/deliveries/{deliveryId}/redeliver',
      access: 'write',
      errors: 'control',
      summary: 'Send a callback once more, now, with the same id and body',
      tag,
      answer: deliverySchema,
      handle: ({ workspace, params }) => deliveries.redeliver(workspace, params.deliveryId),
    }),
  ]
}
