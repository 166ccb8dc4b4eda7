/**
 * A request to an agent, as it is kept until it is made: its body is the execution's input, the rest stands in the note,
 * what may be a user's own credential sealed.
 */
import type { SecretBox } from '../lib/secret-box.ts'

export interface AgentRequest {
  method: string
  /** Below the agent's address, undecoded. */
  path: string
  /** '', or from the question mark on. */
  search: string
  headers: [name: string, value: string][]
  /** Where clients reach the platform, and the agent below that. */
  origin: string
  prefix: string
  body: Uint8Array
}

export function requestNote(
  { method, path, body: _, ...rest }: AgentRequest,
  purpose: string,
  secrets: Pick<SecretBox, 'seal'>,
): Record<string, unknown> {
  return { method, path, sealed: secrets.seal(JSON.stringify(rest), purpose) }
}

/** @throws internal when it was sealed for something else */
export function requestOf(
  { note, body }: { note: Record<string, unknown>; body: Uint8Array },
  purpose: string,
  secrets: Pick<SecretBox, 'open'>,
): AgentRequest {
  const { method, path, sealed } = note as { method: string; path: string; sealed: string }
  const rest = JSON.parse(secrets.open(sealed, purpose)) as Pick<
    AgentRequest,
    'search' | 'headers' | 'origin' | 'prefix'
  >
  return { method, path, ...rest, body }
}
