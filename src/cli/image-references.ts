import { UsageError } from './command.ts'

/** `type/name:tag`, `name:tag` or `name`; without a type it is a sandbox's. @throws UsageError */
export function imageReference(image: string): { type: string; name: string; tag?: string } {
  const [, type = 'sandbox', name = '', tag] = /^(?:([a-z]+)\/)?([^/:]+)(?::(.+))?$/.exec(image) ?? []
  if (name === '')
    throw new UsageError(`${JSON.stringify(image)} is not an image here: write name or name:tag`)
  return { type, name, ...(tag === undefined ? {} : { tag }) }
}
