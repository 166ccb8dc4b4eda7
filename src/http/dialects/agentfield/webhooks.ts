import { z } from 'zod'
import type { Deliveries } from '../../../deliveries/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions, NewExecution } from '../../../executions/index.ts'
import { parseWith } from '../../body.ts'
import { durationMsOf, failureView, resultOf, shownId, statusOf, targetNameOf } from './view.ts'
import { jsonOf, timeText } from './wire.ts'

const dialect = 'agentfield'

const secretCharactersMax = 4096
/** Of what was sent, shown with each attempt. */
const payloadBytesMax = 16 * 1024

const webhookSchema = z.lazy(() =>
  z.object({
    url: z.string().max(4096),
    secret: z.string().max(secretCharactersMax).nullish(),
    headers: z.record(z.string(), z.string()).nullish(),
  }),
)

type Registered = { callback: NonNullable<NewExecution['callback']> } | { error: string } | null

/** Where somebody wants to hear how an execution ended. */
export class Webhooks {
  readonly #deliveries: Deliveries

  constructor({ executions, deliveries }: { executions: Executions; deliveries: Deliveries }) {
    this.#deliveries = deliveries
    executions.callbacks(dialect, (execution, result, callback) =>
      composed(execution, result, callback, deliveries),
    )
  }

  /** One that cannot be told is no reason to refuse the work: whoever asked hears that, and asks for the execution instead. */
  async register(
    given: unknown,
    { workspace, loopback }: { workspace: string; loopback: boolean },
  ): Promise<Registered> {
    if (given === undefined || given === null) return null
    try {
      const { url, secret, headers } = parseWith(webhookSchema, given, 'webhook')
      this.#deliveries.checkHeaders('webhook.headers', headers ?? {})
      const address = await this.#deliveries.checkAddress('webhook.url', url, { loopback })
      return {
        callback: {
          dialect,
          url: address,
          headers: headers ?? {},
          secrets: secret ? [this.#deliveries.seal(workspace, secret)] : [],
          loopback,
        },
      }
    } catch (error) {
      if (!PlatformError.is(error) || error.code !== 'bad_request') throw error
      return { error: error.message }
    }
  }

  /** What was sent so far, and what came of it, in both spellings of its fields. */
  events(execution: Execution): object[] {
    if (execution.note.webhook !== true || execution.endedAt === null) return []
    const { data } = this.#deliveries.list(execution.workspace, { execution: execution.id, limit: 1 })
    return data.flatMap(({ id, attempts }) => {
      const body = this.#deliveries.body(execution.workspace, id)
      const payload = body === null || body.length > payloadBytesMax ? undefined : resultOf(body)
      return attempts.map(({ at, status, bodyExcerpt, error }, index) => ({
        id: `${id}.${index + 1}`,
        execution_id: shownId(execution),
        event_type: eventOf(execution),
        attempt: index + 1,
        status: error === null ? 'delivered' : 'failed',
        http_status: status ?? 0,
        ...(payload === undefined ? {} : { payload }),
        response_body: bodyExcerpt,
        ...(error === null ? {} : { error_message: error }),
        created_at: at,
        timestamp: at,
      }))
    })
  }
}

function eventOf({ status }: Execution): string {
  return status === 'succeeded' ? 'execution.completed' : 'execution.failed'
}

const callbackSchema = z.lazy(() =>
  z.object({
    url: z.string(),
    headers: z.record(z.string(), z.string()),
    secrets: z.array(z.string()),
    loopback: z.boolean(),
  }),
)

/** What is told of an execution that ended, in both spellings of its fields. */
function composed(
  execution: Execution,
  result: Uint8Array | null,
  callback: Record<string, unknown>,
  deliveries: Deliveries,
): NewExecution {
  const { url, headers, secrets, loopback } = callbackSchema.parse(callback)
  const { workspace, id, labels, endedAt, acceptedAt } = execution
  const value = resultOf(result)
  const durationMs = durationMsOf(execution)
  const at = timeText(endedAt ?? acceptedAt)
  const body = {
    event: eventOf(execution),
    execution_id: shownId(execution),
    run_id: labels.run ?? '',
    workflow_id: labels.run ?? '',
    status: statusOf(execution),
    target: targetNameOf(execution),
    type: labels.type ?? 'reasoner',
    ...(durationMs === null ? {} : { duration_ms: durationMs }),
    ...(value === undefined ? {} : { result: value }),
    ...failureView(execution),
    timestamp: at,
    completed_at: at,
  }
  return deliveries.compose({
    ...{ workspace, executionId: id, dialect, url, headers, secrets, loopback },
    body: jsonOf(body),
  })
}
