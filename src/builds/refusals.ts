import { PlatformError } from '../errors.ts'
import { type ArchiveType, archiveTypes } from './record.ts'

/** Why a build is called off. */
export class CalledOff extends PlatformError {
  /** Null: nobody is told. */
  readonly told: string | null

  constructor(told: string | null) {
    super('gone', told ?? 'the build was called off: ask for a new upload address (?upload=true)')
    this.told = told
  }
}

export function used(): PlatformError {
  return new PlatformError(
    'conflict',
    'this upload address was used already, each takes one archive: ask for a new one (?upload=true)',
  )
}

/** No archive is taken at this address any more. */
export function over(why: string): PlatformError {
  return new PlatformError('gone', `${why}: ask for a new upload address (?upload=true)`)
}

/** @throws unsupported_media_type */
export function archiveTypeOf(contentType: string): ArchiveType {
  const type = contentType.split(';', 1)[0]!.trim().toLowerCase()
  if (Object.hasOwn(archiveTypes, type)) return archiveTypes[type as keyof typeof archiveTypes]
  throw new PlatformError(
    'unsupported_media_type',
    `Content-Type: "${type.slice(0, 60)}" is no archive: send ${Object.keys(archiveTypes).join(' or ')}`,
  )
}
