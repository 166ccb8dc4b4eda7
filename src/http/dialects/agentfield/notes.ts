import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import type { ExecutionNote, Nodes, Notes } from '../../../nodes/index.ts'
import type { Logs } from '../../../telemetry/index.ts'
import { type Route, route } from '../../route.ts'
import { requireExecution } from './lookup.ts'
import { refuseStrangers } from './strangers.ts'
import { tag, wordsOf } from './wire.ts'

const noteCharactersMax = 16 * 1024
const tagsMax = 64
const tagCharactersMax = 256
const logEntriesMax = 1000
const logLinesMax = 1000
const logNameCharactersMax = 100

export interface NoteRouteOptions {
  executions: Executions
  nodes: Nodes
  notes: Notes
  logs: Logs
}

/** What agents write down and log beside what they do. */
export function noteRoutes({ executions, nodes, notes, logs }: NoteRouteOptions): Route[] {
  const shared = { errors: 'agentfield', tag, keyless: true } as const
  const require = (workspace: string, id: string) => requireExecution(executions, workspace, id)
  return [
    ...(['/api/v1/executions/note', '/api/ui/v1/executions/note'] as const).map((path) =>
      route({
        ...shared,
        method: 'POST',
        path,
        access: 'deployed',
        summary: 'Write something down beside an execution',
        body: z.object({
          message: z.string().trim().min(1).max(noteCharactersMax),
          tags: z.array(z.string().max(tagCharactersMax)).max(tagsMax).nullish(),
        }),
        async handle({ workspace, principal, request, url, body }) {
          const id = request.headers.get('x-execution-id') || url.searchParams.get('execution_id')
          if (!id)
            throw new PlatformError('bad_request', 'X-Execution-ID: missing: which execution is it of?')
          const { message, tags } = body
          const execution = require(workspace, id)
          await refuseStrangers(principal, workspace, execution.target.name, nodes)
          const note = await notes.add(workspace, execution.id, { message, tags: tags ?? [] })
          return { success: true, note: noteView(note), message: 'Note added successfully' }
        },
      }),
    ),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}/notes',
      access: 'read',
      summary: 'List what was written down beside an execution',
      query: z.object({ tags: z.string().optional() }),
      async handle({ workspace, params, query }) {
        const { id } = require(workspace, params.executionId)
        const wanted = wordsOf(query.tags)
        const all = await notes.list(workspace, id)
        const found = all.filter(
          ({ tags }) => wanted.length === 0 || tags.some((one) => wanted.includes(one.trim().toLowerCase())),
        )
        return { execution_id: params.executionId, notes: found.map(noteView), total: found.length }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/logs',
      access: 'deployed',
      summary: 'Keep lines that an agent logs while it works on an execution',
      body: z.object({ entries: z.array(z.unknown()).max(logEntriesMax) }),
      async handle({ workspace, principal, params, body }) {
        const execution = require(workspace, params.executionId)
        await refuseStrangers(principal, workspace, execution.target.name, nodes)
        const source = { ...logOf(execution), stream: 'stdout' } as const
        for (const entry of body.entries)
          logs.append(source, typeof entry === 'string' ? entry : JSON.stringify(entry))
        return { success: true, accepted: body.entries.length }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}/logs',
      access: 'read',
      summary: 'List what an agent logged while it worked on an execution, the oldest first',
      async handle({ workspace, params, request }) {
        const { instance, ...workload } = logOf(require(workspace, params.executionId))
        const { lines } = await logs.query(workload, { instance, limit: logLinesMax }, request.signal)
        return {
          execution_id: params.executionId,
          entries: lines.toReversed().map(({ message }) => entryOf(message)),
        }
      },
    }),
  ]
}

function noteView({ message, tags, at }: ExecutionNote) {
  return { message, tags, timestamp: new Date(at).toISOString() }
}

/** Beside the logs of an agent that is deployed, which has the same lines in its own output. */
function logOf({ workspace, id, target }: Execution) {
  // Workloads whose lines are kept have plainer names than agents give themselves and what they call.
  const agent = target.name
    .slice(0, logNameCharactersMax)
    .toLowerCase()
    .replace(/[^a-z0-9_-]/g, '-')
  const name = `${/^[a-z0-9]/.test(agent) ? '' : 'n'}${agent}.executions`
  const instance = id
    .slice(id.lastIndexOf('/') + 1)
    .replace(/[^\w.:-]/g, '-')
    .slice(0, 128)
  return { workspace, kind: 'agents', name, instance } as const
}

function entryOf(message: string): unknown {
  try {
    return JSON.parse(message)
  } catch {
    return { message }
  }
}
