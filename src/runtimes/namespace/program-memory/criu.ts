import { accessSync, closeSync, constants, openSync, readSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { type ProcessIdentity, printable } from '../../../guest/index.ts'

/** Where scripts/install-criu.sh puts it. */
export const criuPathDefault = '/usr/local/lib/hutch/criu'
/** Where the helper opens these in what it starts. */
const imagesAt = '/proc/self/fd/100'
const workAt = '/proc/self/fd/101'
const streamFdFirst = 110
const logName = 'log'
const logBytesMax = 64 * 1024 * 1024
/** Until all threads of a tree are held; on a host where everything waits it takes long. */
const collectSecondsMax = 60
const ghostMbMax = 64
const headerBytes = 4096
const interpreterSegment = 3

interface Tools {
  helperPath: string
  criuPath: string
  process1: ProcessIdentity
  uidBase: number
  /** Empty but for an empty directory `plugins`. */
  workDir: string
  imagesDir: string
}

/** Nothing of the sandbox is ever executed, nothing read that its own programs could have written for us. */
const common = [
  ...['-D', imagesAt, '-W', workAt, '-o', logName, '-v1'],
  ...['--no-default-config', '--libdir', `${workAt}/plugins`, '--unprivileged'],
  ...['--shell-job', '--tcp-close', '--file-locks', '--manage-cgroups=ignore'],
]

/** Null where there is none that can be used: it has to be static. */
export function findCriu(path: string | null): string | null {
  if (path === 'none') return null
  const wanted = path ?? criuPathDefault
  try {
    accessSync(wanted, constants.X_OK)
    return isStatic(wanted) ? wanted : null
  } catch {
    return null
  }
}

/** The tree of programs is stopped, and stays so. @throws Error with what CRIU says */
export async function dumpTree(
  options: Tools & {
    root: number
    /** Those that lead to process 1, and what it has of them: nothing may be on its way in them. */
    pipes: readonly string[]
    descriptors: readonly { input: boolean; descriptor: number }[]
    /** Where files are that are watched. */
    watched: readonly string[]
  },
): Promise<void> {
  const { root, pipes, descriptors, watched } = options
  await run(
    'dump',
    options,
    descriptors.map(({ input, descriptor }) => `${input ? 'input' : 'stream'}=${descriptor}`),
    [
      ...[
        'dump',
        '-t',
        String(root),
        '--leave-running',
        '--network-lock',
        'skip',
        '--timeout',
        String(collectSecondsMax),
      ],
      ...['--ghost-limit', `${ghostMbMax}M`],
      ...watched.flatMap((path) => ['--irmap-scan-path', path]),
      ...pipes.flatMap((pipe) => ['--external', pipe]),
    ],
  )
}

/** All of the tree is stopped afterwards. @throws Error with what CRIU says */
export async function restoreTree(
  options: Tools & {
    /** Files that a thread joins the groups of programs by. */
    groups: readonly string[]
    /** Behind all that programs have. */
    lastPid: number
    /** What programs had for a stream, and what process 1 has of it now. */
    streams: readonly { key: string; descriptor: number }[]
  },
): Promise<void> {
  const { groups, streams, lastPid } = options
  await run(
    'restore',
    options,
    [
      `lastpid=${lastPid}`,
      ...groups.map((path) => `group=${path}`),
      ...streams.map(({ descriptor }) => `stream=${descriptor}`),
    ],
    [
      ...['restore', '-d'],
      ...streams.flatMap(({ key }, index) => ['--inherit-fd', `fd[${streamFdFirst + index}]:${key}`]),
    ],
  )
}

async function run(role: string, tools: Tools, more: string[], argv: string[]): Promise<void> {
  const { helperPath, criuPath, process1, uidBase, workDir, imagesDir } = tools
  const child = Bun.spawn(
    [
      ...[helperPath, 'criu', role, `process1=${process1.pid}`, `uidbase=${uidBase}`],
      ...[`program=${criuPath}`, `images=${imagesDir}`, `work=${workDir}`],
      ...[...more, '--', ...argv, ...common],
    ],
    { stdin: 'ignore', stdout: 'ignore', stderr: 'pipe', env: {} },
  )
  const [said, exitCode] = await Promise.all([new Response(child.stderr).text(), child.exited])
  if (exitCode === 0) return
  const log = await readFile(`${workDir}/${logName}`).catch(() => Buffer.alloc(0))
  throw new Error(
    reasonIn(log.subarray(0, logBytesMax).toString()) ?? reasonIn(said) ?? `CRIU ended with ${exitCode}`,
  )
}

/** The first thing that went wrong, without where in its source. */
function reasonIn(log: string): string | null {
  const lines = log.split('\n').filter((line) => line.includes('Error'))
  // Of what it tries at its start, and does without.
  const line =
    lines.find((text) => !/kerndat|tun\.c|net\.c:1253|util\.c:1534/.test(text)) ??
    log.trim().split('\n').at(-1)
  if (!line) return null
  return printable(line.replace(/^\([\d.]+\)\s*/, '').replace(/Error \([^)]*\): /, '')).slice(0, 200)
}

function isStatic(path: string): boolean {
  const file = openSync(path, 'r')
  try {
    const header = Buffer.alloc(headerBytes)
    const got = readSync(file, header, 0, headerBytes, 0)
    if (got < 64 || header.toString('latin1', 1, 4) !== 'ELF' || header[4] !== 2 || header[5] !== 1)
      return false
    const at = Number(header.readBigUInt64LE(32))
    const size = header.readUInt16LE(54)
    const count = header.readUInt16LE(56)
    for (let index = 0; index < count; index++) {
      const segment = at + index * size
      if (segment + 4 > got || header.readUInt32LE(segment) === interpreterSegment) return false
    }
    return true
  } finally {
    closeSync(file)
  }
}
