/** The webhook that starts an agent from whatever can send a form or JSON: `POST /?agent_id=`. */
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { begunTurn, type Json, type JsonObject } from '../../../threads/index.ts'
import { parseJson, parseWith } from '../../body.ts'
import { type Route, type RouteContext, route } from '../../route.ts'
import type { WholeBody } from '../../whole-body.ts'
import type { XpanderOptions } from './index.ts'
import { endOf, newTurn } from './invocations.ts'
import { callerOf, invocationBytesMax, shared } from './route-parts.ts'
import { invocationSchema } from './schema.ts'
import { taskView } from './view.ts'

const fieldsMax = 200
const filesMax = 20

/** Of the form, what is not the agent's own: everything else is passed to it. */
const ownFields = new Set([
  ...['agent_id', 'prompt', 'asynchronous', 'task_id', 'getter', 'json', 'user_tokens', 'user_id'],
  ...[
    'user_email',
    'user_first_name',
    'user_last_name',
    'disable_attachment_injection',
    'x-api-key',
    'files',
  ],
])
const flag = z
  .union([z.boolean(), z.enum(['true', 'false', '1', '0', ''])])
  .transform((value) => value === true || value === 'true' || value === '1')
const name = z.string().max(512)
const formSchema = z.lazy(() =>
  z.looseObject({
    agent_id: name.min(1),
    prompt: z.string().optional(),
    asynchronous: flag.optional(),
    task_id: name.optional(),
    getter: name.optional(),
    json: flag.optional(),
    user_tokens: z.union([z.string(), z.record(z.string(), z.json())]).optional(),
    user_id: name.optional(),
    user_email: name.optional(),
    user_first_name: name.optional(),
    user_last_name: name.optional(),
    disable_attachment_injection: flag.optional(),
  }),
)

type FormContext = RouteContext<unknown, unknown, unknown>

export function webhookRoutes({ agents, threads, callbacks }: XpanderOptions): Route[] {
  const begin = async (context: FormContext) => {
    const { fields, files } = await readForm(context.request.headers, context.whole)
    const asked = { ...fields, ...Object.fromEntries(context.url.searchParams) }
    const form = parseWith(formSchema, asked, 'body')
    const agent = await agents.require(context.workspace, form.agent_id)
    const invocation = parseWith(invocationSchema, invocationOf(form, files), 'body')
    const turn = await newTurn(agent.id, invocation, callerOf(context), { callbacks, source: 'webhook' })
    const { getter, json, asynchronous } = form
    return { ...(await threads.begin(turn)), getter, json, asynchronous }
  }
  return [
    route({
      ...shared,
      method: 'POST',
      path: '/',
      access: 'read',
      queryToken: 'x-api-key',
      summary: 'Start an agent by a webhook: JSON, a form, or a form with files',
      async handle(context) {
        const { thread, getter, json, asynchronous } = await begin(context)
        if (asynchronous === true) return taskView(thread)
        context.whole.used()
        const begun = begunTurn(thread)
        const ended = taskView(await endOf(threads, begun, context.request.signal))
        return Response.json(shaped(ended, { json, getter }))
      },
    }),
  ]
}

function invocationOf(form: z.output<typeof formSchema>, files: string[]): object {
  const { prompt = '', task_id, user_tokens } = form
  const others = Object.entries(form).filter(([field, value]) => !ownFields.has(field) && value !== undefined)
  const more = others.length === 0 ? '' : JSON.stringify(Object.fromEntries(others))
  const user = {
    ...(form.user_id ? { id: form.user_id } : {}),
    ...(form.user_email ? { email: form.user_email } : {}),
    ...(form.user_first_name ? { first_name: form.user_first_name } : {}),
    ...(form.user_last_name ? { last_name: form.user_last_name } : {}),
  }
  return {
    input: {
      text: [prompt, more].filter((part) => part !== '').join('\n\n'),
      files,
      ...(Object.keys(user).length > 0 ? { user } : {}),
    },
    ...(task_id ? { id: task_id } : {}),
    ...(user_tokens === undefined || user_tokens === ''
      ? {}
      : { user_tokens: typeof user_tokens === 'string' ? parseJson(user_tokens) : user_tokens }),
    disable_attachment_injection: form.disable_attachment_injection ?? false,
  }
}

/** Files come to the agent as `data:` addresses: there is no store of them here. */
async function readForm(headers: Headers, body: WholeBody): Promise<{ fields: JsonObject; files: string[] }> {
  const type = headers.get('content-type') ?? ''
  const bytes = await body.bytes(invocationBytesMax)
  if (!/^(multipart\/form-data|application\/x-www-form-urlencoded)/i.test(type)) {
    const text = new TextDecoder().decode(bytes)
    const value = text.trim() === '' ? {} : parseJson(text)
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new PlatformError('bad_request', 'body: must be an object')
    }
    const { files, ...fields } = value as JsonObject
    return { fields, files: Array.isArray(files) ? files.filter((file) => typeof file === 'string') : [] }
  }
  const form = await new Response(bytes as BodyInit, { headers: { 'content-type': type } })
    .formData()
    .catch((cause) => {
      throw new PlatformError('bad_request', 'body: is not the form that its Content-Type says', { cause })
    })
  const fields: JsonObject = {}
  const files: string[] = []
  let count = 0
  for (const [field, value] of form) {
    if (field === '__proto__') continue
    if (++count > fieldsMax) throw new PlatformError('bad_request', `body: more than ${fieldsMax} fields`)
    if (typeof value === 'string') {
      if (field === 'files') files.push(value)
      else fields[field] = value
      continue
    }
    if (files.length >= filesMax) throw new PlatformError('bad_request', `files: more than ${filesMax}`)
    const content = Buffer.from(await value.arrayBuffer()).toString('base64')
    files.push(`data:${value.type || 'application/octet-stream'};base64,${content}`)
  }
  return { fields, files }
}

/** With `json`, the result as what it says; with `getter`, a part of the answer alone. */
function shaped(
  task: JsonObject,
  { json, getter }: Pick<z.output<typeof formSchema>, 'json' | 'getter'>,
): Json {
  let whole: Json = task
  if (json === true && typeof task.result === 'string') {
    try {
      whole = { ...task, result: JSON.parse(task.result) as Json }
    } catch {
      // It is text.
    }
  }
  if (!getter) return whole
  let found: Json | undefined = whole
  for (const step of getter.split('.')) {
    if (typeof found === 'string') found = parsed(found)
    const isHeld = typeof found === 'object' && found !== null && Object.hasOwn(found, step)
    found = isHeld ? (found as JsonObject)[step] : undefined
  }
  return found ?? null
}

function parsed(text: string): Json | undefined {
  try {
    return JSON.parse(text) as Json
  } catch {
    return undefined
  }
}
