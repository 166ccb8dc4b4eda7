import type { Jobs } from '../../jobs/index.ts'
import { type Route, route } from '../route.ts'

/** Where programs of an execution read what its tasks were given: the address is the right to it, and to nothing else. */
export function executionDataRoutes(jobs: Pick<Jobs, 'data'>): Route[] {
  return [
    route({
      method: 'GET',
      path: '/-/executions/{token}',
      access: 'capability',
      errors: 'control',
      tag: 'jobs',
      summary: 'Read the tasks of an execution that goes on',
      handle: ({ params }) =>
        new Response(jobs.data(params.token) as Uint8Array<ArrayBuffer>, {
          headers: { 'content-type': 'application/json', 'cache-control': 'no-store' },
        }),
    }),
  ]
}
