/** The protocol of workers: a stream of events to them, and what they post of themselves. */
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { JsonObject, Thread, Worker } from '../../../threads/index.ts'
import { type Route, route } from '../../route.ts'
import { eventStream } from '../event-stream.ts'
import type { XpanderOptions } from './index.ts'
import { shared } from './route-parts.ts'
import { workerEventSchema } from './schema.ts'
import { taskView, workerView } from './view.ts'

interface Message {
  event: string
  data: JsonObject
}

export function workerRoutes({ threads, agents, workers }: XpanderOptions): Route[] {
  const shape = {
    ...shared,
    path: '/{organization}/events/{id}',
    workspaceHint: ({ organization }: { organization: string }) => organization,
    access: 'deployed',
  } as const
  return [
    route({
      ...shape,
      method: 'GET',
      summary: 'Be a worker of an agent: what is to be done comes as events',
      query: z.looseObject({ environment: z.string().max(64).optional() }),
      async handle({ workspace, params, request, principal }) {
        const workload = principal?.kind === 'workload' ? principal.resource : null
        if (workload !== null && workload.name !== params.id) {
          throw new PlatformError(
            'forbidden',
            `what is deployed as "${workload.name}" is a worker of that agent only`,
          )
        }
        const agent = await agents.register(workspace, params.id, principal?.name ?? '')
        const mail = new Mail()
        const worker = workers.connect({
          workspace,
          agentId: agent.id,
          principalId: principal?.id ?? '',
          name: `${agent.id}-worker`,
          // A program of one's own machine does not take what is deployed the work away, unless it is asked for.
          isFor: agent.deployment === null || workload !== null ? 'all' : 'named',
          hand: (thread: Thread) =>
            mail.send({ event: 'agent-execution', data: taskView(thread, threads.tokensOf(thread)) }),
          close: () => mail.close(),
        })
        if (worker === null) {
          const error = `the agent "${agent.id}" has as many workers as it can have`
          mail.send({
            event: 'worker-environment-conflict',
            data: { event: 'worker-environment-conflict', error },
          })
          mail.close()
          return eventStream(mail.messages(), () => {})
        }
        mail.send({ event: 'worker-registration', data: workerView(worker) })
        const leave = () => {
          workers.gone(worker)
          mail.close()
        }
        request.signal.addEventListener('abort', leave, { once: true })
        workers.ready(worker)
        return eventStream(mail.messages(), leave)
      },
    }),
    route({
      ...shape,
      method: 'POST',
      summary: 'Say that a worker is alive, has room, or is done',
      body: workerEventSchema,
      handle({ workspace, params, body }) {
        const worker = workers.get(workspace, params.id)
        if (worker === null) {
          throw new PlatformError(
            'not_found',
            `there is no worker "${params.id.slice(0, 80)}": connect again`,
          )
        }
        workers.heard(worker)
        said(worker, body)
        return {}
      },
    }),
  ]

  function said(worker: Worker, { event, data }: z.output<typeof workerEventSchema>): void {
    if (event === 'worker-capacity-update') {
      workers.busy(worker, (data as { is_busy?: unknown } | undefined)?.is_busy === true)
    } else if (event === 'worker-finished') workers.finished(worker)
  }
}

/** What is still to be sent to one worker. */
class Mail {
  readonly #waiting: Message[] = []
  #wake = () => {}
  #closed = false

  send(message: Message): void {
    this.#waiting.push(message)
    this.#wake()
  }

  close(): void {
    this.#closed = true
    this.#wake()
  }

  async *messages(): AsyncGenerator<Message> {
    for (;;) {
      const message = this.#waiting.shift()
      if (message !== undefined) yield message
      else if (this.#closed) return
      else {
        const { promise, resolve } = Promise.withResolvers<void>()
        this.#wake = resolve
        await promise
      }
    }
  }
}
