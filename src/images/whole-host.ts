import { chmod, copyFile, lstat, mkdir, readdir, readlink, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { libc } from '../lib/libc.ts'
import { makeWhole } from './made-whole.ts'

export interface WholeHostParts {
  /** The root directory of the host image, without /usr. */
  skeleton: string
  usr: string
  /** A layer above `usr` that hides things. */
  mask: string | null
}

/** Changes with the rules below. */
export const wholeHostRevision = 1

const characterDevice = 0o020000
const redirect = 'trusted.overlay.redirect'
const opaque = 'trusted.overlay.opaque'

/**
 * Makes a layer that turns the host's /usr below it into a whole root: for images that are stacked on the host image layer by
 * layer, where a mount at /usr would hide what their layers have there. It is the root directory of the host image,
 * in whose /usr each directory says where in the layer below the rest of it is; at the top nothing of that layer is seen. Takes
 * root.
 */
export async function makeWholeHost(target: string, { skeleton, usr, mask }: WholeHostParts): Promise<void> {
  await makeWhole(target, async (draft) => {
    // The files of both never change: names for them are enough.
    await copy(['-al', '--', `${skeleton}/.`, draft])
    const inside = join(draft, 'usr')
    await mkdir(inside, { recursive: true })
    await chmod(inside, 0o755)
    if (mask !== null) await copy(['-a', '--', `${mask}/.`, inside])
    for (const entry of await readdir(usr, { withFileTypes: true })) {
      await hideAtTop(join(draft, entry.name))
      await stand(join(usr, entry.name), join(inside, entry.name), entry.name)
    }
  })
}

/** What the layer below has under this name at its top belongs into /usr. */
async function hideAtTop(path: string): Promise<void> {
  const present = await lstat(path).catch(() => null)
  if (present === null) whiteOut(path)
  else if (present.isDirectory()) setAttribute(path, opaque, 'y')
}

async function stand(source: string, path: string, name: string): Promise<void> {
  const present = await lstat(path).catch(() => null)
  // Hidden by the mask, with all that is in it.
  if (present !== null && !present.isDirectory()) return
  // The mask brings one of its own.
  if (present !== null && name === 'local') {
    setAttribute(path, opaque, 'y')
    return
  }
  const stats = await lstat(source)
  if (stats.isSymbolicLink()) await symlink(await readlink(source), path)
  else if (stats.isFile()) await copyFile(source, path)
  else if (stats.isDirectory()) {
    if (present === null) await mkdir(path)
    await chmod(path, stats.mode & 0o7777)
    setAttribute(path, redirect, `/${name}`)
  }
}

async function copy(args: string[]): Promise<void> {
  const child = Bun.spawn(['cp', ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C' },
  })
  const [code, errors] = await Promise.all([child.exited, new Response(child.stderr).text()])
  if (code !== 0) {
    const cause = errors.slice(0, 2000)
    throw new PlatformError('unavailable', 'the host image cannot be made whole: cp failed', { cause })
  }
}

function whiteOut(path: string): void {
  check(calls().mknod(text(path), characterDevice, 0n), path)
}

function setAttribute(path: string, name: string, value: string): void {
  const bytes = Buffer.from(value)
  check(calls().setxattr(text(path), text(name), bytes, bytes.length, 0), path)
}

function calls() {
  const library = libc()
  if (library !== null) return library
  throw new PlatformError('unavailable', 'the C library of this host is not known')
}

function check(result: number, path: string): void {
  if (result === 0) return
  throw new PlatformError(
    'unavailable',
    'the file system of imageDir has no room for the records of overlays',
    {
      cause: path,
    },
  )
}

function text(value: string): Buffer {
  return Buffer.from(`${value}\0`)
}
