import { randomInt } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomSecret } from '../lib/ids.ts'
import type { Secrets } from './keys.ts'
import { refusal } from './refusal.ts'

export const deviceLoginLifetimeMs = 10 * 60 * 1000
/** How often a client is told to ask. */
export const deviceLoginIntervalMs = 3_000
/** Asked for again before this, a client is told to slow down. */
const pollMsMin = 1_000
/** Logins that nobody finished yet; anybody may begin one. */
const pendingMax = 1_000
/** Wrong codes and keys on the approval page, of everybody together, in one minute. */
const failuresPerMinuteMax = 30
const minuteMs = 60_000

/** No vowels, so that no words come up, and nothing that looks like a digit. */
const userCodeAlphabet = 'BCDFGHJKLMNPQRSTVWXZ'
const userCodeLength = 8

/** Who approved, and with which key: what came of it ends with that key. */
export interface Approver {
  sub: string
  keyId: string
}

interface Pending {
  userHash: string
  expiresAt: number
  polledAt: number
  approver: Approver | null
}

/**
 * Logins of a device that has no credential yet: it shows a short code, which somebody who has a key approves in a
 * browser. Held in memory: after a restart one begins anew.
 */
export class DeviceLogins {
  readonly #secrets: Pick<Secrets, 'lookupHash'>
  readonly #clock: Clock
  /** By the hash of the device's code; the oldest first, and so the first to expire. */
  readonly #pending = new Map<string, Pending>()
  /** From the hash of a person's code to that of the device's. */
  readonly #deviceOf = new Map<string, string>()
  #failures = { sinceMs: 0, count: 0 }

  constructor(options: { secrets: Pick<Secrets, 'lookupHash'>; clock: Clock }) {
    this.#secrets = options.secrets
    this.#clock = options.clock
  }

  /** @throws too_many_requests */
  begin(): { deviceCode: string; userCode: string } {
    this.#dropExpired()
    if (this.#pending.size >= pendingMax) {
      throw new PlatformError('too_many_requests', 'Too many logins wait for approval: try again later', {
        retryAfterSeconds: deviceLoginLifetimeMs / 1000,
      })
    }
    const deviceCode = randomSecret()
    const userCode = this.#unusedUserCode()
    const [deviceHash, userHash] = [this.#hash(deviceCode), this.#hash(bare(userCode))]
    const expiresAt = this.#clock.now() + deviceLoginLifetimeMs
    this.#pending.set(deviceHash, { userHash, expiresAt, polledAt: 0, approver: null })
    this.#deviceOf.set(userHash, deviceHash)
    return { deviceCode, userCode }
  }

  /** @throws too_many_requests after too many wrong tries of whomever */
  refuseGuessing(): void {
    const { sinceMs, count } = this.#failures
    if (this.#clock.now() - sinceMs < minuteMs && count >= failuresPerMinuteMax) {
      throw new PlatformError('too_many_requests', 'Too many wrong codes and keys: try again in a minute', {
        retryAfterSeconds: minuteMs / 1000,
      })
    }
  }

  noteFailure(): void {
    const now = this.#clock.now()
    const { sinceMs, count } = this.#failures
    this.#failures = now - sinceMs < minuteMs ? { sinceMs, count: count + 1 } : { sinceMs: now, count: 1 }
  }

  /** A code works once. @throws not_found for one that is unknown, expired, or approved already */
  approve(userCode: string, approver: Approver): void {
    this.#dropExpired()
    const userHash = this.#hash(bare(userCode))
    const pending = this.#pending.get(this.#deviceOf.get(userHash) ?? '')
    if (pending === undefined) {
      throw new PlatformError('not_found', 'No login waits for this code: it is mistyped, used or expired')
    }
    this.#deviceOf.delete(userHash)
    pending.approver = approver
  }

  /** Who approved, once: the code is worth nothing afterwards. @throws bad_request with the OAuth error meanwhile */
  take(deviceCode: string): Approver {
    this.#dropExpired()
    const hash = this.#hash(deviceCode)
    const pending = this.#pending.get(hash)
    if (pending === undefined) throw refusal('expired_token', 'device_code is unknown, used or has expired')
    const now = this.#clock.now()
    if (pending.approver === null) {
      const hurried = now - pending.polledAt < pollMsMin
      pending.polledAt = now
      if (hurried) throw refusal('slow_down', `ask every ${deviceLoginIntervalMs / 1000} seconds`)
      throw refusal('authorization_pending', 'nobody approved this login yet')
    }
    this.#remove(hash, pending)
    return pending.approver
  }

  #hash(code: string): string {
    return this.#secrets.lookupHash(code)
  }

  #unusedUserCode(): string {
    while (true) {
      const letters = Array.from({ length: userCodeLength }, () => userCodeAlphabet[randomInt(20)]).join('')
      if (!this.#deviceOf.has(this.#hash(letters))) return `${letters.slice(0, 4)}-${letters.slice(4)}`
    }
  }

  #dropExpired(): void {
    const now = this.#clock.now()
    for (const [hash, pending] of this.#pending) {
      if (pending.expiresAt > now) return
      this.#remove(hash, pending)
    }
  }

  #remove(deviceHash: string, pending: Pending): void {
    this.#pending.delete(deviceHash)
    this.#deviceOf.delete(pending.userHash)
  }
}

/** As people type it: in small letters, with or without what stands between. */
function bare(userCode: string): string {
  return userCode.toUpperCase().replace(/[^A-Z]/g, '')
}
