import { readdir, rm, rmdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { firstUsOf } from './segments.ts'

interface Found {
  path: string
  bytes: number
  firstUs: number
}

/** Emptied a little further than it must be, so that not every line empties it again. */
const keptPart = 0.9

/**
 * Removes from a tree of logs what is too old, and then the oldest until the rest takes no more than `bytesMax`.
 * Answers how many bytes stay.
 */
export async function sweep(
  dir: string,
  { olderThanUs, bytesMax }: { olderThanUs: number; bytesMax: number },
): Promise<number> {
  const found: Found[] = []
  await collect(dir, found)
  found.sort((left, right) => left.firstUs - right.firstUs)
  let sum = found.reduce((total, { bytes }) => total + bytes, 0)
  const goal = sum > bytesMax ? bytesMax * keptPart : bytesMax
  for (const { path, bytes, firstUs } of found) {
    if (firstUs >= olderThanUs && sum <= goal) break
    await rm(path, { force: true })
    sum -= bytes
  }
  return sum
}

/** Directories that nothing is in go on the way. */
async function collect(dir: string, found: Found[]): Promise<void> {
  const entries = await readdir(dir, { withFileTypes: true }).catch(() => [])
  for (const entry of entries) {
    const path = join(dir, entry.name)
    if (entry.isDirectory()) {
      await collect(path, found)
      await rmdir(path).catch(() => {})
    } else {
      const facts = await stat(path).catch(() => null)
      if (facts !== null) found.push({ path, bytes: facts.size, firstUs: firstUsOf(entry.name) ?? 0 })
    }
  }
}
