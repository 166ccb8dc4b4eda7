import { bodySignature } from './signing.ts'

const secondMs = 1000
const minuteMs = 60 * secondMs
const hourMs = 60 * minuteMs

export const deliveryDialects = ['blaxel', 'agentfield', 'xpander'] as const
export type DeliveryDialect = (typeof deliveryDialects)[number]

interface DialectFacts {
  /** Waited before the second attempt, the third, and so on; each +-20 %. */
  delaysMs: readonly number[]
  /** A receiver that takes longer has not got it. */
  answerMsMax: number
  /** Beside the Standard Webhooks headers, which all have. `secrets`: newest first. */
  headers(
    message: { body: Uint8Array; timestampSeconds: number; refusals: number },
    secrets: readonly string[],
  ): Record<string, string>
}

const patientDelaysMs = [
  ...[secondMs, 5 * secondMs, 30 * secondMs],
  ...[2 * minuteMs, 10 * minuteMs],
  ...[hourMs, 6 * hourMs],
]

export const dialectFacts: Record<DeliveryDialect, DialectFacts> = {
  blaxel: {
    delaysMs: patientDelaysMs,
    answerMsMax: 15 * secondMs,
    headers: ({ body, timestampSeconds, refusals }, secrets) => ({
      // There is place for one: the newest, until a receiver refuses it that may know an older one that still holds.
      ...signed('x-blaxel-signature', body, secrets[refusals % Math.max(1, secrets.length)]),
      'x-blaxel-timestamp': String(timestampSeconds),
    }),
  },
  agentfield: {
    delaysMs: [5 * secondMs, 10 * secondMs, 20 * secondMs, 40 * secondMs],
    answerMsMax: 10 * secondMs,
    headers: ({ body }, [secret]) => signed('x-agentfield-signature', body, secret),
  },
  xpander: { delaysMs: patientDelaysMs, answerMsMax: 15 * secondMs, headers: () => ({}) },
}

function signed(header: string, body: Uint8Array, secret: string | undefined): Record<string, string> {
  return secret === undefined ? {} : { [header]: bodySignature(body, secret) }
}
