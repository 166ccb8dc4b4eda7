import { PlatformError } from '../../errors.ts'

export function noSnapshots(): PlatformError {
  return new PlatformError('not_found', 'there are no snapshots on this host')
}

/** What a caller is told of what the host answered. */
export function hostError(error: unknown): unknown {
  const code: unknown = (error as NodeJS.ErrnoException)?.code
  // That of something that was called off is a number, and no failure of the host.
  if (PlatformError.is(error) || typeof code !== 'string') return error
  const full = code === 'ENOSPC' || code === 'EDQUOT'
  return new PlatformError(
    full ? 'insufficient_storage' : 'unavailable',
    `The host cannot start a sandbox: ${code}`,
    {
      cause: error,
    },
  )
}
