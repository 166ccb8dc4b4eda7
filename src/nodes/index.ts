/** Programs that registered themselves to be called: agents of AgentField, wherever they run. */
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { removalOf } from '../spec/journal.ts'
import { type BatchStep, everyItem, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import {
  type AgentNode,
  checkNodeId,
  type Lifecycle,
  type NodeBody,
  type NodeMember,
  type NodePlace,
  nodeKind,
  unknownNode,
} from './record.ts'

export { type ExecutionNote, Notes } from './notes.ts'
export { type AgentNode, type Capability, type Lifecycle, lifecycles } from './record.ts'

/** Read at once: descriptions may be long. */
const readMax = 20
/** In a workspace. */
const nodesMax = 1000
/** Of what all nodes of a workspace say of themselves: lists have it in memory. */
const nodesBytesMax = 32 * 1024 * 1024
/** Instances of a deployment that are remembered as a node's; the platform finds others. */
const membersMax = 64
/** Without a sign of life, until a node counts as away: so long, or thrice what it says lies between two. */
const silenceMsMax = 15_000
const heartbeatsMissed = 3
/** How long a status that is told once counts. */
export const leaseMs = 300_000

export type NodeRegistration = Pick<
  NodeBody,
  | 'baseUrl'
  | 'processId'
  | 'version'
  | 'deploymentType'
  | 'teamId'
  | 'reasoners'
  | 'skills'
  | 'tags'
  | 'lifecycle'
  | 'heartbeatMs'
  | 'described'
>

/** Who registers: somebody who names an address, or an instance of something deployed. */
export type Registrant =
  | { at: 'address'; loopback: boolean }
  | {
      at: 'deployment'
      kind: 'agent' | 'function' | 'application'
      name: string
      instanceId: string
      port: number
    }

/** A process that is gone, since another one has its place. */
export interface ReplacedProcess {
  processId: string
  /** Of the instance it ran in; null: at an address. */
  instanceId: string | null
}

export interface SignOfLife {
  lifecycle?: Lifecycle
  healthScore?: number
  processId?: string
  instanceId: string | null
}

export type NodeHealth = 'active' | 'inactive' | 'degraded'

export class Nodes {
  readonly #store: Store
  readonly #clock: Clock
  readonly #lock = new KeyedLock()
  /** When each was heard of; in memory alone, so that a sign of life costs no write. */
  readonly #heard = new Map<string, number>()
  readonly #leases = new Map<string, number>()
  readonly #openedAt: number
  /** Of each node of a workspace that somebody registered in: what it says of itself. */
  readonly #bytes = new Map<string, Promise<Map<string, number>>>()

  constructor({ store, clock }: { store: Store; clock: Clock }) {
    this.#store = store
    this.#clock = clock
    this.#openedAt = clock.now()
  }

  /**
   * Durable once it resolves. What runs here registers only names that are its own: nobody else's node, and no agent's that
   * is deployed under that name, which may take over a node of its name that shut down. @throws bad_request, conflict, usage_limit_exceeded
   */
  async register(
    workspace: string,
    id: string,
    asked: NodeRegistration,
    registrant: Registrant,
  ): Promise<{ node: AgentNode; replaced: ReplacedProcess | null }> {
    checkNodeId(id)
    return await this.#lock.run(keyOf(workspace, id), async () => {
      const existing = await this.find(workspace, id)
      if (existing === null) await this.#admit(workspace)
      else refuseTakeover(existing, registrant)
      const giveBack = await this.#takeRoom(workspace, id, asked)
      const { place, replaced } = taken(existing, asked, registrant)
      const body: NodeBody = {
        ...asked,
        place,
        healthScore: null,
        registeredAt: existing?.body.registeredAt ?? this.#clock.now(),
      }
      const key = { kind: nodeKind, workspace, name: id }
      try {
        const [node] = await this.#store.batch([
          existing === null
            ? { op: 'create', input: { ...key, body } }
            : { op: 'update', key, expectedVersion: existing.version, change: { body } },
          inWorkspace(workspace),
        ])
        this.#heard.set(keyOf(workspace, id), this.#clock.now())
        return { node: node as AgentNode, replaced }
      } catch (error) {
        giveBack()
        throw error
      }
    })
  }

  /**
   * A sign of life; what it says of itself is written when it is news. `instanceId`: of the instance that says it, null for
   * one elsewhere. @throws not_found
   */
  async heartbeat(
    workspace: string,
    id: string,
    said: SignOfLife,
  ): Promise<{ replaced: ReplacedProcess | null }> {
    const { body } = await this.get(workspace, id)
    this.#heard.set(keyOf(workspace, id), this.#clock.now())
    const known = knownProcess(body, said.instanceId)
    const { lifecycle = body.lifecycle, healthScore = body.healthScore, processId = '' } = said
    const isNew = known !== null && processId !== '' && processId !== known
    if (!isNew && lifecycle === body.lifecycle && healthScore === body.healthScore) return { replaced: null }
    await this.#change(workspace, id, (current) => ({
      ...(isNew ? withProcess(current, said.instanceId, processId) : current),
      lifecycle,
      healthScore,
    }))
    const gone = isNew && isOther(known, processId)
    return { replaced: gone ? { processId: known, instanceId: said.instanceId } : null }
  }

  /** As `heartbeat`, and counts for `leaseMs`. @throws not_found */
  async renew(workspace: string, id: string, said: SignOfLife): Promise<{ until: number }> {
    await this.heartbeat(workspace, id, said)
    const until = this.#clock.now() + leaseMs
    this.#leases.set(keyOf(workspace, id), until)
    return { until }
  }

  /** It said that it stops; it is known until it registers again or is removed. @throws not_found */
  async shutDown(workspace: string, id: string, instanceId: string | null): Promise<void> {
    const key = keyOf(workspace, id)
    await this.#change(workspace, id, (body) => {
      const { place } = body
      // One instance of several that goes is not the end of the node, and the platform starts others.
      if (place.at === 'deployment')
        return { ...body, place: { ...place, members: without(place.members, instanceId) } }
      this.#heard.delete(key)
      this.#leases.delete(key)
      return { ...body, lifecycle: 'offline' }
    })
  }

  /** An instance is gone: it is not asked for again. */
  async forgetMember(workspace: string, id: string, instanceId: string): Promise<void> {
    await this.#change(workspace, id, (body) => {
      const { place } = body
      if (place.at !== 'deployment') return body
      return { ...body, place: { ...place, members: without(place.members, instanceId) } }
    })
  }

  /** False when there was none. */
  async remove(workspace: string, id: string): Promise<boolean> {
    const removed = await this.#store.remove({ kind: nodeKind, workspace, name: id })
    this.#heard.delete(keyOf(workspace, id))
    this.#leases.delete(keyOf(workspace, id))
    ;(await this.#bytes.get(workspace))?.delete(id)
    return removed
  }

  /** @throws not_found */
  async get(workspace: string, id: string): Promise<AgentNode> {
    const found = await this.find(workspace, id)
    if (found === null) throw unknownNode(id)
    return found
  }

  async find(workspace: string, id: string): Promise<AgentNode | null> {
    return await this.#store.get<NodeBody>({ kind: nodeKind, workspace, name: id })
  }

  /** By name. */
  async list(workspace: string): Promise<AgentNode[]> {
    return await Array.fromAsync(this.#every(workspace))
  }

  #every(workspace: string): AsyncIterable<AgentNode> {
    return everyItem((page) =>
      this.#store.page<NodeBody>({ kind: nodeKind, workspace, sort: 'name:asc', ...page, limit: readMax }),
    )
  }

  /** Of every workspace: those that are instances of something deployed. */
  async *deployedHere(): AsyncGenerator<AgentNode> {
    const all = everyItem((page) => this.#store.page<NodeBody>({ kind: nodeKind, ...page, limit: readMax }))
    for await (const node of all) if (node.body.place.at === 'deployment') yield node
  }

  health({ workspace, name, body }: AgentNode): NodeHealth {
    if (body.lifecycle === 'offline') return 'inactive'
    // What is started for each call, here or elsewhere, may well be silent in between.
    const isStarted = body.place.at === 'deployment' || body.deploymentType === 'serverless'
    const isHere = isStarted || this.#isHeardOf(workspace, name, body)
    if (!isHere) return 'inactive'
    return body.lifecycle === 'degraded' ? 'degraded' : 'active'
  }

  /** The platform's own start counts as one: it heard nothing before. */
  lastHeardAt({ workspace, name, createdAt }: AgentNode): number {
    return this.#heard.get(keyOf(workspace, name)) ?? Math.max(this.#openedAt, createdAt)
  }

  /** Steps that remove all of a workspace. */
  removal(workspace: string): Promise<BatchStep[]> {
    this.#bytes.delete(workspace)
    return removalOf(this.#store, [nodeKind], workspace)
  }

  #isHeardOf(workspace: string, id: string, body: NodeBody): boolean {
    const now = this.#clock.now()
    const heard = this.#heard.get(keyOf(workspace, id)) ?? this.#openedAt
    const silenceMs = Math.max(silenceMsMax, heartbeatsMissed * (body.heartbeatMs ?? 0))
    return now - heard <= silenceMs || now < (this.#leases.get(keyOf(workspace, id)) ?? 0)
  }

  #change(workspace: string, id: string, change: (body: NodeBody) => NodeBody): Promise<AgentNode> {
    return this.#lock.run(keyOf(workspace, id), async () => {
      const { version, body } = await this.get(workspace, id)
      const key = { kind: nodeKind, workspace, name: id }
      return await this.#store.update<NodeBody>(key, version, { body: change(body) })
    })
  }

  /** For what a node says of itself from now on; call what it answers when that is not written. @throws usage_limit_exceeded */
  async #takeRoom(workspace: string, id: string, asked: NodeRegistration): Promise<() => void> {
    const known = this.#bytes.get(workspace) ?? this.#bytesOf(workspace)
    this.#bytes.set(workspace, known)
    known.catch(() => this.#bytes.delete(workspace))
    const sizes = await known
    const before = sizes.get(id) ?? 0
    const bytes = bytesOf(asked)
    const others = sizes.values().reduce((sum, size) => sum + size, 0) - before
    if (others + bytes > nodesBytesMax && bytes > before) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `what the nodes of this workspace say of themselves is ${others + bytes} bytes of JSON with this one, at most ${nodesBytesMax} are kept: remove some first, or describe less`,
      )
    }
    sizes.set(id, bytes)
    return () => sizes.set(id, before)
  }

  async #bytesOf(workspace: string): Promise<Map<string, number>> {
    const sizes = new Map<string, number>()
    for await (const { name, body } of this.#every(workspace)) sizes.set(name, bytesOf(body))
    return sizes
  }

  /** @throws usage_limit_exceeded */
  async #admit(workspace: string): Promise<void> {
    const { total } = await this.#store.page({ kind: nodeKind, workspace, limit: 1 })
    if (total < nodesMax) return
    throw new PlatformError(
      'usage_limit_exceeded',
      `this workspace has ${total} nodes, the most there can be: remove some first`,
    )
  }
}

/** As it rests, near enough: what the platform itself adds is little. */
function bytesOf({ reasoners, skills, tags, described }: NodeRegistration): number {
  return Buffer.byteLength(JSON.stringify([reasoners, skills, tags, described]))
}

function keyOf(workspace: string, id: string): string {
  return `${workspace}/${id}`
}

/** @throws conflict */
function refuseTakeover(existing: AgentNode, registrant: Registrant): void {
  if (registrant.at === 'address') return
  const { place } = existing.body
  const isOwn = place.at === 'deployment' && place.kind === registrant.kind && place.name === registrant.name
  // Before it was deployed another program called itself so, or it was tried elsewhere, where it said that it stops.
  const isItsName = registrant.kind === 'agent' && registrant.name === existing.name
  const isFree = place.at === 'deployment' || existing.body.lifecycle === 'offline'
  if (isOwn || (isItsName && isFree)) return
  throw new PlatformError(
    'conflict',
    `id: the node "${existing.name}" was registered by somebody else: remove it first, or use another name`,
  )
}

/** Where the node is from now on, and which process is gone by that. */
function taken(
  existing: AgentNode | null,
  asked: NodeRegistration,
  registrant: Registrant,
): { place: NodePlace; replaced: ReplacedProcess | null } {
  const before = existing?.body ?? null
  const { processId } = asked
  if (registrant.at === 'address') {
    const gone = before?.place.at === 'address' && isOther(before.processId, processId)
    return { place: registrant, replaced: gone ? { processId: before.processId, instanceId: null } : null }
  }
  const { kind, name, instanceId, port } = registrant
  const isSame = before?.place.at === 'deployment' && before.place.kind === kind && before.place.name === name
  const known = isSame && before.place.at === 'deployment' ? before.place.members : []
  const earlier = known.find((member) => member.instanceId === instanceId)
  const gone = earlier !== undefined && isOther(earlier.processId, processId)
  const members = [...without(known, instanceId), { instanceId, port, processId }].slice(-membersMax)
  return {
    place: { at: 'deployment', kind, name, members },
    replaced: gone ? { processId: earlier.processId, instanceId } : null,
  }
}

/** Null: not one that is known of this node. */
function knownProcess({ place, processId }: NodeBody, instanceId: string | null): string | null {
  if (place.at === 'address') return instanceId === null ? processId : null
  return place.members.find((member) => member.instanceId === instanceId)?.processId ?? null
}

function withProcess(body: NodeBody, instanceId: string | null, processId: string): NodeBody {
  const { place } = body
  if (place.at === 'address') return { ...body, processId }
  const members = place.members.map((member) =>
    member.instanceId === instanceId ? { ...member, processId } : member,
  )
  return { ...body, place: { ...place, members } }
}

/** Who does not say which process it is is taken for the same. */
function isOther(before: string, now: string): boolean {
  return before !== '' && now !== '' && before !== now
}

function without(members: NodeMember[], instanceId: string | null): NodeMember[] {
  return members.filter((member) => member.instanceId !== instanceId)
}
