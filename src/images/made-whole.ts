import { existsSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'

/** In the names of directories that are not whole yet. */
export const draftMark = '.draft-'

/**
 * Makes the directory `target`, which is not there: it appears whole or not at all. What another process made of it meanwhile
 * is as good.
 */
export async function makeWhole(target: string, make: (draft: string) => Promise<void>): Promise<void> {
  await mkdir(dirname(target), { recursive: true })
  // Its own for each who makes one: two platforms of one process may at once.
  const draft = await mkdtemp(`${target}${draftMark}`)
  try {
    await chmod(draft, 0o755)
    await make(draft)
    await rename(draft, target)
  } catch (error) {
    await rm(draft, { recursive: true, force: true })
    if (!existsSync(target)) throw error
  }
}
