/** The API of xpander: its documented REST below /v1, what its SDK calls, and the webhook that starts agents. */
import type { Access } from '../../../access/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Agents, Threads, Workers } from '../../../threads/index.ts'
import type { Route } from '../../route.ts'
import { agentRoutes } from './agents.ts'
import type { Callbacks } from './invocations.ts'
import { sdkRoutes } from './sdk.ts'
import { taskRoutes } from './tasks.ts'
import { webhookRoutes } from './webhook.ts'
import { workerRoutes } from './workers.ts'

export { composeCallback } from './callbacks.ts'
export { performer } from './program.ts'

export interface XpanderOptions {
  threads: Threads
  agents: Agents
  workers: Workers
  callbacks: Callbacks
  access: Pick<Access, 'authenticate'>
  clock: Clock
}

export function xpanderRoutes(options: XpanderOptions): Route[] {
  return [
    ...agentRoutes(options),
    ...taskRoutes(options),
    ...sdkRoutes(options),
    ...workerRoutes(options),
    ...webhookRoutes(options),
  ]
}
