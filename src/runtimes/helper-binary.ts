import { createHash } from 'node:crypto'
import { chmodSync, lstatSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'

/**
 * Puts the helper, which may be embedded in the executable, where it can be run; answers its path. The file is named
 * by its digest and checked against it on every start, so an old or damaged one is never run.
 */
export async function extractHelper(source: Blob | string, targetDir: string): Promise<string> {
  const bytes =
    typeof source === 'string' ? await readFile(source) : new Uint8Array(await source.arrayBuffer())
  const digest = createHash('sha256').update(bytes).digest('hex')
  mkdirSync(targetDir, { recursive: true, mode: 0o755 })
  const path = `${targetDir}/hutch-helper-${digest}`
  if (isIntact(path, digest)) return path
  const scratch = `${path}.${process.pid}.${Date.now().toString(36)}`
  try {
    writeFileSync(scratch, bytes, { mode: 0o755, flag: 'wx' })
    chmodSync(scratch, 0o755)
    renameSync(scratch, path)
  } finally {
    rmSync(scratch, { force: true })
  }
  return path
}

function isIntact(path: string, digest: string): boolean {
  try {
    const entry = lstatSync(path)
    if (!entry.isFile() || (entry.mode & 0o777) !== 0o755) return false
    if (entry.uid !== process.getuid?.()) return false
    return createHash('sha256').update(readFileSync(path)).digest('hex') === digest
  } catch {
    return false
  }
}
