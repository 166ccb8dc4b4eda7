import { asLost, Client, ClientError } from '../client/index.ts'
import { CommandError, sameTarget, type Target, UsageError } from './command.ts'
import { connectionFor, sourceOf } from './connection.ts'
import { print, printJson } from './output.ts'
import { shellQuote } from './shell.ts'

export function clientFor(flags: Target): Client {
  return new Client(connectionFor(flags))
}

/** A sandbox's own API. @throws CommandError when there is no such sandbox, or it does not run */
export async function openSandbox(flags: Target, name: string): ReturnType<Client['sandboxes']['open']> {
  const sandbox = await withHints(flags, () => clientFor(flags).sandboxes.open(name), {
    404: 'hutch sandbox ls',
  })
  const { status = 'DEPLOYED' } = sandbox.info
  // While another image is built for it the machine there is goes on; without one the platform says so itself.
  if (['DEPLOYED', 'UPLOADING', 'BUILDING', 'DEPLOYING'].includes(status)) return sandbox
  const next = status === 'ARCHIVED' ? 'unarchive' : 'get'
  throw new CommandError(
    `the sandbox "${name}" does not run, its status is ${status}`,
    sameTarget(`hutch sandbox ${next} ${name}`, flags),
  )
}

/**
 * Runs `work`; what the platform refused becomes a message and, by status, the next command to type. `typed`: what the
 * command line calls a field of the request; a refusal of one of these is a mistake in the command line.
 */
export async function withHints<Value>(
  flags: Target,
  work: () => Promise<Value>,
  hints: Record<number, string> = {},
  typed: Record<string, string> = {},
): Promise<Value> {
  try {
    return await work()
  } catch (cause) {
    const error = asLost(cause)
    if (!(error instanceof ClientError)) throw error
    const refusal = error.status === 400 ? inTypedWords(error.message, typed) : null
    if (refusal !== null) throw new UsageError(refusal)
    throw new CommandError(...explain(error, flags, hints))
  }
}

/** `spec.runtime.ttl must be ...` as `--ttl must be ...`; null when the message begins with no such field. */
function inTypedWords(message: string, typed: Record<string, string>): string | null {
  const [field = ''] = /^[\w.]+/.exec(message) ?? []
  return Object.hasOwn(typed, field) ? typed[field] + message.slice(field.length) : null
}

/** Removes one after the other, and prints each; what could not be removed is told of at the end. */
export async function removeEach(
  flags: Target & { json?: boolean },
  names: string[],
  remove: (name: string) => Promise<void>,
  listing: string,
): Promise<number> {
  const failures: CommandError[] = []
  for (const name of names) {
    try {
      await withHints(flags, () => remove(name), { 404: listing })
      if (!flags.json) print(name)
    } catch (error) {
      if (!(error instanceof CommandError)) throw error
      const message = error.message.includes(name) ? error.message : `${name}: ${error.message}`
      failures.push(new CommandError(message, error.hint))
    }
  }
  const messages = failures.map(({ message }) => message)
  if (flags.json) printJson({ removed: names.length - failures.length, failures: messages })
  if (failures.length === 0) return 0
  throw new CommandError(messages.join('; '), failures[0]?.hint ?? sameTarget(listing, flags))
}

function explain(
  error: ClientError,
  flags: Target,
  hints: Record<number, string>,
): [message: string, hint: string | undefined] {
  const here: Target = { 'data-dir': flags['data-dir'] }
  const hint = hints[error.status]
  if (hint !== undefined) return [error.message, sameTarget(hint, flags)]
  if (error.status === 0) return [error.message, sameTarget('hutch status', here)]
  if (error.status === 403) return [error.message, sameTarget('hutch workspaces list', here)]
  if (error.status !== 401) return [error.message, undefined]
  const source = sourceOf(flags)
  if (source.kind === 'variables') return [`${error.message} (the one in BL_API_KEY)`, 'eval "$(hutch env)"']
  if (source.kind === 'login') {
    const { apiUrl, workspace } = source.login
    return [`${error.message}: log in again`, `hutch login ${workspace} --url ${shellQuote(apiUrl)}`]
  }
  // What `hutch env` prints was refused, so printing it again is no help.
  return [
    `${error.message}: it was revoked; stop the platform, and its next start makes another`,
    sameTarget('hutch up', here),
  ]
}
