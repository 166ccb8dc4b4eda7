/** Signatures of callbacks. A secret is a text; `whsec_` and base64 is how Standard Webhooks write one. */
import { createHmac, randomBytes } from 'node:crypto'

const secretBytes = 32
const secretPrefix = 'whsec_'

/** A new secret that every dialect's receivers take as it is written. */
export function newCallbackSecret(): string {
  return secretPrefix + randomBytes(secretBytes).toString('base64')
}

/** `sha256=` and HMAC-SHA256 of the body as it is sent, with the secret's text as key. */
export function bodySignature(body: Uint8Array, secret: string): string {
  return `sha256=${createHmac('sha256', secret).update(body).digest('hex')}`
}

/** Headers of the Standard Webhooks: one signature a secret, so that receivers may know either of two. */
export function standardHeaders(
  message: { id: string; timestampSeconds: number; body: Uint8Array },
  secrets: readonly string[],
): Record<string, string> {
  const { id, timestampSeconds, body } = message
  const signatures = secrets.map((secret) => {
    const signed = createHmac('sha256', standardKey(secret)).update(`${id}.${timestampSeconds}.`).update(body)
    return `v1,${signed.digest('base64')}`
  })
  return {
    'webhook-id': id,
    'webhook-timestamp': String(timestampSeconds),
    ...(signatures.length > 0 ? { 'webhook-signature': signatures.join(' ') } : {}),
  }
}

/** What is written otherwise than the standard has it counts as it is written. */
function standardKey(secret: string): Uint8Array {
  return secret.startsWith(secretPrefix)
    ? Buffer.from(secret.slice(secretPrefix.length), 'base64')
    : Buffer.from(secret)
}
