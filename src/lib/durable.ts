import { open } from 'node:fs/promises'

/** Resolves when what a file holds, or which names a directory has, outlives a crash of the host. */
export async function sync(path: string): Promise<void> {
  const file = await open(path, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}
