import { timingSafeEqual } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { parseDuration } from '../lib/duration.ts'
import { randomText } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { BatchStep, Resource, Store } from '../spec/store.ts'

/** What access needs of the store's secret box. */
export interface Secrets {
  lookupHash(secret: string): string
  seal(plain: string, associatedData: string): string
  deriveKey(purpose: string): Uint8Array
}

export type AccountKind = 'user' | 'service_account'

export interface ApiKey {
  id: string
  name: string
  sub: string
  subType: AccountKind
  /** '' for a user's key, which reaches every workspace of the user. */
  workspace: string
  /** `bl_****` and the last four characters. */
  masked: string
  expiresIn: string | null
  /** Milliseconds since the epoch; null: never. */
  expiresAt: number | null
  lastUsedAt: number | null
  createdBy: string
  createdAt: number
  updatedAt: number
}

interface ApiKeyBody {
  name: string
  sub: string
  subType: AccountKind
  last4: string
  expiresIn: string | null
  expiresAt: number | null
  lastUsedAt: number | null
  createdBy: string
  /** The key itself under the master key; only for service accounts, whose keys sign S3 requests too. */
  sealed?: string
}

interface NewApiKey {
  sub: string
  subType: AccountKind
  workspace: string
  name?: string
  expiresIn?: string
  createdBy: string
}

const keyPattern = /^bl_[0-9a-z]{48}$/
export const apiKeysPerAccountMax = 100
const lastUsedWriteIntervalMs = 60 * 60 * 1000

/** True for anything shaped like one of our keys, valid or not: such a text is never passed on. */
export function looksLikeApiKey(text: string): boolean {
  return keyPattern.test(text)
}

/** API keys of users and service accounts. The key itself exists only in the answer of `create`. */
export class ApiKeys {
  readonly #store: Store
  readonly #secrets: Secrets
  readonly #clock: Clock
  readonly #log: Logger
  readonly #changed: () => void
  readonly #lastUsedWrites = new Map<string, Promise<void>>()
  /** By owner: what goes with an owner is all there is, so a limit must not be passed by two at once. */
  readonly #creating = new KeyedLock()

  constructor(options: { store: Store; secrets: Secrets; clock: Clock; log: Logger; changed: () => void }) {
    this.#store = options.store
    this.#secrets = options.secrets
    this.#clock = options.clock
    this.#log = options.log
    this.#changed = options.changed
  }

  /** @throws conflict for more than an account may have */
  async create(input: NewApiKey): Promise<{ apiKey: ApiKey; key: string }> {
    return await this.#creating.run(input.sub, () => this.#create(input))
  }

  async #create(input: NewApiKey): Promise<{ apiKey: ApiKey; key: string }> {
    const held = await this.list(input)
    if (held.length >= apiKeysPerAccountMax) {
      throw new PlatformError(
        'conflict',
        `${input.sub} already has ${apiKeysPerAccountMax} API keys, the most allowed: revoke one first`,
      )
    }
    const key = `bl_${randomText(48)}`
    const id = `ak_${randomText(16)}`
    const now = this.#clock.now()
    const body: ApiKeyBody = {
      name: input.name ?? '',
      sub: input.sub,
      subType: input.subType,
      last4: key.slice(-4),
      expiresIn: input.expiresIn ?? null,
      expiresAt: input.expiresIn === undefined ? null : now + parseDuration('expires_in', input.expiresIn),
      lastUsedAt: null,
      createdBy: input.createdBy,
      ...(input.subType === 'service_account' && { sealed: this.#secrets.seal(key, `api_key:${id}`) }),
    }
    const resource = await this.#store.create<ApiKeyBody>({
      kind: 'api_key',
      workspace: input.workspace,
      name: id,
      body,
      indexes: { hash: this.#secrets.lookupHash(key), sub: input.sub },
    })
    return { apiKey: apiKeyOf(resource), key }
  }

  /** Newest first. */
  async list(owner: { sub: string; workspace: string }): Promise<ApiKey[]> {
    const found = await this.#store.find<ApiKeyBody>({
      kind: 'api_key',
      workspace: owner.workspace,
      index: 'sub',
      value: owner.sub,
      limit: apiKeysPerAccountMax,
    })
    return found.map(apiKeyOf)
  }

  /** Whether a key of this owner is there and has not expired. */
  async isValid(owner: { sub: string; workspace: string }, id: string): Promise<boolean> {
    const found = await this.#store.get<ApiKeyBody>({
      kind: 'api_key',
      workspace: owner.workspace,
      name: id,
    })
    if (found === null || found.body.sub !== owner.sub) return false
    return found.body.expiresAt === null || found.body.expiresAt > this.#clock.now()
  }

  /** The key stops working before this resolves. @throws not_found also for a key of somebody else */
  async revoke(owner: { sub: string; workspace: string }, id: string): Promise<void> {
    const key = { kind: 'api_key', workspace: owner.workspace, name: id }
    const found = await this.#store.get<ApiKeyBody>(key)
    if (found === null || found.body.sub !== owner.sub) {
      throw new PlatformError('not_found', `API key "${id.slice(0, 64)}" not found`)
    }
    await this.#store.remove(key)
    this.#changed()
  }

  /** Steps that remove every key of an owner, to go with the owner in one batch. */
  async removalSteps(owner: { sub: string; workspace: string }): Promise<BatchStep[]> {
    const keys = await this.list(owner)
    return keys.map(({ id }) => ({
      op: 'remove',
      key: { kind: 'api_key', workspace: owner.workspace, name: id },
    }))
  }

  /** The record of a presented key, expired ones included; null when there is none. `hash` is its lookup hash. */
  async lookup(hash: string): Promise<ApiKey | null> {
    const [found] = await this.#store.find<ApiKeyBody>({
      kind: 'api_key',
      index: 'hash',
      value: hash,
      limit: 1,
    })
    if (found === undefined || !sameText(found.indexes.hash ?? '', hash)) return null
    return apiKeyOf(found)
  }

  /** Notes a use, writing at most once an hour a key and never in the way of the request. */
  noteUse(apiKey: ApiKey): void {
    const now = this.#clock.now()
    const last = apiKey.lastUsedAt
    if (last !== null && now - last < lastUsedWriteIntervalMs && now >= last) return
    if (this.#lastUsedWrites.has(apiKey.id)) return
    apiKey.lastUsedAt = now
    const write = this.#writeLastUsed(apiKey, now).finally(() => this.#lastUsedWrites.delete(apiKey.id))
    this.#lastUsedWrites.set(apiKey.id, write)
  }

  /** Resolves when no write is under way. */
  async settled(): Promise<void> {
    await Promise.all(this.#lastUsedWrites.values())
  }

  async #writeLastUsed(apiKey: ApiKey, now: number): Promise<void> {
    const key = { kind: 'api_key', workspace: apiKey.workspace, name: apiKey.id }
    try {
      const found = await this.#store.get<ApiKeyBody>(key)
      if (found === null) return
      await this.#store.update<ApiKeyBody>(key, found.version, { body: { ...found.body, lastUsedAt: now } })
    } catch (error) {
      // A key revoked or used elsewhere at the same moment: the next use notes it again.
      this.#log.debug('the last use of an API key was not noted', { keyId: apiKey.id, error })
    }
  }
}

/** Compares in a time that does not depend on where the texts differ. */
export function sameText(left: string, right: string): boolean {
  const a = Buffer.from(left)
  const b = Buffer.from(right)
  return a.length === b.length && timingSafeEqual(a, b)
}

function apiKeyOf(resource: Resource<ApiKeyBody>): ApiKey {
  const { body } = resource
  return {
    id: resource.name,
    name: body.name,
    sub: body.sub,
    subType: body.subType,
    workspace: resource.workspace,
    masked: `bl_****${body.last4}`,
    expiresIn: body.expiresIn,
    expiresAt: body.expiresAt,
    lastUsedAt: body.lastUsedAt,
    createdBy: body.createdBy,
    createdAt: resource.createdAt,
    updatedAt: resource.updatedAt,
  }
}
