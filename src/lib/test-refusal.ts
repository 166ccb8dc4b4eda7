import { type ErrorCode, PlatformError } from '../errors.ts'

/** For tests: the error that work was refused with. @throws when it was not, and whatever else it failed with */
export async function refusalOf(work: Promise<unknown>): Promise<PlatformError> {
  const error = await work.then(
    () => new Error('it was not refused'),
    (reason: unknown) => reason,
  )
  if (PlatformError.is(error)) return error
  throw error
}

/** For tests: its code; null: it was not refused. @throws whatever else it failed with */
export async function refusalCodeOf(work: Promise<unknown>): Promise<ErrorCode | null> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  )
  if (error === null) return null
  if (PlatformError.is(error)) return error.code
  throw error
}
