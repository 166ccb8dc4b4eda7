/** Idempotency-Key of turns: which turn was asked with it, and with what. */
import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { ThreadBody, TurnKey } from './record.ts'

const keyKeptMs = 24 * 60 * 60_000
/** Of one thread, the newest. */
const keysKept = 16
const keyCharsMax = 256

/** @throws bad_request */
export function turnKey(workspace: string, key: string, asked: unknown, at: number): TurnKey {
  if (key.length === 0 || key.length > keyCharsMax) {
    throw new PlatformError('bad_request', `Idempotency-Key: 1 to ${keyCharsMax} characters`)
  }
  return { hash: digestOf([workspace, key]), digest: digestOf(asked), at }
}

/** A thread's id that the same key always leads to, shaped as every other: that a key makes one thread is so up to the store. */
export function threadIdOf({ hash }: TurnKey): string {
  const hex = createHash('sha256').update(`thread ${hash}`).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

/** Whether a thread has this request already. @throws conflict when it has another one of this key */
export function wasAsked({ keys }: ThreadBody, key: TurnKey): boolean {
  const known = keys.find(({ hash, at }) => hash === key.hash && key.at - at < keyKeptMs)
  if (known === undefined) return false
  if (known.digest === key.digest) return true
  throw new PlatformError(
    'conflict',
    'Idempotency-Key: it was sent with another request before; take a new key for a new request',
  )
}

export function withKey(keys: TurnKey[], key: TurnKey | null): TurnKey[] {
  return key === null ? keys : [...keys, key].slice(-keysKept)
}

function digestOf(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('base64url')
}
