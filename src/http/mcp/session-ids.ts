import { refusal } from './wire.ts'

/**
 * Ids of sessions as clients see them: the instance that holds the session stands in front of what its server calls it.
 * So every request finds its instance again with nothing kept here, also after a restart of the platform.
 */
export interface SessionId {
  instanceId: string
  session: string
}

const addressed = /^([a-z0-9]{12,40})\.([\x21-\x7e]{1,512})$/

/** Null where the header names no session, or one that no answer of ours ever named. */
export function splitSessionId(header: string | null): SessionId | null {
  const found = header === null ? null : addressed.exec(header)
  return found === null ? null : { instanceId: found[1]!, session: found[2]! }
}

export function joinSessionId({ instanceId, session }: SessionId): string {
  return `${instanceId}.${session}`
}

/** Of a session whose instance or process is gone: by this answer a client knows that it has to begin a new one. */
export function sessionNotFound(): Response {
  return refusal(404, 'Session not found: it has ended, begin a new one with "initialize"').response
}
