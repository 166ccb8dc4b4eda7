import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CommandError, UsageError } from './command.ts'

export const registryFlags = {
  'registry-cred': {
    kind: 'list',
    value: 'HOST=USER:PASSWORD',
    short: 'c',
    about: 'credentials for a registry that the build or the image needs',
  },
  'docker-config': { kind: 'text', value: 'FILE', about: "such credentials, as in Docker's config.json" },
} as const

/**
 * What Docker would keep in its config.json, as text: of --registry-cred, else of --docker-config, else of the project's own
 * .docker/config.json. Null where there is none.
 */
export function dockerConfigOf(
  flags: { 'registry-cred'?: string[] | undefined; 'docker-config'?: string | undefined },
  directory: string,
): string | null {
  const given = flags['registry-cred'] ?? []
  if (given.length > 0) return JSON.stringify({ auths: Object.fromEntries(given.map(credential)) })
  const named = flags['docker-config']
  const file = named ?? join(directory, '.docker', 'config.json')
  if (!existsSync(file)) {
    if (named !== undefined) throw new CommandError(`${named} does not exist`)
    return null
  }
  const text = readFileSync(file, 'utf8')
  try {
    JSON.parse(text)
  } catch {
    throw new CommandError(`${file} is no JSON, as Docker writes it`)
  }
  return text
}

function credential(given: string): [host: string, entry: { auth: string }] {
  const [, host = '', user = ''] = /^([^=]+)=([^:]+:.+)$/s.exec(given) ?? []
  // What was typed may hold the password.
  if (host === '') throw new UsageError('--registry-cred is HOST=USER:PASSWORD')
  return [host, { auth: Buffer.from(user).toString('base64') }]
}
