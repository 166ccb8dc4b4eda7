import { version as packageVersion } from '../package.json'

declare const HUTCH_COMMIT: string | undefined

export const version: string = packageVersion

/** The commit the executable was built from; `source` when it runs from the sources. */
export const commit: string = typeof HUTCH_COMMIT === 'string' ? HUTCH_COMMIT : 'source'
