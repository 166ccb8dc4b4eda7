import { lstatSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { PlatformError } from '../errors.ts'

/**
 * Removes a directory that sandboxed code wrote into, after all of it ended. Links are removed, never followed. A
 * plain directory disk may be nested deeper than a path can name, which rm(1) copes with and a walk by path does not.
 */
export async function removeTree(dir: string): Promise<void> {
  const disk = lstatSync(`${dir}/disk`, { throwIfNoEntry: false })
  if (disk) {
    const child = Bun.spawn(['rm', '-rf', '--one-file-system', '--', dir], {
      stdin: 'ignore',
      stdout: 'ignore',
      stderr: 'pipe',
      cwd: '/',
    })
    const [said, exitCode] = await Promise.all([new Response(child.stderr).text(), child.exited])
    if (exitCode === 0) return
    throw new PlatformError('unavailable', 'The files of an instance cannot be removed', {
      cause: new Error(`rm exited with ${exitCode}: ${said.slice(0, 500)}`),
    })
  }
  // Off the request loop: what the host's file system frees takes milliseconds.
  await rm(dir, { recursive: true, force: true })
}
