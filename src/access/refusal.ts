import { PlatformError } from '../errors.ts'

/** As OAuth says what is wrong: `error` is a word of its list. */
export function refusal(error: string, message: string): PlatformError {
  return new PlatformError('bad_request', message, { details: { error } })
}
