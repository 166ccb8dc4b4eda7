import { PlatformError } from '../errors.ts'

/** Narrowest first: the order in which a value is looked for. */
export const memoryScopes = ['workflow', 'session', 'actor', 'global'] as const
export type MemoryScope = (typeof memoryScopes)[number]

/** Where something is remembered. The id of the one global scope of a workspace is `global`. */
export interface MemoryPlace {
  scope: MemoryScope
  scopeId: string
}

const scopeIdLengthMax = 256
const keyLengthMax = 512
/** Part of no scope's id. */
const separator = '\n'

/** What the store finds everything of a place by. @throws bad_request */
export function indexOf({ scope, scopeId }: MemoryPlace): string {
  if (scopeId === '' || scopeId.length > scopeIdLengthMax || /[\0\n]/.test(scopeId)) {
    throw new PlatformError(
      'bad_request',
      `the id of the ${scope}: must be 1 to ${scopeIdLengthMax} characters without line breaks`,
    )
  }
  return `${scope}${separator}${scopeId}`
}

/** The name of what is kept under a key. @throws bad_request */
export function nameOf(place: MemoryPlace, key: string): string {
  if (key === '' || key.length > keyLengthMax || key.includes('\0')) {
    throw new PlatformError('bad_request', `key: must be 1 to ${keyLengthMax} characters`)
  }
  return `${indexOf(place)}${separator}${key}`
}
