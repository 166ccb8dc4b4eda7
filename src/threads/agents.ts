/** Whom turns are for: agents that are deployed here, and those that only have workers elsewhere. */
import type { Deployments, StoredDeployment } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import { everyItem, type Resource, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'

const kind = 'worker_agent'
/** Of one workspace. */
const registeredMax = 1000
const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/

export interface RegisteredAgent {
  createdBy: string
}

export interface Agent {
  id: string
  createdAt: number
  createdBy: string
  /** Null: its workers are all there is of it. */
  deployment: StoredDeployment | null
}

export class Agents {
  readonly #store: Store
  readonly #deployments: Pick<Deployments, 'find' | 'list'>

  constructor(options: { store: Store; deployments: Pick<Deployments, 'find' | 'list'> }) {
    this.#store = options.store
    this.#deployments = options.deployments
  }

  async find(workspace: string, id: string): Promise<Agent | null> {
    if (!namePattern.test(id)) return null
    const deployment = await this.#deployments.find(workspace, 'agent', id)
    if (deployment !== null && deployment.body.state !== 'deleting') return deployed(deployment)
    const registered = await this.#store.get<RegisteredAgent>({ kind, workspace, name: id })
    return registered === null ? null : registeredAgent(registered)
  }

  /** @throws not_found */
  async require(workspace: string, id: string): Promise<Agent> {
    const found = await this.find(workspace, id)
    if (found !== null) return found
    throw new PlatformError(
      'not_found',
      `there is no agent "${id.slice(0, 80)}" in the workspace "${workspace}": deploy it, or start a worker of it`,
    )
  }

  async list(workspace: string): Promise<Agent[]> {
    const found = new Map<string, Agent>()
    for await (const registered of this.#registered(workspace)) {
      found.set(registered.name, registeredAgent(registered))
    }
    const deployments = everyItem((page) => this.#deployments.list(workspace, 'agent', page))
    for await (const deployment of deployments) {
      if (deployment.body.state !== 'deleting') {
        found.set(deployment.name, deployed(deployment as StoredDeployment))
      }
    }
    return [...found.values()].sort((left, right) => right.createdAt - left.createdAt)
  }

  /** One that a worker came for. @throws bad_request, usage_limit_exceeded */
  async register(workspace: string, id: string, createdBy: string): Promise<Agent> {
    const known = await this.find(workspace, id)
    if (known !== null) return known
    if (!namePattern.test(id)) {
      throw new PlatformError(
        'bad_request',
        `agent_id: "${id.slice(0, 80)}" is not the id of an agent: up to 128 letters, digits and . _ -`,
      )
    }
    const total = await this.#store.count({ kind, workspace })
    if (total >= registeredMax) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `this workspace has ${total} agents that only have workers, the most there can be: delete one first`,
      )
    }
    try {
      const [, made] = await this.#store.batch([
        inWorkspace(workspace),
        { op: 'create', input: { kind, workspace, name: id, body: { createdBy } } },
      ])
      return registeredAgent(made as Resource<RegisteredAgent>)
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'already_exists') return await this.require(workspace, id)
      throw error
    }
  }

  /** One that a worker came for once. False: there is none; what is deployed is not deleted here. */
  async forget(workspace: string, id: string): Promise<boolean> {
    return namePattern.test(id) && (await this.#store.remove({ kind, workspace, name: id }))
  }

  async removalSteps(workspace: string) {
    const steps: { op: 'remove'; key: { kind: string; workspace: string; name: string } }[] = []
    for await (const { name } of this.#registered(workspace)) {
      steps.push({ op: 'remove', key: { kind, workspace, name } })
    }
    return steps
  }

  #registered(workspace: string): AsyncIterable<Resource<RegisteredAgent>> {
    return everyItem((page) => this.#store.page<RegisteredAgent>({ kind, workspace, ...page }))
  }
}

function deployed(deployment: StoredDeployment): Agent {
  const { name, createdAt, body } = deployment
  return { id: name, createdAt, createdBy: body.createdBy, deployment }
}

function registeredAgent({ name, createdAt, body }: Resource<RegisteredAgent>): Agent {
  return { id: name, createdAt, createdBy: body.createdBy, deployment: null }
}
