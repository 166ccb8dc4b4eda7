import { z } from 'zod'
import type { Principal } from '../../../access/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Dialer } from '../../../lib/dialer.ts'
import { isLoopbackHost } from '../../../lib/loopback.ts'
import {
  type AgentNode,
  type Capability,
  type Lifecycle,
  leaseMs,
  lifecycles,
  type Nodes,
  type Registrant,
  type ReplacedProcess,
} from '../../../nodes/index.ts'
import { readBytes } from '../../body.ts'
import { type Route, route } from '../../route.ts'
import { refuseStrangers } from './strangers.ts'
import { tag, timeText } from './wire.ts'

const capabilitiesMax = 1000
const candidatesMax = 32
const registrationBytesMax = 2 * 1024 * 1024
const addressCharactersMax = 2048
const tagsMax = 256
const tagCharactersMax = 256
/** Of all addresses that a node offers: a name that nobody knows an answer for holds up no more than that. */
const resolveMsMax = 2_000
/** Of deployments whose instances are called one by one. */
const callableKinds = ['agent', 'function', 'application'] as const

const text = z.string().max(4096)
const address = z.string().max(addressCharactersMax).nullish()
const addresses = z.array(z.string().max(addressCharactersMax)).nullish()
const tags = z.array(z.string().max(tagCharactersMax)).max(tagsMax).nullish()
const capability = z.lazy(() =>
  z.object({
    id: z.string().min(1).max(256),
    description: z.string().nullish(),
    input_schema: z.unknown().optional(),
    output_schema: z.unknown().optional(),
    examples: z.unknown().optional(),
    tags,
    proposed_tags: tags,
  }),
)
const capabilities = z.array(capability).max(capabilitiesMax).nullish()

const registration = z.lazy(() =>
  z.object({
    id: z.string(),
    base_url: address,
    callback_url: address,
    invocation_url: address,
    team_id: text.nullish(),
    version: text.nullish(),
    deployment_type: text.nullish(),
    instance_id: z.string().max(256).nullish(),
    lifecycle_status: z.string().nullish(),
    reasoners: capabilities,
    skills: capabilities,
    proposed_tags: tags,
    tags,
    callback_discovery: z
      .object({
        preferred: address,
        candidates: addresses,
        callback_candidates: addresses,
      })
      .nullish(),
    communication_config: z.record(z.string(), z.unknown()).nullish(),
    features: z.unknown().optional(),
    metadata: z.unknown().optional(),
    sessions: z.unknown().optional(),
  }),
)

export interface NodeRouteOptions {
  nodes: Nodes
  /** Whether there is an agent of this name that is deployed, whoever calls itself so. */
  isDeployed: (workspace: string, name: string) => boolean
  dialer: Pick<Dialer, 'check'>
  clock: Clock
  /** A process is gone, and what it was doing with it. */
  replaced: (workspace: string, nodeId: string, process: ReplacedProcess) => Promise<void>
}

/** Nodes register, tell that they live, and say goodbye: `/api/v1/nodes`. */
export function nodeRoutes({ nodes, isDeployed, dialer, clock, replaced }: NodeRouteOptions): Route[] {
  const shared = { errors: 'agentfield', tag, keyless: true } as const
  const register = async (context: {
    workspace: string
    principal: Principal | null
    body: z.output<typeof registration>
  }) => {
    const { workspace, principal, body } = context
    const offered = addressesOf(body)
    const loopback = principal?.kind !== 'workload'
    const deployed = deploymentOf(principal)
    if (deployed !== null && body.id !== deployed.name && isDeployed(workspace, body.id)) {
      throw new PlatformError(
        'conflict',
        `id: "${body.id}" is the name of another agent that is deployed here`,
      )
    }
    const baseUrl = deployed ? (offered[0] ?? '') : await firstThatMayBeDialled(offered, dialer, loopback)
    const registrant: Registrant = deployed
      ? { at: 'deployment', ...deployed, port: portOf(baseUrl) }
      : { at: 'address', loopback }
    const { node, replaced: gone } = await nodes.register(
      workspace,
      body.id,
      {
        baseUrl,
        processId: body.instance_id ?? '',
        version: body.version ?? '',
        deploymentType: body.deployment_type || 'long_running',
        teamId: body.team_id || 'default',
        reasoners: (body.reasoners ?? []).map(capabilityOf),
        skills: (body.skills ?? []).map(capabilityOf),
        tags: [...(body.tags ?? []), ...(body.proposed_tags ?? [])],
        lifecycle: lifecycleOf(body.lifecycle_status) ?? 'starting',
        heartbeatMs: intervalMsOf(body.communication_config?.heartbeat_interval),
        described: {
          communication_config: body.communication_config ?? {},
          features: body.features ?? {},
          metadata: body.metadata ?? {},
          sessions: body.sessions ?? [],
        },
      },
      registrant,
    )
    if (gone !== null) await replaced(workspace, node.name, gone)
    return {
      success: true,
      message: 'Node registered successfully',
      node_id: node.name,
      resolved_base_url: baseUrl,
      callback_discovery: {
        mode: deployed ? 'instance' : 'first',
        preferred: offered[0] ?? baseUrl,
        resolved: baseUrl,
        candidates: offered,
      },
    }
  }
  const registering = (path: '/api/v1/nodes' | '/api/v1/nodes/register') =>
    route({
      ...shared,
      method: 'POST',
      path,
      access: 'deployed',
      summary: 'Register a node, with what it does and where it is called',
      body: registration,
      bodyBytesMax: registrationBytesMax,
      successStatus: 201,
      handle: register,
    })
  const renewing = (
    method: 'PATCH' | 'PUT',
    path: '/api/v1/nodes/{nodeId}/status' | '/api/v1/nodes/{nodeId}/health',
  ) =>
    route({
      ...shared,
      method,
      path,
      access: 'deployed',
      summary: 'Say how a node is; counts for five minutes',
      body: z.object({
        phase: z.string().nullish(),
        status: z.string().nullish(),
        health_score: z.int().min(0).max(100).nullish(),
      }),
      async handle({ workspace, principal, params, body }) {
        const phase = body.phase ?? body.status
        const lifecycle = lifecycleOf(phase)
        if (phase && lifecycle === null) {
          throw new PlatformError(
            'bad_request',
            `phase: "${phase.slice(0, 40)}" is not one of ${lifecycles.join(', ')}`,
          )
        }
        await refuseStrangers(principal, workspace, params.nodeId, nodes)
        const { until } = await nodes.renew(workspace, params.nodeId, {
          ...(lifecycle === null ? {} : { lifecycle }),
          ...(body.health_score == null ? {} : { healthScore: body.health_score }),
          instanceId: deploymentOf(principal)?.instanceId ?? null,
        })
        return { lease_seconds: leaseMs / 1000, next_lease_renewal: timeText(until) }
      },
    })
  return [
    registering('/api/v1/nodes/register'),
    registering('/api/v1/nodes'),
    renewing('PATCH', '/api/v1/nodes/{nodeId}/status'),
    renewing('PUT', '/api/v1/nodes/{nodeId}/health'),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/nodes/{nodeId}/heartbeat',
      access: 'deployed',
      summary: 'Say that a node lives',
      async handle({ workspace, principal, params, request }) {
        const said = await heartbeatIn(request)
        await refuseStrangers(principal, workspace, params.nodeId, nodes)
        const { replaced: gone } = await nodes.heartbeat(workspace, params.nodeId, {
          ...said,
          instanceId: deploymentOf(principal)?.instanceId ?? null,
        })
        if (gone !== null) await replaced(workspace, params.nodeId, gone)
        return { success: true, message: 'heartbeat received', timestamp: timeText(clock.now()) }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/nodes/{nodeId}/shutdown',
      access: 'deployed',
      summary: 'Say that a node stops',
      successStatus: 202,
      async handle({ workspace, principal, params }) {
        await refuseStrangers(principal, workspace, params.nodeId, nodes)
        await nodes.shutDown(workspace, params.nodeId, deploymentOf(principal)?.instanceId ?? null)
        return {
          lease_seconds: 0,
          next_lease_renewal: timeText(clock.now()),
          message: 'shutdown acknowledged',
        }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/nodes',
      access: 'read',
      summary: 'List the nodes',
      query: z.object({ health_status: z.string().optional(), team_id: z.string().optional() }),
      async handle({ workspace, query }) {
        const all = await nodes.list(workspace)
        const found = all.filter(
          (node) =>
            (query.team_id === undefined || node.body.teamId === query.team_id) &&
            (query.health_status === undefined || nodes.health(node) === query.health_status),
        )
        return { nodes: found.map((node) => nodeView(node, nodes)), count: found.length }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/nodes/{nodeId}',
      access: 'read',
      summary: 'Get a node',
      handle: async ({ workspace, params }) => nodeView(await nodes.get(workspace, params.nodeId), nodes),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/api/v1/nodes/{nodeId}',
      access: 'write',
      summary: 'Forget a node',
      async handle({ workspace, params }) {
        await nodes.get(workspace, params.nodeId)
        await nodes.remove(workspace, params.nodeId)
        return { success: true, message: 'node removed', node_id: params.nodeId }
      },
    }),
  ]
}

/** Of which deployment, and which instance of it, a request comes; null for a user's. @throws forbidden */
function deploymentOf(
  principal: Principal | null,
): { kind: (typeof callableKinds)[number]; name: string; instanceId: string } | null {
  if (principal?.kind !== 'workload') return null
  const kind = callableKinds.find((one) => one === principal.resource.kind)
  if (kind !== undefined) return { kind, name: principal.resource.name, instanceId: principal.id }
  throw new PlatformError(
    'forbidden',
    `a ${principal.resource.kind} cannot be a node: only what answers requests can`,
  )
}

function addressesOf(body: z.output<typeof registration>): string[] {
  const discovery = body.callback_discovery
  const offered = [
    ...(body.deployment_type === 'serverless' ? [body.invocation_url] : []),
    body.base_url,
    body.callback_url,
    body.invocation_url,
    discovery?.preferred,
    ...(discovery?.candidates ?? []),
    ...(discovery?.callback_candidates ?? []),
  ].flatMap((offer) => withoutLastSlashes(offer?.trim() ?? '') || [])
  return [...new Set(offered)].slice(0, candidatesMax)
}

function withoutLastSlashes(text: string): string {
  let length = text.length
  while (text[length - 1] === '/') length--
  return text.slice(0, length)
}

/**
 * A program offers every address that it might be reached by, first the one it likes best; of the others, this machine's
 * own are the surest. @throws bad_request, with what is wrong with the first
 */
async function firstThatMayBeDialled(
  offered: string[],
  dialer: Pick<Dialer, 'check'>,
  loopback: boolean,
): Promise<string> {
  const [first, ...others] = offered
  if (first === undefined) {
    throw new PlatformError('bad_request', 'base_url: missing: the address where the node is called')
  }
  const isHere = (address: string) => isLoopbackHost(URL.parse(address)?.host ?? '')
  const ordered = [first, ...others.filter(isHere), ...others.filter((address) => !isHere(address))]
  const signal = AbortSignal.timeout(resolveMsMax)
  let refusal: unknown
  for (const address of ordered) {
    try {
      await dialer.check(address, { what: 'base_url', loopback, signal })
      return address
    } catch (error) {
      refusal ??= error
    }
  }
  throw refusal
}

function portOf(address: string): number {
  const url = URL.parse(address)
  if (url === null) return 0
  return url.port === '' ? 0 : Number(url.port)
}

function capabilityOf(given: z.output<typeof capability>): Capability {
  return {
    id: given.id,
    tags: [...new Set([...(given.tags ?? []), ...(given.proposed_tags ?? [])])],
    ...(given.description ? { description: given.description } : {}),
    ...(given.input_schema === undefined ? {} : { inputSchema: given.input_schema }),
    ...(given.output_schema === undefined ? {} : { outputSchema: given.output_schema }),
    ...(given.examples === undefined ? {} : { examples: given.examples }),
  }
}

function lifecycleOf(said: string | null | undefined): Lifecycle | null {
  const word = said?.trim().toLowerCase()
  return lifecycles.find((one) => one === word) ?? null
}

/** Of texts such as 2s; null for what says nothing. */
function intervalMsOf(said: unknown): number | null {
  const match = /^(\d{1,4})(ms|s|m)$/.exec(typeof said === 'string' ? said : '')
  if (match === null) return null
  return Number(match[1]) * { ms: 1, s: 1000, m: 60_000 }[match[2] as 'ms' | 's' | 'm']
}

const heartbeatBytesMax = 64 * 1024
const heartbeatBody = z.lazy(() =>
  z.object({
    status: z.string().nullish(),
    health_score: z.number().nullish(),
    instance_id: z.string().max(256).nullish(),
  }),
)

/** Older clients send nothing, and a sign of life counts whatever is written on it. */
async function heartbeatIn(request: Request): Promise<{ lifecycle?: Lifecycle; processId?: string }> {
  const bytes = await readBytes(request, heartbeatBytesMax)
  let said: unknown
  try {
    said = JSON.parse(new TextDecoder().decode(bytes))
  } catch {}
  const { data } = heartbeatBody.safeParse(said)
  const lifecycle = lifecycleOf(data?.status)
  return {
    ...(lifecycle === null ? {} : { lifecycle }),
    ...(data?.instance_id ? { processId: data.instance_id } : {}),
  }
}

function nodeView(node: AgentNode, nodes: Nodes) {
  const { body } = node
  return {
    id: node.name,
    team_id: body.teamId,
    base_url: body.baseUrl,
    version: body.version,
    deployment_type: body.deploymentType,
    instance_id: body.processId,
    reasoners: body.reasoners.map(capabilityView),
    skills: body.skills.map(capabilityView),
    proposed_tags: body.tags,
    ...body.described,
    health_status: nodes.health(node),
    lifecycle_status: body.lifecycle,
    ...(body.healthScore === null ? {} : { health_score: body.healthScore }),
    last_heartbeat: timeText(nodes.lastHeardAt(node)),
    registered_at: timeText(body.registeredAt),
  }
}

function capabilityView({ id, description, tags, inputSchema, outputSchema }: Capability) {
  return {
    id,
    ...(description === undefined ? {} : { description }),
    tags,
    ...(inputSchema === undefined ? {} : { input_schema: inputSchema }),
    ...(outputSchema === undefined ? {} : { output_schema: outputSchema }),
  }
}
