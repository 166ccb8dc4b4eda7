import { type Invocation, invokeLocal } from '../client/index.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { type Kind, kinds, knownKind } from './kinds.ts'

const localPortDefault = 1338

export const requestFlags = {
  ...connectionFlags,
  header: { kind: 'list', value: "'NAME: VALUE'", about: 'header of the request' },
  local: { kind: 'boolean', about: 'ask what hutch serve serves on this machine' },
  port: { kind: 'number', value: 'PORT', short: 'p', about: `with --local: its port (${localPortDefault})` },
  debug: { kind: 'boolean', about: 'say what is asked, and the headers of the answer' },
} as const

export interface InvokeFlags extends Target {
  local?: boolean | undefined
  port?: number | undefined
}

/** Makes a request to what is served, here or with --local by `hutch serve`. @throws CommandError, ClientError */
export async function invoke(
  flags: InvokeFlags,
  kind: Kind,
  name: string,
  invocation: Invocation,
): Promise<{ url: string; response: Response }> {
  if (flags.local) {
    const url = `http://localhost:${flags.port ?? localPortDefault}`
    const response = await invokeLocal(url, invocation).catch((error: unknown) => {
      if (invocation.signal?.aborted) throw error
      throw new CommandError(`nothing is served at ${url}`, 'hutch serve')
    })
    return { url, response }
  }
  if (flags.port !== undefined) throw new UsageError('--port is for --local')
  const client = clientFor(flags)
  const url = await addressOf(flags, kind, name)
  return { url, response: await client.workloads.invoke(url, invocation) }
}

/** Where it is served. @throws CommandError when there is no such thing, or it has no address */
export async function addressOf(flags: Target, kind: Kind, name: string): Promise<string> {
  const path = `${kind.collection([])}/${encodeURIComponent(name)}`
  const found = await withHints(flags, () => clientFor(flags).resources.get(path), {
    404: `hutch get ${kind.plural}`,
  })
  const { url, workspace } = found.metadata ?? {}
  // Its own host is for browsers: the key is sent to the platform's alone, which answers for it by path.
  if (kind.kind === 'Application' && workspace !== undefined)
    return `${clientFor(flags).origin}/${workspace}${kind.collection([])}/${encodeURIComponent(name)}`
  if (typeof url === 'string' && url !== '') return url
  throw new CommandError(
    `${name} has no address yet`,
    sameTarget(`hutch get ${kind.singular} ${name}`, flags),
  )
}

/** @throws UsageError */
export function runningKind(word: string): Kind {
  return knownKind(
    word,
    kinds.filter(({ runs }) => runs),
  )
}

/** @throws UsageError */
export function headersOf(given: string[] | undefined): Record<string, string> {
  return Object.fromEntries(
    (given ?? []).map((header) => {
      const colon = header.indexOf(':')
      if (colon < 1) throw new UsageError(`--header ${JSON.stringify(header)} is not 'NAME: VALUE'`)
      return [header.slice(0, colon).trim().toLowerCase(), header.slice(colon + 1).trim()]
    }),
  )
}
