import { PlatformError } from '../errors.ts'
import { type BatchStep, batchStepsMax, type Resource, type Store } from '../spec/store.ts'
import { requireWorkspaceName, workspaceNameRefusal } from './names.ts'
import { memberCreation, type Users } from './users.ts'

export { isReservedWorkspaceName, workspaceNameLengthMax } from './names.ts'
export { type Member, type MemberRole, type User, Users } from './users.ts'

export interface Workspace {
  id: string
  name: string
  displayName: string
  labels: Record<string, string>
  /** '' unless the client that created it sent one. */
  region: string
  createdBy: string
  updatedBy: string
  createdAt: number
  updatedAt: number
}

type WorkspaceBody = Pick<Workspace, 'displayName' | 'labels' | 'region' | 'createdBy' | 'updatedBy'>

export interface Availability {
  available: boolean
  /** '' when available. */
  reason: string
  message: string
}

/** The tenants. Every other resource belongs to one. */
export class Workspaces {
  readonly users: Users
  readonly #store: Store
  readonly #heldKinds: string[]
  readonly #ownedSteps: ((workspace: string) => Promise<BatchStep[]>)[] = []

  /** `heldKinds`: kinds of resources that keep their workspace from being deleted while any is left. */
  constructor(options: { store: Store; users: Users; heldKinds: string[] }) {
    this.#store = options.store
    this.users = options.users
    this.#heldKinds = options.heldKinds
  }

  /** Steps that go into the batch which deletes a workspace, for records that have no life without it. */
  onDelete(steps: (workspace: string) => Promise<BatchStep[]>): void {
    this.#ownedSteps.push(steps)
  }

  /** The creator becomes its admin. @throws bad_request, already_exists */
  async create(input: {
    name: string
    displayName?: string
    labels?: Record<string, string>
    region?: string
    ownerSub: string
  }): Promise<Workspace> {
    requireWorkspaceName(input.name)
    const body: WorkspaceBody = {
      displayName: input.displayName ?? input.name,
      labels: input.labels ?? {},
      region: input.region ?? '',
      createdBy: input.ownerSub,
      updatedBy: input.ownerSub,
    }
    try {
      const [created] = await this.users.whileRoom(input.ownerSub, () =>
        this.#store.batch([
          { op: 'create', input: { kind: 'workspace', workspace: '', name: input.name, body } },
          memberCreation(input.name, input.ownerSub, 'admin'),
        ]),
      )
      return workspaceOf(created as Resource<WorkspaceBody>)
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'already_exists') {
        throw new PlatformError('already_exists', `Workspace "${input.name}" already exists`, {
          cause: error,
        })
      }
      throw error
    } finally {
      this.users.changedElsewhere()
    }
  }

  /** @throws workspace_not_found */
  async get(name: string): Promise<Workspace> {
    return workspaceOf(await this.#read(name))
  }

  /** What a user belongs to. */
  async namesOf(userSub: string): Promise<string[]> {
    return [...(await this.users.rolesOf(userSub)).keys()]
  }

  /** Those of `names` that exist, in the order of the names. */
  async list(names: Iterable<string>): Promise<Workspace[]> {
    const found = await Promise.all(
      [...names]
        .sort()
        .map((name) => this.#store.get<WorkspaceBody>({ kind: 'workspace', workspace: '', name })),
    )
    return found.filter((resource) => resource !== null).map(workspaceOf)
  }

  /** @throws workspace_not_found, version_mismatch */
  async update(
    name: string,
    change: { displayName?: string; labels?: Record<string, string>; updatedBy: string },
  ): Promise<Workspace> {
    const found = await this.#read(name)
    const body: WorkspaceBody = {
      ...found.body,
      ...(change.displayName !== undefined && { displayName: change.displayName }),
      ...(change.labels !== undefined && { labels: change.labels }),
      updatedBy: change.updatedBy,
    }
    return workspaceOf(await this.#store.update(keyOf(name), found.version, { body }))
  }

  /** @throws workspace_not_found, conflict while it still holds resources */
  async delete(name: string): Promise<Workspace> {
    const deleted = await this.users.whileUnchanged(name, () => this.#delete(name))
    this.users.changedElsewhere()
    return deleted
  }

  async #delete(name: string): Promise<Workspace> {
    const found = await this.#read(name)
    const counts = await this.counts(name)
    const held = Object.entries(counts).filter(([, count]) => count > 0)
    if (held.length > 0) {
      const what = held.map(([kind, count]) => `${count} ${kind}`).join(', ')
      throw new PlatformError('conflict', `Workspace "${name}" still holds ${what}: delete them first`)
    }
    const owned = await Promise.all(this.#ownedSteps.map((steps) => steps(name)))
    const steps = owned.flat()
    for (let at = 0; at < steps.length; at += batchStepsMax) {
      await this.#store.batch(steps.slice(at, at + batchStepsMax))
    }
    // Roles go together with the name: a new workspace of this name must not find them. Whatever its version is by
    // now: what it owned is gone.
    await this.#store.batch([{ op: 'remove', key: keyOf(name) }, ...(await this.users.removalSteps(name))])
    return workspaceOf(found)
  }

  /** How many resources of each held kind the workspace has; the keys are plural, as in the API. */
  async counts(name: string): Promise<Record<string, number>> {
    const pages = await Promise.all(
      this.#heldKinds.map((kind) => this.#store.page({ kind, workspace: name, limit: 1 })),
    )
    return Object.fromEntries(this.#heldKinds.map((kind, at) => [plural(kind), pages[at]?.total ?? 0]))
  }

  async availability(name: string): Promise<Availability> {
    const refusal = workspaceNameRefusal(name)
    if (refusal !== null) return { available: false, ...refusal }
    if ((await this.#store.get(keyOf(name))) !== null) {
      return { available: false, reason: 'taken', message: `name: "${name}" is taken` }
    }
    return { available: true, reason: '', message: '' }
  }

  async #read(name: string): Promise<Resource<WorkspaceBody>> {
    const found = await this.#store.get<WorkspaceBody>(keyOf(name))
    if (found === null) throw new PlatformError('workspace_not_found', `Workspace "${name}" not found`)
    return found
  }
}

function keyOf(name: string) {
  return { kind: 'workspace', workspace: '', name }
}

function plural(kind: string): string {
  return kind.endsWith('x') ? `${kind.replaceAll('_', '')}es` : `${kind.replaceAll('_', '')}s`
}

function workspaceOf(resource: Resource<WorkspaceBody>): Workspace {
  const { id, name, createdAt, updatedAt, body } = resource
  return { id, name, ...body, createdAt, updatedAt }
}
