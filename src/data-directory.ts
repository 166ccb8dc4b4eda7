import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'

/**
 * Where a platform keeps its things, and the two small files by which a command finds the one that runs. Free of
 * other imports, so that `hutch env` starts at once.
 */

/** Written by a running `up`, removed when it stops. */
export interface RunningPlatform {
  pid: number
  /** e.g. `http://localhost:4400` */
  url: string
  startedAt: string
  /** Only when configured. */
  region?: string
  /** Of `--url`: how clients reach it who are not on this machine. */
  publicUrl?: string
  /** The driver of sandboxes, and how it isolates them: `kernel-shared`, `virtual-machine` or `none`. */
  runtime?: string
  isolation?: string
  /** Of `--criu`, where it was given. */
  criu?: string
}

/** The first admin's credentials, written by `up`. */
export interface Credentials {
  workspace: string
  apiKey: string
}

type Environment = Record<string, string | undefined>

export function dataDirDefault(env: Environment = process.env, uid = process.getuid?.() ?? 1): string {
  if (uid === 0) return '/var/lib/hutch'
  return join(env.XDG_DATA_HOME || join(homeOf(env, uid, '--data-dir'), '.local', 'share'), 'hutch')
}

/** A user without a home directory has no default. */
export function isDataDirDefault(dataDir: string): boolean {
  try {
    return dataDir === dataDirDefault()
  } catch {
    return false
  }
}

/** A user without an entry in /etc/passwd has no home directory, and the system only has an error's number for it. */
function homeOf(env: Environment, uid: number, flag: string): string {
  if (env.HOME) return env.HOME
  try {
    return homedir()
  } catch (error) {
    const message = `user ${uid} has no home directory: set HOME, or say where with ${flag} DIR`
    throw new Error(message, { cause: error })
  }
}

/** Images are frozen copies of the host's own programs, so data directories share them. */
export function imageDirDefault(env: Environment = process.env, uid = process.getuid?.() ?? 1): string {
  if (uid === 0) return '/var/cache/hutch/images'
  return join(env.XDG_CACHE_HOME || join(homeOf(env, uid, '--image-dir'), '.cache'), 'hutch', 'images')
}

/** What the directory says is running, or null. A platform that was killed leaves its file: its pid is checked. */
export function readRunningPlatform(dataDir: string): RunningPlatform | null {
  const running = readJson(join(dataDir, 'platform.json')) as Partial<RunningPlatform> | null
  if (typeof running?.pid !== 'number' || typeof running.url !== 'string') return null
  if (!isAlive(running.pid)) return null
  return {
    pid: running.pid,
    url: running.url,
    startedAt: String(running.startedAt ?? ''),
    ...(running.publicUrl ? { publicUrl: String(running.publicUrl) } : {}),
    ...(running.region ? { region: String(running.region) } : {}),
    ...(running.runtime ? { runtime: String(running.runtime) } : {}),
    ...(running.isolation ? { isolation: String(running.isolation) } : {}),
    ...(running.criu ? { criu: String(running.criu) } : {}),
  }
}

/** Null when no `up` ever finished on this directory. Throws EACCES when it belongs to somebody else. */
export function readCredentials(dataDir: string): Credentials | null {
  const credentials = readJson(join(dataDir, 'credentials.json')) as Partial<Credentials> | null
  if (typeof credentials?.workspace !== 'string' || typeof credentials.apiKey !== 'string') return null
  return { workspace: credentials.workspace, apiKey: credentials.apiKey }
}

/** Whole or not at all, for the eyes of the platform's own user. */
export function writeCredentials(dataDir: string, credentials: Credentials): void {
  mkdirSync(dataDir, { recursive: true })
  const path = join(dataDir, 'credentials.json')
  writeFileSync(`${path}.draft`, `${JSON.stringify(credentials)}\n`, { mode: 0o600 })
  renameSync(`${path}.draft`, path)
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    if (error instanceof SyntaxError || (error as { code?: string }).code === 'ENOENT') return null
    if ((error as { code?: string }).code === 'ENOTDIR') return null
    throw error
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    if ((error as { code?: string }).code !== 'EPERM') return false
  }
  return !isZombie(pid)
}

/** One that ended and that its parent never asked about: it has a pid, and nothing else. */
function isZombie(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name before the state is in parentheses, and may hold any character.
    return 'ZX'.includes(stat.charAt(stat.lastIndexOf(')') + 2))
  } catch {
    return false
  }
}
