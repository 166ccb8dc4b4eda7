import { chmod, mkdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { hostsFile, resolverFile } from './skeleton.ts'

/**
 * What stands around the layers of every image: above them the platform's own settings of the network, below them
 * what programs expect and small images lack.
 */
export interface Frame {
  above: string
  below: string
}

/** Changes with what is written below. */
const revision = 2

const pathDefault = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
export const imageEnvDefault: Readonly<Record<string, string>> = { PATH: pathDefault }

const directories: [path: string, mode: number][] = [
  ['tmp', 0o1777],
  ['var', 0o755],
  ['var/tmp', 0o1777],
  ['root', 0o700],
  ['run', 0o755],
  ['etc', 0o755],
  ['proc', 0o755],
  ['dev', 0o755],
  ['sys', 0o755],
]

/** Made once in a data directory. */
export async function openFrame(dir: string): Promise<Frame> {
  const path = join(dir, `frame-${revision}`)
  const frame = { above: join(path, 'above'), below: join(path, 'below') }
  if ((await stat(path).catch(() => null)) !== null) return frame
  const draft = `${path}.draft`
  await rm(draft, { recursive: true, force: true })
  await mkdir(draft, { recursive: true, mode: 0o700 })
  for (const tree of ['above', 'below']) {
    await directory(join(draft, tree), 0o755)
    await directory(join(draft, tree, 'etc'), 0o755)
  }
  for (const [name, mode] of directories) await directory(join(draft, 'below', name), mode)
  const files: [path: string, content: string][] = [
    ['above/etc/hosts', hostsFile],
    ['above/etc/resolv.conf', resolverFile],
    ['above/etc/hostname', 'sandbox\n'],
    [
      'below/etc/passwd',
      'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n',
    ],
    ['below/etc/group', 'root:x:0:\nnogroup:x:65534:\n'],
    ['below/etc/nsswitch.conf', 'passwd: files\ngroup: files\nhosts: files dns\n'],
  ]
  for (const [name, content] of files) {
    await writeFile(join(draft, name), content, { mode: 0o644 })
    await chmod(join(draft, name), 0o644)
  }
  await rename(draft, path)
  return frame
}

async function directory(path: string, mode: number): Promise<void> {
  await mkdir(path, { recursive: true })
  // Whatever the umask of who started us.
  await chmod(path, mode)
}
