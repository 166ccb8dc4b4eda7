import { PlatformError } from '../errors.ts'
import { type BatchStep, findLimitMax, type Store } from '../spec/store.ts'
import type { Identity } from './principals.ts'
import type { Tokens } from './tokens.ts'

/**
 * What programs inside send where a client wants a key, and no secret: it stands for whoever the connection itself says
 * it is, and for nobody on any other connection.
 */
export const workloadKey = 'hutch-workload'

const workloadTokenLifetimeMsMax = 24 * 60 * 60 * 1000
const workloadIssuer = 'http://hutch.internal'

export interface WorkloadToken {
  instanceId: string
  workspace: string
  resource: { kind: string; name: string }
  /** Frozen with the first token of the instance. */
  labels: Record<string, string>
  ttlMs: number
}

interface WorkloadBody {
  resource: { kind: string; name: string }
  labels: Record<string, string>
}

/** Identities of instances. A token counts only while the record of its instance exists. */
export class Workloads {
  readonly #store: Store
  readonly #tokens: Tokens
  readonly #changed: () => void

  constructor(options: { store: Store; tokens: Tokens; changed: () => void }) {
    this.#store = options.store
    this.#tokens = options.tokens
    this.#changed = options.changed
  }

  /** @throws bad_request for a lifetime out of bounds */
  async mint(input: WorkloadToken): Promise<string> {
    if (!(input.ttlMs >= 1000 && input.ttlMs <= workloadTokenLifetimeMsMax)) {
      throw new PlatformError(
        'bad_request',
        `ttlMs: ${input.ttlMs} is not in 1000..${workloadTokenLifetimeMsMax}`,
      )
    }
    const key = { kind: 'workload', workspace: input.workspace, name: input.instanceId }
    if ((await this.#store.get(key)) === null) {
      const body: WorkloadBody = { resource: input.resource, labels: input.labels }
      await this.#store.create({
        ...key,
        body,
        indexes: { instance: input.instanceId, workspace: input.workspace },
      })
    }
    return this.#tokens.sign({
      sub: input.instanceId,
      subType: 'workload',
      workspace: input.workspace,
      issuer: workloadIssuer,
      lifetimeMs: input.ttlMs,
    })
  }

  /** Every token of the instance stops working before this resolves. Idempotent. */
  async revoke(instanceId: string): Promise<void> {
    const found = await this.#store.find({
      kind: 'workload',
      index: 'instance',
      value: instanceId,
      limit: 10,
    })
    for (const { kind, workspace, name } of found) await this.#store.remove({ kind, workspace, name })
    this.#changed()
  }

  /** Steps that take the identities of all instances of a workspace away. */
  async removalSteps(workspace: string): Promise<BatchStep[]> {
    const found = await this.#store.find({
      kind: 'workload',
      workspace,
      index: 'workspace',
      value: workspace,
      limit: findLimitMax,
    })
    return found.map(({ name }) => ({ op: 'remove', key: { kind: 'workload', workspace, name } }))
  }

  /** Null once the instance is gone. */
  async identity(instanceId: string, workspace: string): Promise<Identity | null> {
    const found = await this.#store.get<WorkloadBody>({ kind: 'workload', workspace, name: instanceId })
    if (found === null) return null
    const { resource, labels } = found.body
    const principal = {
      kind: 'workload' as const,
      id: instanceId,
      name: resource.name,
      workspace,
      resource,
      labels,
    }
    return { kind: 'workload', principal }
  }
}
