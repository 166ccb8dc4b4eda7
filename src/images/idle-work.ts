/** Work on many files that nobody waits for, done by processes of the lowest priority. */
import { rename } from 'node:fs/promises'
import { PlatformError } from '../errors.ts'
import { randomText } from '../lib/ids.ts'

/** By a process of its own, which who stops need not wait for: a copy of /usr takes minutes to remove on a busy disk. */
export async function removeLater(path: string): Promise<void> {
  // Whoever copies next uses the same name.
  const left = `${path}-${randomText(8)}`
  await rename(path, left).catch(() => {})
  const remover = Bun.spawn([...idlePriority(), 'rm', '-rf', '--', left], {
    stdio: ['ignore', 'ignore', 'ignore'],
    env: { PATH: '/usr/local/bin:/usr/bin:/bin' },
  })
  remover.unref()
}

/** Copies a tree into a directory, by `cp` with what `how` adds. @throws unavailable, the signal's reason */
export async function copyTree(
  from: string,
  into: string,
  how: string[],
  signal: AbortSignal | undefined,
): Promise<void> {
  signal?.throwIfAborted()
  const child = Bun.spawn([...idlePriority(), 'cp', '-a', ...how, '--', from, `${into}/`], {
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'pipe',
    env: { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C' },
    ...(signal ? { signal } : {}),
  })
  const [code, errors] = await Promise.all([child.exited, new Response(child.stderr).text()])
  signal?.throwIfAborted()
  if (code !== 0) {
    throw new PlatformError('unavailable', `copying ${from} failed`, { cause: errors.slice(0, 2000) })
  }
}

/** Whoever works on this host goes first, for the processor and for the disk. */
export function idlePriority(): string[] {
  const ionice = Bun.which('ionice')
  return ['nice', '-n', '19', ...(ionice ? [ionice, '-c', '3'] : [])]
}
