import { z } from 'zod'
import type { Clock } from '../../../lib/clock.ts'
import type { AgentNode, Capability, Nodes } from '../../../nodes/index.ts'
import { type Route, route } from '../../route.ts'
import { tag, timeText } from './wire.ts'

const limitDefault = 100
const limitMax = 1000

const flag = z.enum(['true', 'false', '1', '0']).optional()
const words = z.string().max(4096).optional()
const query = z.object({
  format: z.enum(['json', 'compact', 'xml']).optional(),
  agent: words,
  node_id: words,
  agent_ids: words,
  node_ids: words,
  reasoner: words,
  skill: words,
  tags: words,
  health_status: words,
  include_input_schema: flag,
  include_output_schema: flag,
  include_descriptions: flag,
  include_examples: flag,
  limit: z.coerce.number().int().min(1).max(limitMax).optional(),
  offset: z.coerce.number().int().min(0).optional(),
})
type Query = z.output<typeof query>

interface Found {
  node: AgentNode
  reasoners: Capability[]
  skills: Capability[]
}

/** What there is to call: `/api/v1/discovery/capabilities`, `/api/v1/reasoners`, `/api/v1/skills`. */
export function discoveryRoutes({ nodes, clock }: { nodes: Nodes; clock: Clock }): Route[] {
  const shared = { method: 'GET', access: 'read', errors: 'agentfield', tag, keyless: true } as const
  return [
    route({
      ...shared,
      path: '/api/v1/discovery/capabilities',
      summary: 'List what there is to call, as JSON, as a short list, or as XML',
      query,
      async handle({ workspace, query: asked, request }) {
        const found = filtered(await nodes.list(workspace), asked, nodes)
        const format =
          asked.format ?? (request.headers.get('accept')?.includes('application/xml') ? 'xml' : 'json')
        const at = timeText(clock.now())
        if (format === 'compact') return compactView(found, at)
        const { limit = limitDefault, offset = 0 } = asked
        const view = fullView(found, asked, { nodes, at, limit, offset })
        if (format === 'json') return view
        return new Response(xmlOf(view), { headers: { 'content-type': 'application/xml' } })
      },
    }),
    ...(['reasoners', 'skills'] as const).map((kind) =>
      route({
        ...shared,
        path: kind === 'reasoners' ? '/api/v1/reasoners' : '/api/v1/skills',
        summary: `List the ${kind} of all nodes`,
        async handle({ workspace }) {
          const all = (await nodes.list(workspace)).flatMap((node) =>
            node.body[kind].map((one) => ({
              id: one.id,
              reasoner_id: `${node.name}.${one.id}`,
              name: one.id,
              node_id: node.name,
              node_status: nodes.health(node),
              node_version: node.body.version,
              invocation_target: `${node.name}.${one.id}`,
              description: one.description ?? '',
              tags: one.tags,
              ...(one.inputSchema === undefined ? {} : { input_schema: one.inputSchema }),
              ...(one.outputSchema === undefined ? {} : { output_schema: one.outputSchema }),
              last_updated: timeText(node.updatedAt),
            })),
          )
          const online = new Set(all.filter((one) => one.node_status === 'active').map((one) => one.node_id))
          return { [kind]: all, total: all.length, online_count: online.size }
        },
      }),
    ),
  ]
}

function filtered(all: AgentNode[], asked: Query, nodes: Nodes): Found[] {
  const ids = new Set(
    [asked.agent, asked.node_id, asked.agent_ids, asked.node_ids].flatMap((text) => listOf(text)),
  )
  const tags = new Set(listOf(asked.tags))
  const isTagged = (own: readonly string[]) => tags.size === 0 || own.some((one) => tags.has(one))
  return all
    .filter((node) => ids.size === 0 || ids.has(node.name))
    .filter((node) => !asked.health_status || nodes.health(node) === asked.health_status.toLowerCase())
    .map((node) => {
      const isWhole = isTagged(node.body.tags)
      const isWanted = (name: string | undefined) => (one: Capability) =>
        (!name || matches(name, one.id)) && (isWhole || isTagged(one.tags))
      const { reasoners, skills } = node.body
      return {
        node,
        // Who names one kind is not told of the other.
        reasoners: asked.skill && !asked.reasoner ? [] : reasoners.filter(isWanted(asked.reasoner)),
        skills: asked.reasoner && !asked.skill ? [] : skills.filter(isWanted(asked.skill)),
      }
    })
    .filter(({ reasoners, skills }) => {
      const isFiltered = asked.reasoner || asked.skill || tags.size > 0
      return !isFiltered || reasoners.length + skills.length > 0
    })
}

/** A name, or one with `*` at its end or beginning. */
function matches(pattern: string, name: string): boolean {
  if (pattern.startsWith('*') && pattern.endsWith('*')) return name.includes(pattern.replaceAll('*', ''))
  if (pattern.endsWith('*')) return name.startsWith(pattern.slice(0, -1))
  if (pattern.startsWith('*')) return name.endsWith(pattern.slice(1))
  return name === pattern
}

function listOf(text: string | undefined): string[] {
  return (text ?? '').split(',').flatMap((word) => word.trim() || [])
}

function compactView(found: Found[], at: string) {
  const listed = (kind: 'reasoners' | 'skills') =>
    found.flatMap((one) =>
      one[kind].map(({ id, tags }) => ({
        id,
        agent_id: one.node.name,
        target: `${one.node.name}.${id}`,
        tags,
      })),
    )
  return { discovered_at: at, reasoners: listed('reasoners'), skills: listed('skills') }
}

function fullView(
  found: Found[],
  asked: Query,
  { nodes, at, limit, offset }: { nodes: Nodes; at: string; limit: number; offset: number },
) {
  const isOn = (value: Query['include_examples'], fallback: boolean) =>
    value === undefined ? fallback : value === 'true' || value === '1'
  const withInput = isOn(asked.include_input_schema, false)
  const withOutput = isOn(asked.include_output_schema, false)
  const withDescriptions = isOn(asked.include_descriptions, true)
  const withExamples = isOn(asked.include_examples, false)
  const view = (kind: 'reasoners' | 'skills', node: AgentNode, one: Capability) => ({
    id: one.id,
    ...(withDescriptions && one.description !== undefined ? { description: one.description } : {}),
    tags: one.tags,
    ...(withInput && one.inputSchema !== undefined ? { input_schema: one.inputSchema } : {}),
    ...(kind === 'reasoners' && withOutput && one.outputSchema !== undefined
      ? { output_schema: one.outputSchema }
      : {}),
    ...(withExamples && one.examples !== undefined ? { examples: one.examples } : {}),
    invocation_target: `${node.name}.${one.id}`,
  })
  return {
    discovered_at: at,
    total_agents: found.length,
    total_reasoners: found.reduce((sum, { reasoners }) => sum + reasoners.length, 0),
    total_skills: found.reduce((sum, { skills }) => sum + skills.length, 0),
    pagination: { limit, offset, has_more: offset + limit < found.length },
    capabilities: found.slice(offset, offset + limit).map(({ node, reasoners, skills }) => ({
      agent_id: node.name,
      base_url: node.body.baseUrl,
      version: node.body.version,
      health_status: nodes.health(node),
      deployment_type: node.body.deploymentType,
      last_heartbeat: timeText(nodes.lastHeardAt(node)),
      reasoners: reasoners.map((one) => view('reasoners', node, one)),
      skills: skills.map((one) => view('skills', node, one)),
    })),
  }
}

function xmlOf(view: ReturnType<typeof fullView>): string {
  const listed = (kind: 'reasoner' | 'skill', all: (typeof view.capabilities)[number]['reasoners']) =>
    all.map((one) => {
      const inner = [
        ...(one.description === undefined ? [] : [`<description>${escaped(one.description)}</description>`]),
        `<tags>${one.tags.map((text) => `<tag>${escaped(text)}</tag>`).join('')}</tags>`,
        ...(one.input_schema === undefined
          ? []
          : [`<input_schema>${escaped(JSON.stringify(one.input_schema))}</input_schema>`]),
        ...(one.output_schema === undefined
          ? []
          : [`<output_schema>${escaped(JSON.stringify(one.output_schema))}</output_schema>`]),
      ]
      return `<${kind}${attributes({ id: one.id, target: one.invocation_target })}>${inner.join('')}</${kind}>`
    })
  const agents = view.capabilities.map(
    ({
      agent_id: id,
      base_url,
      version,
      health_status,
      deployment_type,
      last_heartbeat,
      reasoners,
      skills,
    }) =>
      `<agent${attributes({ id, base_url, version, health_status, deployment_type, last_heartbeat })}>` +
      `<reasoners>${listed('reasoner', reasoners).join('')}</reasoners>` +
      `<skills>${listed('skill', skills).join('')}</skills></agent>`,
  )
  const summary = attributes({
    total_agents: String(view.total_agents),
    total_reasoners: String(view.total_reasoners),
    total_skills: String(view.total_skills),
  })
  return (
    `<?xml version="1.0" encoding="UTF-8"?>\n<discovery${attributes({ discovered_at: view.discovered_at })}>` +
    `<summary${summary}/><capabilities>${agents.join('')}</capabilities></discovery>\n`
  )
}

function attributes(values: Record<string, string>): string {
  return Object.entries(values)
    .map(([name, value]) => ` ${name}="${escaped(value)}"`)
    .join('')
}

function escaped(text: string): string {
  const names: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }
  let whole = ''
  // What XML has no way to write is left out.
  for (const sign of text) if (sign >= ' ' || sign === '\n' || sign === '\t') whole += names[sign] ?? sign
  return whole
}
