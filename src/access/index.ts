import { PlatformError } from '../errors.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Store } from '../spec/store.ts'
import type { Users, Workspaces } from '../workspaces/index.ts'
import { type Approver, DeviceLogins } from './device-logins.ts'
import { type AccountKind, type ApiKey, ApiKeys, type Secrets } from './keys.ts'
import { Oauth } from './oauth.ts'
import type { Identity } from './principals.ts'
import { ServiceAccounts } from './service-accounts.ts'
import { Tokens } from './tokens.ts'
import { Workloads, type WorkloadToken } from './workloads.ts'

export { deviceLoginIntervalMs, deviceLoginLifetimeMs } from './device-logins.ts'
export { FirstCredentials } from './first-credentials.ts'
export { type ApiKey, type ApiKeys, apiKeysPerAccountMax, looksLikeApiKey, type Secrets } from './keys.ts'
export { refreshTokenLifetimeMs, type TokenRequest } from './oauth.ts'
export {
  accountPrincipal,
  type Identity,
  type Principal,
  principalIn,
  roles,
  workspacesOf,
} from './principals.ts'
export type { ServiceAccount } from './service-accounts.ts'
export { accessTokenLifetimeMs } from './tokens.ts'
export { workloadKey } from './workloads.ts'

/** Verified credentials kept in memory. */
const verifiedCredentialsMax = 10_000
/** Longer than any credential we issue; a longer text is refused before it is hashed. */
const credentialCharactersMax = 4096
/** Kinds whose changes can take a right away. */
const watchedKinds = ['api_key', 'user', 'member', 'service_account', 'workload']

interface Verified {
  identity: Identity
  /** Milliseconds since the epoch; Infinity: never. */
  expiresAt: number
  apiKey: ApiKey | null
}

export interface AccessOptions {
  store: Store
  secrets: Secrets
  users: Users
  workspaces: Workspaces
  clock: Clock
  log: Logger
}

/** Who is who: credentials to identities, and everything that issues or revokes credentials. */
export class Access implements AsyncDisposable {
  readonly keys: ApiKeys
  readonly serviceAccounts: ServiceAccounts
  readonly oauth: Oauth
  readonly devices: DeviceLogins
  readonly #tokens: Tokens
  readonly #workloads: Workloads
  readonly #users: Users
  readonly #secrets: Secrets
  readonly #clock: Clock
  readonly #log: Logger
  readonly #closing = new AbortController()
  readonly #watches: Promise<void>[]
  /**
   * By the credential itself: a hash of it would cost each request more than anything else does here, and who reads this
   * memory reads the master key.
   */
  readonly #verified = new BoundedMap<string, Verified>(verifiedCredentialsMax)
  /** Counts invalidations: what was read before one must not be kept after it. */
  #generation = 0

  private constructor(options: AccessOptions, tokens: Tokens) {
    const { store, secrets, clock, log } = options
    const changed = () => this.#forget()
    this.#tokens = tokens
    this.#users = options.users
    this.#secrets = secrets
    this.#clock = clock
    this.#log = log
    this.keys = new ApiKeys({ store, secrets, clock, log, changed })
    this.serviceAccounts = new ServiceAccounts({ store, secrets, keys: this.keys, changed })
    this.devices = new DeviceLogins({ secrets, clock })
    this.oauth = new Oauth({
      ...{ store, secrets, clock, tokens },
      serviceAccounts: this.serviceAccounts,
      keys: this.keys,
      devices: this.devices,
    })
    this.#workloads = new Workloads({ store, tokens, changed })
    this.serviceAccounts.onDelete((owner) => this.oauth.removalSteps(owner))
    options.workspaces.onDelete((workspace) => this.serviceAccounts.removalSteps(workspace))
    options.workspaces.onDelete((workspace) => this.#workloads.removalSteps(workspace))
    options.users.onChange(changed)
    this.#watches = watchedKinds.map((kind) => this.#watch(store, kind))
  }

  static async open(options: AccessOptions): Promise<Access> {
    return new Access(options, await Tokens.open(options))
  }

  /** Whose credential this is. @throws authentication_failed */
  authenticate(credential: string): Identity | Promise<Identity> {
    if (credential.length > credentialCharactersMax) {
      throw new PlatformError(
        'authentication_failed',
        'The credential is too long to be one of this platform',
      )
    }
    const known = this.#verified.get(credential)
    if (known !== undefined && known.expiresAt > this.#clock.now()) return this.#use(known)
    return this.#load(credential)
  }

  /** The user whose API key this is. @throws authentication_failed; forbidden for whoever is no user */
  async approver(key: string): Promise<Approver> {
    const identity = await this.authenticate(key)
    const apiKey = await this.keys.lookup(this.#secrets.lookupHash(key))
    if (identity.kind !== 'user' || apiKey === null) {
      throw new PlatformError('forbidden', 'Only the API key of a user approves a login')
    }
    return { sub: identity.id, keyId: apiKey.id }
  }

  /** A short-lived credential of an instance. */
  mintWorkloadToken(input: WorkloadToken): Promise<string> {
    return this.#workloads.mint(input)
  }

  /** To be called when an instance is gone; idempotent. */
  revokeWorkloadTokens(instanceId: string): Promise<void> {
    return this.#workloads.revoke(instanceId)
  }

  /** Public keys to verify access tokens with. */
  jwks(): { keys: object[] } {
    return this.#tokens.jwks()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    await Promise.all(this.#watches)
    await this.keys.settled()
  }

  async #load(credential: string): Promise<Identity> {
    const generation = this.#generation
    const verified = credential.startsWith('bl_')
      ? await this.#verifyApiKey(this.#secrets.lookupHash(credential))
      : await this.#verifyToken(credential)
    if (generation === this.#generation) this.#verified.set(credential, verified)
    return this.#use(verified)
  }

  #use(verified: Verified): Identity {
    if (verified.apiKey !== null) this.keys.noteUse(verified.apiKey)
    return verified.identity
  }

  async #verifyApiKey(hash: string): Promise<Verified> {
    const apiKey = await this.keys.lookup(hash)
    if (apiKey === null) throw new PlatformError('authentication_failed', 'The API key is not valid')
    if (apiKey.expiresAt !== null && apiKey.expiresAt <= this.#clock.now()) {
      throw new PlatformError('authentication_failed', `API key ${apiKey.id} has expired`)
    }
    const identity = await this.#account(apiKey.subType, apiKey.sub)
    return { identity, expiresAt: apiKey.expiresAt ?? Number.POSITIVE_INFINITY, apiKey }
  }

  async #verifyToken(token: string): Promise<Verified> {
    const { sub, subType, workspace, expiresAt } = await this.#tokens.verify(token)
    if (subType !== 'workload') {
      return { identity: await this.#account(subType, sub), expiresAt, apiKey: null }
    }
    const identity = await this.#workloads.identity(sub, workspace)
    if (identity === null) throw new PlatformError('authentication_failed', `Instance ${sub} is gone`)
    return { identity, expiresAt, apiKey: null }
  }

  async #account(kind: AccountKind, sub: string): Promise<Identity> {
    if (kind === 'service_account') {
      const account = await this.serviceAccounts.find(sub)
      if (account === null) throw new PlatformError('authentication_failed', `Service account ${sub} is gone`)
      const roles = new Map([[account.workspace, account.role]])
      return { kind, id: sub, name: account.name, roles }
    }
    const [user, roles] = await Promise.all([this.#users.get(sub), this.#users.rolesOf(sub)])
    if (user === null) throw new PlatformError('authentication_failed', `User ${sub} is gone`)
    return { kind, id: sub, name: user.email, roles }
  }

  #forget(): void {
    this.#generation++
    this.#verified.clear()
  }

  /** Other writers of the same store take rights away too. */
  async #watch(store: Store, kind: string): Promise<void> {
    const { signal } = this.#closing
    try {
      for await (const _ of store.watch({ kind }, signal)) this.#forget()
    } catch (error) {
      if (signal.aborted) return
      this.#forget()
      this.#log.error('the change feed of credentials ended: revocations elsewhere may go unseen', {
        kind,
        error,
      })
    }
  }
}
