import { PlatformError } from '../../errors.ts'
import type { ResolvedImage } from '../../images/index.ts'
import { programPorts } from '../draft.ts'
import type { ProcessStart } from '../processes.ts'
import { type SnapshotSecrets, type StoredSnapshot, seedOf } from './record.ts'

const prefix = 'snapshot/'

/** How a snapshot is named where an image is meant. */
export function snapshotReference(id: string): string {
  return `${prefix}${id}`
}

/** Null for a reference to an image. */
export function snapshotOfReference(reference: string): string | null {
  return reference.startsWith(prefix) ? reference.slice(prefix.length) : null
}

/**
 * A snapshot as an image whose program is what ran in it, for machines that are made of it without being that sandbox.
 * @throws bad_request when nothing ran
 */
export function imageOf(snapshot: StoredSnapshot, secrets: SnapshotSecrets, hold: Disposable): ResolvedImage {
  const { image, snapshotId, starts } = seedOf(snapshot, secrets)
  const program = programOf(image.entrypoint, starts)
  if (program === null) throw nothingRan(snapshot.body.source.name)
  return {
    ...image,
    snapshotId,
    entrypoint: ['/bin/sh', '-c', program],
    ports: programPorts(snapshot.body.spec).map((target) => ({ target })),
    [Symbol.dispose]: () => hold[Symbol.dispose](),
  }
}

export function nothingRan(sandbox: string): PlatformError {
  return new PlatformError(
    'bad_request',
    `nothing ran in the sandbox "${sandbox}" that an application could be: start its server there as a process, then fork`,
  )
}

/** All that ran, as one program that ends with the last of them; null when nothing did. */
export function programOf(entrypoint: readonly string[], starts: readonly ProcessStart[]): string | null {
  const commands = starts.map(({ command, workingDir, env = {} }) => {
    const exports = Object.entries(env)
      .filter(([name]) => /^[A-Za-z_][A-Za-z0-9_]*$/.test(name))
      .map(([name, value]) => `export ${name}=${quoted(value)}; `)
    const directory = workingDir ? `cd ${quoted(workingDir)} && ` : ''
    return `${directory}${exports.join('')}exec /bin/sh -c ${quoted(command)}`
  })
  if (entrypoint.length > 0) commands.unshift(`exec ${entrypoint.map(quoted).join(' ')}`)
  if (commands.length === 0) return null
  if (commands.length === 1) return commands[0] ?? null
  return `${commands.map((command) => `(${command}) &`).join('\n')}\nwait`
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}
