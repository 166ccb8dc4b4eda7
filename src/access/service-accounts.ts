import { PlatformError } from '../errors.ts'
import { randomText } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { BatchStep, Resource, Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { type ApiKeys, type Secrets, sameText } from './keys.ts'
import type { Role } from './principals.ts'

export interface ServiceAccount {
  clientId: string
  workspace: string
  name: string
  description: string
  role: Role
  createdAt: number
  updatedAt: number
}

interface NewServiceAccount {
  name: string
  description?: string
  role?: Role
}

interface CreatedServiceAccount {
  account: ServiceAccount
  clientSecret: string
}

interface ServiceAccountBody {
  name: string
  description: string
  role: Role
  sealedSecret: string
}

const serviceAccountsPerWorkspaceMax = 200

/** Machine identities, each of exactly one workspace. */
export class ServiceAccounts {
  readonly #store: Store
  readonly #secrets: Secrets
  readonly #keys: ApiKeys
  readonly #changed: () => void
  readonly #ownedSteps: ((owner: { sub: string; workspace: string }) => Promise<BatchStep[]>)[] = []

  /** By workspace: as with keys. */
  readonly #creating = new KeyedLock()

  constructor(options: { store: Store; secrets: Secrets; keys: ApiKeys; changed: () => void }) {
    this.#store = options.store
    this.#secrets = options.secrets
    this.#keys = options.keys
    this.#changed = options.changed
  }

  /** Steps that go into the batch which deletes an account, for records that have no life without it. */
  onDelete(steps: (owner: { sub: string; workspace: string }) => Promise<BatchStep[]>): void {
    this.#ownedSteps.push(steps)
  }

  /** The secret is in this answer only. @throws conflict for more than a workspace may have */
  async create(workspace: string, input: NewServiceAccount): Promise<CreatedServiceAccount> {
    return await this.#creating.run(workspace, () => this.#create(workspace, input))
  }

  async #create(workspace: string, input: NewServiceAccount): Promise<CreatedServiceAccount> {
    if ((await this.list(workspace)).length >= serviceAccountsPerWorkspaceMax) {
      throw new PlatformError(
        'conflict',
        `Workspace "${workspace}" has ${serviceAccountsPerWorkspaceMax} service accounts, the most allowed`,
      )
    }
    const clientId = `sa_${randomText(20)}`
    const clientSecret = `bls_${randomText(48)}`
    const body: ServiceAccountBody = {
      name: input.name,
      description: input.description ?? '',
      role: input.role ?? 'member',
      sealedSecret: this.#secrets.seal(clientSecret, `service_account:${clientId}`),
    }
    const indexes = { clientId, workspace, secretHash: this.#secrets.lookupHash(clientSecret) }
    const [created] = await this.#store.batch([
      { op: 'create', input: { ...keyOf(workspace, clientId), body, indexes } },
      inWorkspace(workspace),
    ])
    return { account: serviceAccountOf(created as Resource<ServiceAccountBody>), clientSecret }
  }

  /** Newest first. */
  async list(workspace: string): Promise<ServiceAccount[]> {
    const found = await this.#store.find<ServiceAccountBody>({
      kind: 'service_account',
      workspace,
      index: 'workspace',
      value: workspace,
      limit: serviceAccountsPerWorkspaceMax,
    })
    return found.map(serviceAccountOf)
  }

  /** @throws not_found */
  async get(workspace: string, clientId: string): Promise<ServiceAccount> {
    return serviceAccountOf(await this.#read(workspace, clientId))
  }

  /** @throws not_found, version_mismatch */
  async update(
    workspace: string,
    clientId: string,
    change: { name?: string; description?: string; role?: Role },
  ): Promise<ServiceAccount> {
    const found = await this.#read(workspace, clientId)
    const body: ServiceAccountBody = {
      ...found.body,
      ...(change.name !== undefined && { name: change.name }),
      ...(change.description !== undefined && { description: change.description }),
      ...(change.role !== undefined && { role: change.role }),
    }
    const updated = await this.#store.update(keyOf(workspace, clientId), found.version, { body })
    this.#changed()
    return serviceAccountOf(updated)
  }

  /** Its keys and tokens stop working before this resolves. @throws not_found */
  async delete(workspace: string, clientId: string): Promise<ServiceAccount> {
    const found = await this.#read(workspace, clientId)
    await this.#store.batch(await this.#removalOf(workspace, clientId))
    this.#changed()
    return serviceAccountOf(found)
  }

  /** Steps that remove every service account of a workspace with its keys. */
  async removalSteps(workspace: string): Promise<BatchStep[]> {
    const accounts = await this.list(workspace)
    const steps = await Promise.all(accounts.map(({ clientId }) => this.#removalOf(workspace, clientId)))
    return steps.flat()
  }

  /** In whatever workspace; null when there is none. */
  async find(clientId: string): Promise<ServiceAccount | null> {
    const [found] = await this.#find(clientId)
    return found === undefined ? null : serviceAccountOf(found)
  }

  /** The account whose client id and secret these are, or null. */
  async verify(clientId: string, clientSecret: string): Promise<ServiceAccount | null> {
    const [found] = await this.#find(clientId)
    const presented = this.#secrets.lookupHash(clientSecret)
    if (!sameText(found?.indexes.secretHash ?? '', presented) || found === undefined) return null
    return serviceAccountOf(found)
  }

  #find(clientId: string): Promise<Resource<ServiceAccountBody>[]> {
    return this.#store.find({ kind: 'service_account', index: 'clientId', value: clientId, limit: 1 })
  }

  async #removalOf(workspace: string, clientId: string): Promise<BatchStep[]> {
    const owner = { sub: clientId, workspace }
    const owned = await Promise.all(this.#ownedSteps.map((steps) => steps(owner)))
    return [
      { op: 'remove', key: keyOf(workspace, clientId) },
      ...(await this.#keys.removalSteps(owner)),
      ...owned.flat(),
    ]
  }

  async #read(workspace: string, clientId: string): Promise<Resource<ServiceAccountBody>> {
    const found = await this.#store.get<ServiceAccountBody>(keyOf(workspace, clientId))
    if (found === null) {
      throw new PlatformError('not_found', `Service account "${clientId.slice(0, 64)}" not found`)
    }
    return found
  }
}

function keyOf(workspace: string, clientId: string) {
  return { kind: 'service_account', workspace, name: clientId }
}

function serviceAccountOf(resource: Resource<ServiceAccountBody>): ServiceAccount {
  const { workspace, createdAt, updatedAt, body } = resource
  const { name, description, role } = body
  return { clientId: resource.name, workspace, name, description, role, createdAt, updatedAt }
}
