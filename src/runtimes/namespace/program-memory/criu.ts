import { accessSync, closeSync, constants, openSync, readSync } from 'node:fs'
import { type ProcessIdentity, printable } from '../../../guest/index.ts'
import { identify } from '../../helper-process.ts'
import { textEnd } from './bounds.ts'

/** Where scripts/install-criu.sh puts it. */
export const criuPathDefault = '/usr/local/lib/hutch/criu'
/** Where the helper opens these in what it starts. */
const imagesAt = '/proc/self/fd/100'
const workAt = '/proc/self/fd/101'
const freezerAt = '/proc/self/fd/102'
const streamFdFirst = 110
/** Of what the helper and CRIU say, from the end. */
const saidBytesMax = 128 * 1024
/** Until all threads are held, which a program that waits in the kernel may put off. */
const collectSecondsMax = 10
const ghostMbMax = 64
/** For the helper itself, when it was called off and CRIU had its time. */
const helperEndMsMax = 10_000
/** After its end, for what it said. */
const saidMsMax = 1000
const reasonCharsMax = 200
/** What CRIU tries at its start, and does without; and that it ends. */
const withoutMeaning = /kerndat|tun\.c|net\.c:1253|RLIMIT_NOFILE|(Dumping|Restoring) FAILED/
/** Of the helper, when CRIU ended by one; the number of the signal is on top. */
const exitCodeOfSignals = 128
const headerBytes = 4096
const interpreterSegment = 3

interface Tools {
  helperPath: string
  criuPath: string
  process1: ProcessIdentity
  uidBase: number
  imagesDir: string
  /** Calls it off: programs are left as they were, for which CRIU has `callOffMsMax` before it is killed. */
  stop: AbortSignal
  callOffMsMax: number
  /** Who does it, before anything is done. */
  begun?: (helper: ProcessIdentity) => void
}

/** What process 1 has of a pipe, and what tells that pipe from others. */
export interface Stream {
  descriptor: number
  key: string
}

/** Nothing of the sandbox is ever executed, nothing read that its own programs could have written for us. */
const common = [
  ...['-D', imagesAt, '-W', workAt, '-o', 'log', '-v1'],
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

/**
 * All of the instance is frozen, and is so again afterwards: in between CRIU holds every thread of it, so that none runs
 * while it works. @throws Error with what CRIU says, or why it was called off
 */
export async function dumpTree(
  options: Tools & {
    root: number
    /** Those that lead to process 1: they are made anew. */
    pipes: readonly string[]
    /** What is on its way in these is kept too. */
    streams: readonly Stream[]
    /** Where files are that are watched. */
    watched: readonly string[]
    freezerDir: string
    /** Of one image. */
    fileBytesMax: number
    /** The most that CRIU may share with a program while it is in it, which is no file of the disk. */
    sharedBytesMax: number
  },
): Promise<void> {
  const { root, pipes, streams, watched, freezerDir, fileBytesMax, sharedBytesMax } = options
  await run(
    'dump',
    options,
    [
      ...[`freezer=${freezerDir}`, `lastbytes=${sharedBytesMax}`],
      ...[`filebytes=${Math.max(fileBytesMax, sharedBytesMax)}`, ...streams.map(streamEntry)],
    ],
    [
      ...['dump', '-t', String(root), '--leave-running', '--network-lock', 'skip'],
      ...['--freeze-cgroup', freezerAt, '--timeout', String(collectSecondsMax)],
      ...['--ghost-limit', `${ghostMbMax}M`],
      ...watched.flatMap((path) => ['--irmap-scan-path', path]),
      ...pipes.flatMap((pipe) => ['--external', pipe]),
    ],
  )
}

/** All of the tree is stopped afterwards. @throws Error with what CRIU says, or why it was called off */
export async function restoreTree(
  options: Tools & {
    /** Files that a thread joins the groups of programs by. */
    groups: readonly string[]
    /** Behind all that programs have. */
    lastPid: number
    /** What process 1 has now of what programs had. */
    streams: readonly Stream[]
  },
): Promise<void> {
  const { groups, streams, lastPid } = options
  await run(
    'restore',
    options,
    [`lastpid=${lastPid}`, ...groups.map((path) => `group=${path}`), ...streams.map(streamEntry)],
    [
      ...['restore', '-d', '--leave-stopped'],
      ...streams.flatMap(({ key }, index) => ['--inherit-fd', `fd[${streamFdFirst + index}]:${key}`]),
    ],
  )
}

function streamEntry({ descriptor, key }: Stream): string {
  return `stream=${descriptor},${/\d+/.exec(key)?.[0]}`
}

async function run(role: string, tools: Tools, more: string[], argv: string[]): Promise<void> {
  const { helperPath, criuPath, process1, uidBase, imagesDir, stop, callOffMsMax, begun } = tools
  stop.throwIfAborted()
  const child = Bun.spawn(
    [
      ...[helperPath, 'criu', role, `process1=${process1.pid}`, `started=${process1.startTime}`],
      ...[`uidbase=${uidBase}`, `program=${criuPath}`, `images=${imagesDir}`, `stopms=${callOffMsMax}`],
      ...[...more, '--', ...argv, ...common],
    ],
    // It ends with this process, which its stdin tells it of; what a terminal sends to our group is not for it.
    { stdin: 'pipe', stdout: 'ignore', stderr: 'pipe', env: {}, cwd: '/', detached: true },
  )
  const helper = identify(child.pid)
  if (helper !== null) {
    begun?.(helper)
    child.stdin.write('g')
    void child.stdin.flush()
  }
  let late: Timer | null = null
  const callOff = () => {
    void child.stdin.end()
    late = setTimeout(() => child.kill('SIGKILL'), callOffMsMax + helperEndMsMax)
  }
  stop.addEventListener('abort', callOff)
  try {
    const text = textEnd(child.stderr, saidBytesMax).catch(() => '')
    const exitCode = await child.exited
    if (role === 'dump' && exitCode >= exitCodeOfSignals) {
      const why = stop.aborted ? reasonOf(stop.reason) : `CRIU ended with ${exitCode}`
      throw new Error(`${why}; it was killed, and a program that it held may have been hurt by that`)
    }
    stop.throwIfAborted()
    // Whoever else has its stderr open is not waited for.
    const said = exitCode === 0 ? '' : await Promise.race([text, Bun.sleep(saidMsMax).then(() => '')])
    if (exitCode !== 0) throw new Error(reasonIn(said) ?? `CRIU ended with ${exitCode}`)
  } finally {
    stop.removeEventListener('abort', callOff)
    if (late !== null) clearTimeout(late)
    void child.stdin.end()
  }
}

export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message.slice(0, 300) : String(error)
}

/** The first thing that went wrong, without where in its source. */
function reasonIn(log: string): string | null {
  const lines = log.split('\n').map((line) => printable(line).trim())
  const said = lines.filter((line) => line !== '' && !withoutMeaning.test(line))
  const line = said.find((text) => text.includes('Error')) ?? said.at(-1)
  if (!line) return null
  return line
    .replace(/^\([\d.]+\)\s*/, '')
    .replace(/Error \([^)]*\): /, '')
    .slice(0, reasonCharsMax)
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
