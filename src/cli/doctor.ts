import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm, statfs } from 'node:fs/promises'
import { createServer } from 'node:net'
import { availableParallelism, freemem, release, tmpdir, totalmem, userInfo } from 'node:os'
import { dirname, join } from 'node:path'
import type { Config } from '../config.ts'
import { type RunningPlatform, readRunningPlatform } from '../data-directory.ts'
import { systemClock } from '../lib/clock.ts'
import { findDockerfileTool } from '../lib/dockerfile-tool.ts'
import { silentLogger } from '../lib/log.ts'
import { command } from './command.ts'
import { dataDirFor } from './connection.ts'
import { bytes, note, paint, print, printJson } from './output.ts'

/** One thing that is possible here, or not, and then why and what to do. */
export interface Finding {
  group: 'isolation' | 'images' | 'clients' | 'host'
  subject: string
  ok: boolean
  /** The platform does not start, or cannot do its work, without it. */
  needed: boolean
  detail: string
  remedy?: string
}

const programTimeoutMs = 10_000
const freeBytesMin = 2 * 1024 ** 3

export const doctor = command({
  name: 'doctor',
  summary:
    'Says what isolation, limits, standby, images and clients are possible on this host. Exits 1 when up cannot work.',
  flags: {
    'data-dir': { kind: 'text', value: 'DIR', about: 'data directory that up will use' },
    port: { kind: 'number', value: 'PORT', about: 'port that up will use (4400)' },
    criu: { kind: 'text', value: 'PATH', about: 'static CRIU that up will use, or none' },
  },
  notes: [
    'What is not said here is as the settings of the data directory have it, or the platform that runs on it.',
  ],
  async run({ flags }) {
    const dataDir = dataDirFor(flags['data-dir'])
    const config = await settings(dataDir)
    const running = readRunningPlatform(dataDir)
    const port = flags.port ?? portOf(running) ?? config.port
    const criu = flags.criu ?? running?.criu ?? config.criu
    const findings = (
      await Promise.all([isolation(criu), images(config.imageLocal), clients(), host(config, port, running)])
    ).flat()
    const usable = findings.every((finding) => finding.ok || !finding.needed)
    if (flags.json) printJson({ usable, findings: findings.map(withoutIdleRemedy) })
    else show(findings, usable)
    return usable ? 0 : 1
  },
})

/** A remedy is for what is not there. */
function withoutIdleRemedy({ remedy, ...finding }: Finding): Finding {
  return finding.ok || remedy === undefined ? finding : { ...finding, remedy }
}

function show(findings: Finding[], usable: boolean): void {
  const width = Math.max(...findings.map((finding) => finding.subject.length))
  let group = ''
  for (const finding of findings) {
    if (finding.group !== group) {
      group = finding.group
      print(paint('bold', group))
    }
    const mark = finding.ok ? paint('green', 'yes ') : paint(finding.needed ? 'red' : 'yellow', 'no  ')
    print(`  ${mark} ${finding.subject.padEnd(width)}  ${finding.detail}`)
    if (finding.remedy && !finding.ok) print(`  ${' '.repeat(5 + width)}  do: ${finding.remedy}`)
  }
  note(usable ? 'hutch up works here.' : 'hutch up does not work here until every red line is mended.')
}

function portOf(running: RunningPlatform | null): number | undefined {
  return running === null ? undefined : Number(new URL(running.url).port || 80)
}

async function isolation(criuPath: string | null): Promise<Finding[]> {
  const [{ probeNamespace, probeScratchPrefix, removeAbandonedProbes }, { extractHelper }, { helperSource }] =
    await Promise.all([
      import('../runtimes/namespace/index.ts'),
      import('../runtimes/helper-binary.ts'),
      import('../runtimes/embedded-helper.ts'),
    ])
  // What cannot be taken away now is for the next one.
  await removeAbandonedProbes(tmpdir(), systemClock).catch(() => {})
  const scratch = await mkdtemp(join(tmpdir(), probeScratchPrefix()))
  const probe = await (async () => {
    try {
      const helperPath = await extractHelper(Bun.file(helperSource), scratch)
      const instancesDir = join(scratch, 'instances')
      const parts = { log: silentLogger, clock: systemClock, criuPath }
      return await probeNamespace({ instancesDir, helperPath, ...parts })
    } finally {
      await rm(scratch, { recursive: true, force: true })
    }
  })()
  return [
    {
      group: 'isolation',
      subject: 'namespace runtime',
      ok: probe.usable,
      needed: true,
      detail: probe.usable ? 'usable' : probe.reason,
    },
    ...probe.notes.map((item): Finding => ({ group: 'isolation', needed: false, ...item })),
    ...ownUser(process.getuid?.() ?? 0),
  ]
}

/** What up would use. A setting that it would refuse is not for doctor to tell. */
async function settings(dataDir: string): Promise<Config> {
  const { configDefaults, loadConfig } = await import('../config.ts')
  try {
    return loadConfig({ env: process.env, flags: { dataDir } })
  } catch {
    return configDefaults(dataDir)
  }
}

/** What root's sandboxes have and those of an ordinary user may lack. */
function ownUser(uid: number): Finding[] {
  if (uid === 0) return []
  const username = nameOf(uid)
  const listed = ['/etc/subuid', '/etc/subgid'].every((file) => hasRange(file, username, uid))
  const mapper = Bun.which('newuidmap') !== null && Bun.which('newgidmap') !== null
  return [
    {
      group: 'isolation',
      subject: 'users in a sandbox',
      ok: listed && mapper,
      needed: false,
      detail:
        listed && mapper
          ? 'as many as /etc/subuid gives; /usr of default images is read-only'
          : 'root alone: chown, su and apt to other users fail; /usr of default images is read-only',
      remedy: `sudo apt-get install -y uidmap && sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${username}`,
    },
  ]
}

/** Users without an entry in /etc/passwd are their number. */
function nameOf(uid: number): string {
  try {
    const { username } = userInfo()
    return username === 'unknown' ? String(uid) : username
  } catch {
    return String(uid)
  }
}

function hasRange(file: string, username: string, uid: number): boolean {
  try {
    return readFileSync(file, 'utf8')
      .split('\n')
      .some((line) => line.startsWith(`${username}:`) || line.startsWith(`${uid}:`))
  } catch {
    return false
  }
}

/** Default images are this host's own programs: what it has is what sandboxes have. */
async function images(usrLocal: boolean): Promise<Finding[]> {
  const programs = [
    { name: 'node', install: 'sudo apt-get install -y nodejs' },
    { name: 'python3', install: 'sudo apt-get install -y python3' },
    { name: 'git', install: 'sudo apt-get install -y git' },
  ]
  const found = programs.map(({ name, install }): Finding => {
    // A program outside /usr is not part of the image.
    const path = [...(usrLocal ? ['/usr/local/bin'] : []), '/usr/bin', '/bin']
      .map((directory) => join(directory, name))
      .find((place) => existsSync(place))
    const local = join('/usr/local/bin', name)
    const elsewhere = existsSync(local) ? local : Bun.which(name)
    return {
      group: 'images',
      subject: `${name} in default images`,
      ok: path !== undefined,
      needed: false,
      detail:
        path ??
        (elsewhere ? `only ${elsewhere}, which default images leave out` : 'not installed on this host'),
      remedy:
        elsewhere === local ? `${install}, or let default images have it: hutch up --image-local` : install,
    }
  })
  return [...found, await dockerfiles()]
}

async function dockerfiles(): Promise<Finding> {
  const { tool, detail, remedy } = await findDockerfileTool(process.getuid?.() === 0)
  const finding: Finding = {
    group: 'images',
    subject: 'building Dockerfiles',
    ok: tool !== null,
    needed: false,
    detail,
  }
  return remedy === undefined ? finding : { ...finding, remedy }
}

async function clients(): Promise<Finding[]> {
  const node = Bun.which('node')
  const resolves = node ? await resolvesPreviewNames(node) : null
  return [
    {
      group: 'clients',
      subject: 'node',
      ok: node !== null,
      needed: false,
      detail: node ? `${node} ${await versionOf(node)}` : 'not installed: npm packages of the cloud need it',
      remedy: 'sudo apt-get install -y nodejs npm',
    },
    {
      group: 'clients',
      subject: 'names under .localhost',
      ok: resolves === true,
      needed: false,
      detail:
        resolves === null
          ? 'not tried without node'
          : resolves
            ? 'node resolves them: previews work by host name'
            : 'node does not resolve them (browsers and curl do): there the address by path, /-/preview/ID/, which runs no scripts of pages',
      remedy: 'sudo apt-get install -y libnss-myhostname',
    },
  ]
}

async function host(
  { dataDir, imageDir }: Config,
  port: number,
  running: RunningPlatform | null,
): Promise<Finding[]> {
  const disk = async (directory: string) => {
    const stats = await statfs(existingParent(directory))
    return stats.bavail * stats.bsize
  }
  const free = await disk(dataDir)
  const imagesFree = await disk(imageDir)
  const portFree = await canListen(port)
  const servesPort = running !== null && portOf(running) === port
  return [
    {
      group: 'host',
      subject: 'kernel',
      ok: process.platform === 'linux',
      needed: true,
      detail: `${process.platform} ${release()} ${process.arch}`,
      remedy: 'run hutch in a Linux VM, or in WSL2',
    },
    {
      group: 'host',
      subject: 'processors and memory',
      ok: true,
      needed: false,
      detail: `${availableParallelism()} processors, ${bytes(totalmem())} (${bytes(availableMemory())} available)`,
    },
    {
      group: 'host',
      subject: 'disk for data',
      ok: free >= freeBytesMin,
      needed: false,
      detail: `${bytes(free)} free for ${dataDir}`,
      remedy: 'free some space, or choose another place: hutch up --data-dir DIR',
    },
    {
      group: 'host',
      subject: 'disk for images',
      ok: imagesFree >= freeBytesMin,
      needed: false,
      detail: `${bytes(imagesFree)} free for ${imageDir}`,
      remedy: 'free some space, or choose another place: hutch up --image-dir DIR',
    },
    {
      group: 'host',
      subject: `port ${port}`,
      ok: portFree || servesPort,
      needed: false,
      detail: servesPort
        ? `the platform runs here: ${running.url}`
        : portFree
          ? 'free'
          : 'held by another program',
      remedy: 'hutch up --port 0',
    },
  ]
}

/** Node asks the system's resolver, which knows names under .localhost only with a module for it. */
async function resolvesPreviewNames(node: string): Promise<boolean> {
  const script =
    "require('node:dns').lookup('probe.preview.localhost', (error) => process.exit(error ? 1 : 0))"
  const child = Bun.spawn([node, '-e', script], {
    stdio: ['ignore', 'ignore', 'ignore'],
    timeout: programTimeoutMs,
  })
  return (await child.exited) === 0
}

async function versionOf(program: string): Promise<string> {
  const child = Bun.spawn([program, '--version'], {
    stdio: ['ignore', 'pipe', 'ignore'],
    timeout: programTimeoutMs,
  })
  return (await new Response(child.stdout).text()).trim().slice(0, 40)
}

/** What programs could still get: free memory counts the page cache as used. */
function availableMemory(): number {
  try {
    const kib = /^MemAvailable: +(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]
    return kib === undefined ? freemem() : Number(kib) * 1024
  } catch {
    return freemem()
  }
}

function existingParent(directory: string): string {
  let place = directory
  while (!existsSync(place) && dirname(place) !== place) place = dirname(place)
  return place
}

async function canListen(port: number): Promise<boolean> {
  const server = createServer()
  const { promise, resolve } = Promise.withResolvers<boolean>()
  server.once('error', () => resolve(false))
  server.listen({ port, host: '127.0.0.1' }, () => server.close(() => resolve(true)))
  return await promise
}
