import { PlatformError } from '../errors.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { type BatchStep, batchStepsMax, type Resource, type Store } from '../spec/store.ts'
import { workspaceKey } from './key.ts'
import { requireWorkspaceName, workspaceNameRefusal } from './names.ts'
import { memberCreation, type Users } from './users.ts'

export { inWorkspace } from './key.ts'
export { isReservedWorkspaceName } from './names.ts'
export { type Member, type User, Users } from './users.ts'

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
  /** By who asks: two deletions at once do not take the last two workspaces. */
  readonly #deletions = new KeyedLock()

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
      // Not while one of this name is deleted, whose leftovers are cleared away.
      const [created] = await this.users.whileUnchanged(input.name, () =>
        this.users.whileRoom(input.ownerSub, () =>
          this.#store.batch([
            { op: 'create', input: { ...workspaceKey(input.name), body } },
            memberCreation(input.name, input.ownerSub, 'admin'),
          ]),
        ),
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
      [...names].sort().map((name) => this.#store.get<WorkspaceBody>(workspaceKey(name))),
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
    return workspaceOf(await this.#store.update(workspaceKey(name), found.version, { body }))
  }

  /**
   * With all that belongs to it. `askedBy`: the user or service account that must be left with another workspace; null
   * when nobody has to.
   * @throws workspace_not_found, conflict while it still holds resources and for the only one of who asks
   */
  async delete(name: string, askedBy: string | null): Promise<Workspace> {
    const remove = () => this.users.whileUnchanged(name, () => this.#delete(name))
    const deleted =
      askedBy === null
        ? await remove()
        : await this.#deletions.run(askedBy, async () => {
            await this.#requireAnother(name, askedBy)
            return await remove()
          })
    this.users.changedElsewhere()
    return deleted
  }

  async #requireAnother(name: string, sub: string): Promise<void> {
    const reached = await this.namesOf(sub)
    if (reached.some((other) => other !== name)) return
    throw new PlatformError(
      'conflict',
      `Workspace "${name}" is the only one that this credential reaches: without it nothing can be made, not even ` +
        'keys. Create another first, or force the deletion',
    )
  }

  async #delete(name: string): Promise<Workspace> {
    const found = await this.#read(name)
    const counts = await this.counts(name)
    const held = Object.entries(counts).filter(([, count]) => count > 0)
    if (held.length > 0) {
      const what = held.map(([kind, count]) => `${kind}: ${count}`).join(', ')
      throw new PlatformError('conflict', `Workspace "${name}" is not empty (${what}): delete these first`)
    }
    await this.#removeOwned(name)
    // Roles go together with the name: a new workspace of this name must not find them. Whatever its version is by
    // now: what it owned is gone.
    await this.#store.batch([
      ...this.#heldKinds.map((kind) => ({ op: 'requireNone', kind, workspace: name }) as const),
      { op: 'remove', key: workspaceKey(name) },
      ...(await this.users.removalSteps(name)),
    ])
    // What came in between. Nothing can come any more, since it would require the workspace.
    await this.#removeOwned(name)
    return workspaceOf(found)
  }

  async #removeOwned(name: string): Promise<void> {
    const owned = await Promise.all(this.#ownedSteps.map((steps) => steps(name)))
    const steps = owned.flat()
    for (let at = 0; at < steps.length; at += batchStepsMax) {
      await this.#store.batch(steps.slice(at, at + batchStepsMax))
    }
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
    if ((await this.#store.get(workspaceKey(name))) !== null) {
      return { available: false, reason: 'taken', message: `name: "${name}" is taken` }
    }
    return { available: true, reason: '', message: '' }
  }

  async #read(name: string): Promise<Resource<WorkspaceBody>> {
    const found = await this.#store.get<WorkspaceBody>(workspaceKey(name))
    if (found === null) throw new PlatformError('workspace_not_found', `Workspace "${name}" not found`)
    return found
  }
}

function plural(kind: string): string {
  return kind.endsWith('x') ? `${kind.replaceAll('_', '')}es` : `${kind.replaceAll('_', '')}s`
}

function workspaceOf(resource: Resource<WorkspaceBody>): Workspace {
  const { id, name, createdAt, updatedAt, body } = resource
  return { id, name, ...body, createdAt, updatedAt }
}
