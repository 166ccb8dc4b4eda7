import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import type { BatchStep, Resource, Store } from '../spec/store.ts'
import type { DeviceLogins } from './device-logins.ts'
import type { AccountKind, ApiKeys, Secrets } from './keys.ts'
import { refusal } from './refusal.ts'
import type { ServiceAccounts } from './service-accounts.ts'
import { accessTokenLifetimeMs, type Tokens } from './tokens.ts'

export const refreshTokenLifetimeMs = 30 * 24 * 60 * 60 * 1000
/** Refresh tokens kept for one account, used ones included: the oldest go first. */
const refreshTokensPerAccountMax = 50
const deviceGrant = 'urn:ietf:params:oauth:grant-type:device_code'
const grantTypes = `client_credentials, refresh_token or ${deviceGrant}`

export interface TokenRequest {
  grantType: string | undefined
  clientId: string | undefined
  clientSecret: string | undefined
  refreshToken: string | undefined
  deviceCode: string | undefined
  /** The origin that the request was made to. */
  issuer: string
}

export interface TokenGrant {
  access_token: string
  refresh_token: string
  expires_in: number
  token_type: 'Bearer'
}

/** Whom tokens are for. A service account's are of its workspace, a user's of none, and end with `keyId`. */
interface Owner {
  sub: string
  workspace: string
  /** Absent in records of before users had such tokens: a service account. */
  subType?: AccountKind
  /** Of a user: the API key that the login was approved with. */
  keyId?: string
}

interface RefreshTokenBody extends Owner {
  /** All tokens that descend from one grant. */
  family: string
  expiresAt: number
  /** Set once it was exchanged: using it again means that somebody copied it. */
  usedAt: number | null
}

/** The token endpoint's grants: client credentials, approved logins of devices, and refresh tokens that work once. */
export class Oauth {
  readonly #store: Store
  readonly #secrets: Secrets
  readonly #clock: Clock
  readonly #tokens: Tokens
  readonly #serviceAccounts: ServiceAccounts
  readonly #keys: ApiKeys
  readonly #devices: DeviceLogins

  constructor(options: {
    store: Store
    secrets: Secrets
    clock: Clock
    tokens: Tokens
    serviceAccounts: ServiceAccounts
    keys: ApiKeys
    devices: DeviceLogins
  }) {
    this.#store = options.store
    this.#secrets = options.secrets
    this.#clock = options.clock
    this.#tokens = options.tokens
    this.#serviceAccounts = options.serviceAccounts
    this.#keys = options.keys
    this.#devices = options.devices
  }

  /** @throws bad_request whose `details.error` is the OAuth error code and whose message names the parameter */
  async grant(request: TokenRequest): Promise<TokenGrant> {
    switch (request.grantType) {
      case 'client_credentials':
        return this.#clientCredentials(request)
      case 'refresh_token':
        return this.#refresh(request)
      case deviceGrant:
        return this.#device(request)
      case undefined:
        throw refusal('invalid_request', `grant_type is missing: ${grantTypes}`)
      default:
        throw refusal(
          'unsupported_grant_type',
          `grant_type: "${request.grantType.slice(0, 80)}" is not ${grantTypes}`,
        )
    }
  }

  async #clientCredentials(request: TokenRequest): Promise<TokenGrant> {
    const { clientId, clientSecret } = request
    if (!clientId) throw refusal('invalid_request', 'client_id is missing: send it as Basic or in the body')
    if (!clientSecret)
      throw refusal('invalid_request', 'client_secret is missing: send it as Basic or in the body')
    const account = await this.#serviceAccounts.verify(clientId, clientSecret)
    if (account === null) {
      throw refusal('invalid_client', 'client_id or client_secret is not that of a service account')
    }
    const owner = { sub: account.clientId, workspace: account.workspace }
    const { refreshToken, steps } = await this.#newRefreshToken(owner, randomText(16))
    await this.#store.batch(steps)
    return this.#answer(owner, refreshToken, request.issuer)
  }

  async #device(request: TokenRequest): Promise<TokenGrant> {
    if (!request.deviceCode) throw refusal('invalid_request', 'device_code is missing')
    const { sub, keyId } = this.#devices.take(request.deviceCode)
    const owner: Owner = { sub, workspace: '', subType: 'user', keyId }
    await this.#requireAlive(owner, 'device_code')
    const { refreshToken, steps } = await this.#newRefreshToken(owner, randomText(16))
    await this.#store.batch(steps)
    return this.#answer(owner, refreshToken, request.issuer)
  }

  /** @throws bad_request when the account, or the key that its login was approved with, is gone */
  async #requireAlive(owner: Owner, parameter: string): Promise<void> {
    const alive =
      owner.subType === 'user'
        ? await this.#keys.isValid({ sub: owner.sub, workspace: '' }, owner.keyId ?? '')
        : (await this.#serviceAccounts.find(owner.sub)) !== null
    if (alive) return
    const gone = owner.subType === 'user' ? 'was approved with a key' : 'belongs to an account'
    throw refusal('invalid_grant', `${parameter} ${gone} that is gone`)
  }

  async #refresh(request: TokenRequest): Promise<TokenGrant> {
    const { refreshToken: presented } = request
    if (!presented) throw refusal('invalid_request', 'refresh_token is missing')
    const [found] = await this.#store.find<RefreshTokenBody>({
      kind: 'refresh_token',
      index: 'hash',
      value: this.#secrets.lookupHash(presented),
      limit: 1,
    })
    if (found === undefined) throw refusal('invalid_grant', 'refresh_token is not one of this platform')
    const { body } = found
    const now = this.#clock.now()
    if (body.usedAt !== null) {
      await this.#removeFamily(body.family)
      throw refusal('invalid_grant', 'refresh_token was used before: every token that came of it is revoked')
    }
    if (body.expiresAt <= now) throw refusal('invalid_grant', 'refresh_token has expired')
    await this.#requireAlive(body, 'refresh_token')
    const { refreshToken, steps } = await this.#newRefreshToken(body, body.family)
    await this.#exchange(found, steps, now)
    return this.#answer(body, refreshToken, request.issuer)
  }

  async #exchange(found: Resource<RefreshTokenBody>, steps: BatchStep[], now: number): Promise<void> {
    const { kind, workspace, name } = found
    const key = { kind, workspace, name }
    const change = { body: { ...found.body, usedAt: now } }
    try {
      await this.#store.batch([{ op: 'update', key, expectedVersion: found.version, change }, ...steps])
    } catch (error) {
      if (PlatformError.is(error) && (error.code === 'version_mismatch' || error.code === 'not_found')) {
        throw refusal('invalid_grant', 'refresh_token was used at the same moment by another request')
      }
      throw error
    }
  }

  async #answer(owner: Owner, refreshToken: string, issuer: string): Promise<TokenGrant> {
    const accessToken = await this.#tokens.sign({
      sub: owner.sub,
      subType: owner.subType ?? 'service_account',
      workspace: owner.workspace,
      issuer,
      lifetimeMs: accessTokenLifetimeMs,
    })
    return {
      access_token: accessToken,
      refresh_token: refreshToken,
      expires_in: accessTokenLifetimeMs / 1000,
      token_type: 'Bearer',
    }
  }

  async #newRefreshToken(
    owner: Owner,
    family: string,
  ): Promise<{ refreshToken: string; steps: BatchStep[] }> {
    const refreshToken = `blr_${randomText(48)}`
    const now = this.#clock.now()
    const body: RefreshTokenBody = {
      sub: owner.sub,
      workspace: owner.workspace,
      ...(owner.subType === undefined ? {} : { subType: owner.subType }),
      ...(owner.keyId === undefined ? {} : { keyId: owner.keyId }),
      family,
      expiresAt: now + refreshTokenLifetimeMs,
      usedAt: null,
    }
    const held = await this.#store.find<RefreshTokenBody>({
      kind: 'refresh_token',
      workspace: owner.workspace,
      index: 'sub',
      value: owner.sub,
      limit: refreshTokensPerAccountMax + 20,
    })
    const superfluous = held.filter(
      ({ body }, at) => body.expiresAt <= now || at >= refreshTokensPerAccountMax - 1,
    )
    return {
      refreshToken,
      steps: [
        ...superfluous.map(removal),
        {
          op: 'create',
          input: {
            kind: 'refresh_token',
            workspace: owner.workspace,
            name: randomText(20),
            body,
            indexes: { hash: this.#secrets.lookupHash(refreshToken), sub: owner.sub, family },
          },
        },
      ],
    }
  }

  async #removeFamily(family: string): Promise<void> {
    const tokens = await this.#store.find({
      kind: 'refresh_token',
      index: 'family',
      value: family,
      limit: refreshTokensPerAccountMax + 20,
    })
    if (tokens.length > 0) await this.#store.batch(tokens.map(removal))
  }

  /** Steps that remove every refresh token of an account. */
  async removalSteps(owner: { sub: string; workspace: string }): Promise<BatchStep[]> {
    const held = await this.#store.find({
      kind: 'refresh_token',
      workspace: owner.workspace,
      index: 'sub',
      value: owner.sub,
      limit: refreshTokensPerAccountMax + 20,
    })
    return held.map(removal)
  }
}

function removal({ kind, workspace, name }: Resource): BatchStep {
  return { op: 'remove', key: { kind, workspace, name } }
}
