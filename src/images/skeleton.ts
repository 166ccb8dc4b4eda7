import { createHash } from 'node:crypto'
import type { Stats } from 'node:fs'
import {
  chmod,
  chown,
  lstat,
  mkdir,
  readdir,
  readFile,
  readlink,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { interpreterText, writeInterpreter } from './interpreter/index.ts'
import { makeWhole } from './made-whole.ts'
import { removeUnreadable } from './unreadable.ts'

/** What of the host's /etc programs need and strangers may read. Never keys, password hashes or package credentials. */
const etcEntries = [
  'alternatives',
  'bash.bashrc',
  'ca-certificates',
  'ca-certificates.conf',
  'debian_version',
  'alpine-release',
  'redhat-release',
  'environment',
  'ethertypes',
  'gai.conf',
  'host.conf',
  'java-17-openjdk',
  'ld.so.cache',
  'ld.so.conf',
  'ld.so.conf.d',
  'localtime',
  'login.defs',
  'magic',
  'mime.types',
  'nsswitch.conf',
  'os-release',
  'pam.conf',
  'pam.d',
  'perl',
  'pki',
  'profile',
  'protocols',
  'python3',
  'rpc',
  'securetty',
  'security',
  'services',
  'shells',
  'ssl/certs',
  'ssl/openssl.cnf',
  'terminfo',
  'timezone',
]

/** Package managers refuse to work, or reinstall the C library over /usr, when their own records are missing. */
const packageRecords = [
  'var/lib/dpkg',
  'etc/dpkg',
  'etc/apt/sources.list',
  'etc/apt/sources.list.d',
  'etc/apt/trusted.gpg.d',
]

const usrLinks = ['bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32']
const directories: [path: string, mode: number][] = [
  ['usr', 0o755],
  ['proc', 0o755],
  ['sys', 0o755],
  ['dev', 0o755],
  ['etc', 0o755],
  ['etc/apt/apt.conf.d', 0o755],
  ['etc/apt/preferences.d', 0o755],
  ['etc/uv', 0o755],
  ['root', 0o700],
  ['home', 0o755],
  ['home/user', 0o755],
  ['blaxel', 0o755],
  ['opt', 0o755],
  ['opt/hutch', 0o755],
  ['srv', 0o755],
  ['mnt', 0o755],
  ['media', 0o755],
  ['run', 0o755],
  ['run/lock', 0o1777],
  ['tmp', 0o1777],
  ['var', 0o755],
  ['var/cache', 0o755],
  ['var/cache/apt', 0o755],
  ['var/cache/apt/archives', 0o755],
  ['var/cache/apt/archives/partial', 0o700],
  ['var/lib', 0o755],
  ['var/lib/apt', 0o755],
  ['var/lib/apt/lists', 0o755],
  ['var/lib/apt/lists/partial', 0o700],
  ['var/log', 0o755],
  ['var/mail', 0o775],
  ['var/spool', 0o755],
  ['var/tmp', 0o1777],
]

export const hostsFile = '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n'
/** An answer comes at once, but while the platform is started again, which lookups outlast as connections do. */
export const resolverFile = 'nameserver 10.201.0.1\noptions timeout:3 attempts:5\n'

/**
 * A sandbox is whatever its owner makes of it: what keeps people from damaging the Python of their own machine (PEP 668) only
 * stands in the way of whoever installs a package for one.
 */
const pythonSettings: [path: string, text: string][] = [
  ['etc/pip.conf', '[global]\nbreak-system-packages = true\nroot-user-action = ignore\n'],
  ['etc/uv/uv.toml', '[pip]\nbreak-system-packages = true\n'],
]

const userId = 1000
const systemIdMax = 999
const nobodyId = 65534

/** Changes with the rules above, so that an older skeleton is not taken for a current one. */
const skeletonRevision = 6

/** A value that changes when the skeleton made from this host would. Cheap: a few dozen lstat calls. */
export async function skeletonStamp(root = '/'): Promise<string> {
  const hash = createHash('sha256').update(`skeleton ${skeletonRevision}\n${interpreterText}\n`)
  const watched = [
    ...etcEntries.map((entry) => `etc/${entry}`),
    ...packageRecords,
    'etc/passwd',
    'etc/group',
    'var/lib/dpkg/status',
  ]
  for (const path of watched) {
    const stats = await lstatOrNull(join(root, path))
    if (stats) hash.update(`${path} ${stats.size} ${stats.mtimeMs} ${stats.mode}\n`)
  }
  return hash.digest('hex').slice(0, 32)
}

/**
 * Makes the root directory of the host image at `target` (must not exist): everything but /usr, which is mounted over it.
 */
export async function makeSkeleton(target: string, root = '/'): Promise<void> {
  const asRoot = process.getuid?.() === 0
  await makeWhole(target, async (draft) => {
    for (const [path, mode] of directories) {
      await mkdir(join(draft, path), { recursive: true })
      await chmod(join(draft, path), mode)
    }
    for (const name of usrLinks) {
      const stats = await lstatOrNull(join(root, name))
      if (stats?.isSymbolicLink()) await symlink(await readlink(join(root, name)), join(draft, name))
    }
    await symlink('/run', join(draft, 'var/run'))
    await symlink('/run/lock', join(draft, 'var/lock'))
    const settings = etcEntries.map((entry) => `etc/${entry}`)
    await copyEntries(asRoot ? [...settings, ...packageRecords] : settings, root, draft)
    await forgetCredentials(join(draft, 'etc/apt'))
    await rm(join(draft, 'etc/ssl/private'), { recursive: true, force: true })
    await writeAccounts(draft, root)
    await writeFile(join(draft, 'etc/hosts'), hostsFile)
    await writeFile(join(draft, 'etc/resolv.conf'), resolverFile)
    await writeFile(join(draft, 'etc/hostname'), 'sandbox\n')
    for (const [path, text] of pythonSettings) await writeFile(join(draft, path), text)
    await symlink('/proc/self/mounts', join(draft, 'etc/mtab'))
    await writeFile(join(draft, 'opt/hutch/bun'), '')
    await writeBunLauncher(draft)
    await writeInterpreter(draft)
    if (asRoot) await chown(join(draft, 'home/user'), userId, userId)
  })
}

/**
 * `bun` inside is this executable, mounted over a file of no content. `as-node/node` is the same, for projects on a host
 * without node.
 */
async function writeBunLauncher(root: string): Promise<void> {
  for (const name of ['bin/bun', 'as-node/node']) {
    const path = join(root, 'opt/hutch', name)
    await mkdir(dirname(path), { recursive: true })
    await writeFile(path, '#!/bin/sh\nBUN_BE_BUN=1 exec /opt/hutch/bun "$@"\n')
    await chmod(path, 0o755)
  }
}

/** Package sources may name a user and a password in their addresses, which are the host's alone. */
async function forgetCredentials(aptDir: string): Promise<void> {
  const lists = await readdir(join(aptDir, 'sources.list.d')).catch(() => [] as string[])
  for (const name of ['sources.list', ...lists.map((list) => `sources.list.d/${list}`)]) {
    const path = join(aptDir, name)
    if (!(await lstatOrNull(path))?.isFile()) continue
    const text = await readFile(path, 'utf8')
    const clean = text.replace(/(\b[a-z][a-z0-9+]*:\/\/)[^\s/@]*@/gi, '$1')
    if (clean !== text) await writeFile(path, clean)
  }
}

/** One `cp` for all: thousands of small files, of which a JavaScript copy would make seconds. */
async function copyEntries(paths: string[], root: string, target: string): Promise<void> {
  const present = await existing(paths, root)
  const child = Bun.spawn(['cp', '-a', '--parents', '--reflink=auto', '--', ...present, target], {
    cwd: root,
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'pipe',
    env: { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C' },
  })
  const [code, errors] = await Promise.all([child.exited, new Response(child.stderr).text()])
  // A file that an ordinary user may not read is left out: programs inside do without it.
  if (code !== 0 && process.getuid?.() === 0) {
    throw new PlatformError('unavailable', `copying the host's settings from ${root} failed`, {
      cause: errors.slice(0, 2000),
    })
  }
  // What the host keeps for its root alone is not for the root of a sandbox.
  const copied = await existing(present, target)
  if (copied.length > 0) await removeUnreadable(target, [], copied)
}

async function existing(paths: string[], root: string): Promise<string[]> {
  const found: string[] = []
  for (const path of paths) if (await lstatOrNull(join(root, path))) found.push(path)
  return found
}

/** System accounts of the host without their passwords, root with a shell, and one ordinary `user`. */
async function writeAccounts(draft: string, root: string): Promise<void> {
  const passwd: string[] = ['root:x:0:0:root:/root:/bin/bash']
  for (const line of await lines(join(root, 'etc/passwd'))) {
    const [name, , uid] = line.split(':')
    const id = Number(uid)
    if (name && name !== 'root' && (id <= systemIdMax || id === nobodyId)) passwd.push(line)
  }
  passwd.push(`user:x:${userId}:${userId}::/home/user:/bin/bash`)
  const group: string[] = []
  for (const line of await lines(join(root, 'etc/group'))) {
    const [name, , gid] = line.split(':')
    const id = Number(gid)
    if (name && (id <= systemIdMax || id === nobodyId)) group.push(`${name}:x:${gid}:`)
  }
  if (!group.some((line) => line.startsWith('root:'))) group.unshift('root:x:0:')
  group.push(`user:x:${userId}:`)
  const namesOf = (entries: string[]) => entries.map((line) => line.slice(0, line.indexOf(':')))
  const etc = join(draft, 'etc')
  await writeFile(join(etc, 'passwd'), `${passwd.join('\n')}\n`)
  await writeFile(join(etc, 'group'), `${group.join('\n')}\n`)
  await writeFile(
    join(etc, 'shadow'),
    namesOf(passwd)
      .map((name) => `${name}:*:19000:0:99999:7:::\n`)
      .join(''),
    { mode: 0o640 },
  )
  await writeFile(
    join(etc, 'gshadow'),
    namesOf(group)
      .map((name) => `${name}:*::\n`)
      .join(''),
    { mode: 0o640 },
  )
}

async function lines(path: string): Promise<string[]> {
  const text = await readFile(path, 'utf8').catch(() => '')
  return text.split('\n').filter((line) => line !== '')
}

async function lstatOrNull(path: string): Promise<Stats | null> {
  return lstat(path).catch(() => null)
}
