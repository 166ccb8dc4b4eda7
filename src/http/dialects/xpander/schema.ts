/** What clients of xpander send. As its own API does, unknown fields are passed over. */
import { z } from 'zod'
import { type JsonObject, threadStatuses } from '../../../threads/index.ts'

const textCharsMax = 8 * 1024 * 1024
const filesMax = 100
const addressCharsMax = 8 * 1024 * 1024
const nameCharsMax = 512
const perPageMax = 50

const json = z.lazy(() => z.record(z.string(), z.json()).transform((value) => value as JsonObject))
const text = z.string().max(textCharsMax).nullish()
const name = z.string().max(nameCharsMax).nullish()
const flag = z.boolean().nullish()

const webhook = z.lazy(() =>
  z.object({
    url: z.string().max(2048),
    secret: z.string().min(1).max(4096).nullish(),
    headers: z.record(z.string(), z.string()).nullish(),
  }),
)

/** What starts a turn: `POST /v1/agents/{id}/invoke`, and what the SDK creates tasks with. */
export const invocationSchema = z.lazy(() =>
  z.object({
    input: z.looseObject({
      text: z.string().max(textCharsMax).nullish(),
      files: z.array(z.string().max(addressCharsMax)).max(filesMax).nullish(),
      user: json.nullish(),
    }),
    id: z.string().max(nameCharsMax).nullish(),
    source: name,
    title: name,
    /** Where the end of this turn is told, signed. Ours: xpander has no such thing. */
    webhook: webhook.nullish(),
    user_tokens: json.nullish(),
    user_oidc_token: text,
    payload_extension: json.nullish(),
    parent_execution_id: name,
    worker_id: name,
    output_format: z.enum(['text', 'markdown', 'json', 'voice']).nullish(),
    output_schema: json.nullish(),
    run_locally: flag,
    additional_context: text,
    instructions_override: text,
    test_run_node_id: name,
    expected_output: text,
    events_streaming: flag,
    mcp_servers: z.array(json).max(filesMax).nullish(),
    triggering_agent_id: name,
    think_mode: z.enum(['default', 'harder']).nullish(),
    disable_attachment_injection: flag,
    return_metrics: flag,
    llm_model_provider: name,
    llm_model_name: name,
    llm_reasoning_effort: z.enum(['low', 'medium', 'high', 'xhigh']).nullish(),
    source_node_type: name,
    tool_call_limit: z.number().int().nullish(),
    harness_cli: name,
    permission_mode: name,
  }),
)
export type Invocation = z.output<typeof invocationSchema>

/** Fields of an invocation that are kept as they came, and are nobody's secret. */
export const optionNames = [
  ...['payload_extension', 'parent_execution_id', 'worker_id', 'output_format', 'output_schema'],
  ...['run_locally', 'additional_context', 'instructions_override', 'test_run_node_id', 'expected_output'],
  ...['events_streaming', 'mcp_servers', 'triggering_agent_id', 'think_mode', 'return_metrics'],
  ...['disable_attachment_injection', 'llm_model_provider', 'llm_model_name', 'llm_reasoning_effort'],
  ...['source_node_type', 'tool_call_limit', 'harness_cli', 'permission_mode'],
] as const satisfies (keyof Invocation)[]

/** None, where it is the one that is served anyway. */
export function versionAsked(version: string | null | undefined): string | undefined {
  return version === 'latest' ? undefined : version || undefined
}
export const versionQuery = z.object({ version: z.string().max(64).optional().transform(versionAsked) })

const pageNumber = z.coerce.number().int().min(1).max(20_000)
const date = z.iso
  .datetime({ offset: true, local: true })
  .or(z.iso.date())
  .transform((value) =>
    Date.parse(/[zZ]|[+-]\d\d:?\d\d$/.test(value) || value.length === 10 ? value : `${value}Z`),
  )

export const pageQuery = z.object({
  page: pageNumber.default(1),
  per_page: z.coerce.number().int().min(1).max(perPageMax).default(20),
})

/** A client that has nothing to filter by may send the name alone. */
const filter = z
  .string()
  .max(nameCharsMax)
  .optional()
  .transform((value) => (value === '' ? undefined : value))

export const taskFilters = z.object({
  user_id: filter,
  agent_id: filter,
  parent_task_id: filter,
  triggering_agent_id: filter,
  status: z.enum(threadStatuses).or(z.literal('')).optional(),
  internal_status: filter,
  from_date: date.optional(),
  to_date: date.optional(),
})

/** What the SDK says of a task: all of it, or the fields that changed. */
export const updateSchema = z.lazy(() =>
  z.looseObject({
    status: z.enum(threadStatuses).nullish(),
    result: z.string().nullish(),
    internal_status: z.string().max(255).nullish(),
    title: name,
    execution_attempts: z.number().int().nullish(),
  }),
)

export const externalTaskSchema = z.lazy(() =>
  z.looseObject({
    id: z.string().max(nameCharsMax).nullish(),
    input: text,
    is_success: flag,
    result: text,
    tokens: json.nullish(),
    duration: z.number().nullish(),
    used_tools: z.array(z.string()).nullish(),
  }),
)

export const metricsSchema = z.lazy(() =>
  z.looseObject({
    execution_id: z.string().max(nameCharsMax),
    ai_model: name,
    llm_tokens: json.nullish(),
  }),
)

export const pushedEventsSchema = z.lazy(() =>
  z.array(z.looseObject({ type: z.string().min(1).max(64), data: z.json().optional() })).max(1000),
)

/** `worker-heartbeat`, `worker-capacity-update`, `worker-finished`. */
export const workerEventSchema = z.lazy(() =>
  z.looseObject({
    event: z.string().max(64),
    data: z.unknown().optional(),
  }),
)
