import { createPrivateKey } from 'node:crypto'
import { calculateJwkThumbprint, importJWK, type JWK, jwtVerify, SignJWT } from 'jose'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import type { Secrets } from './keys.ts'

export const accessTokenLifetimeMs = 2 * 60 * 60 * 1000
const algorithm = 'EdDSA'
const audience = 'hutch'

export type TokenSubject = 'user' | 'service_account' | 'workload'

export interface TokenClaims {
  sub: string
  subType: TokenSubject
  /** '' when the token reaches every workspace of a user. */
  workspace: string
  expiresAt: number
}

/** Signs and verifies the platform's JSON Web Tokens with a key that outlives restarts. */
export class Tokens {
  readonly #clock: Clock
  readonly #publicJwk: JWK
  readonly #privateKey: CryptoKey
  readonly #publicKey: CryptoKey

  private constructor(clock: Clock, publicJwk: JWK, privateKey: CryptoKey, publicKey: CryptoKey) {
    this.#clock = clock
    this.#publicJwk = publicJwk
    this.#privateKey = privateKey
    this.#publicKey = publicKey
  }

  /** The signing key follows from the master key, so that tokens outlive restarts. */
  static async open(options: { secrets: Secrets; clock: Clock }): Promise<Tokens> {
    const { d, ...publicHalf } = privateJwk(options.secrets)
    const kid = await calculateJwkThumbprint(publicHalf)
    const publicJwk: JWK = { ...publicHalf, kid, alg: algorithm, use: 'sig' }
    const [privateKey, publicKey] = await Promise.all([
      importJWK({ ...publicHalf, d }, algorithm),
      importJWK(publicJwk, algorithm),
    ])
    return new Tokens(options.clock, publicJwk, privateKey as CryptoKey, publicKey as CryptoKey)
  }

  /** The public half, as `jwks_uri` publishes it. */
  jwks(): { keys: JWK[] } {
    return { keys: [this.#publicJwk] }
  }

  async sign(claims: {
    sub: string
    subType: TokenSubject
    workspace: string
    issuer: string
    lifetimeMs: number
  }): Promise<string> {
    const issuedAtSeconds = Math.floor(this.#clock.now() / 1000)
    return new SignJWT({ sub_type: claims.subType, workspace: claims.workspace })
      .setProtectedHeader({ alg: algorithm, kid: this.#publicJwk.kid, typ: 'JWT' })
      .setSubject(claims.sub)
      .setIssuer(claims.issuer)
      .setAudience(audience)
      .setIssuedAt(issuedAtSeconds)
      .setExpirationTime(issuedAtSeconds + Math.floor(claims.lifetimeMs / 1000))
      .setJti(randomText(20))
      .sign(this.#privateKey)
  }

  /** @throws authentication_failed */
  async verify(token: string): Promise<TokenClaims> {
    try {
      const { payload } = await jwtVerify(token, this.#publicKey, {
        algorithms: [algorithm],
        audience,
        currentDate: new Date(this.#clock.now()),
        requiredClaims: ['sub', 'exp', 'iat', 'jti'],
      })
      return {
        sub: String(payload.sub),
        subType: payload.sub_type as TokenSubject,
        workspace: String(payload.workspace ?? ''),
        expiresAt: Number(payload.exp) * 1000,
      }
    } catch (error) {
      const expired = error instanceof Error && 'code' in error && error.code === 'ERR_JWT_EXPIRED'
      throw new PlatformError(
        'authentication_failed',
        expired
          ? 'The access token has expired: get a new one from /oauth/token'
          : 'The access token is not valid',
        { cause: error },
      )
    }
  }
}

/** Ed25519's private key in PKCS #8 is this, then the 32 bytes of the seed. */
const pkcs8Prefix = Buffer.from('302e020100300506032b657004220420', 'hex')

function privateJwk(secrets: Secrets): JWK {
  const der = Buffer.concat([pkcs8Prefix, secrets.deriveKey('access-tokens')])
  return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }).export({ format: 'jwk' }) as JWK
}
