import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  statfs,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import { makeSkeleton, skeletonStamp } from './skeleton.ts'

/** How /usr of the host becomes part of the image; `auto` is reflink where the file system can, else copy. */
export const hostImageSources = ['auto', 'reflink', 'copy', 'link', 'live'] as const
export type HostImageSource = (typeof hostImageSources)[number]

export interface HostImageOptions {
  /** Cache shared by the data directories of this host. */
  imageDir: string
  /** Whose instances stand on what `resolve` hands out. */
  dataDir: string
  source: HostImageSource
  /** What serves as `bun` inside; absent: no bun. */
  executablePath?: string
  clock: Clock
  log: Logger
  /** /usr of the host; another one in tests. */
  usrPath?: string
}

/** A platform that runs for a moment only (a test, a demo) should not start to copy gigabytes. */
const copyAfterMs = 600_000
/** Where the copy shares its bytes with the host it costs seconds and no room. */
const shareAfterMs = 5_000
/** Between two looks for a host that changed and has no frozen copy. */
const shareAgainMs = 60_000
const freeBytesMin = 4 * 1024 ** 3
const lockAttemptsMax = 3
const resolvedAgeMsMax = 1_000
const lockAgeMsMax = 60 * 60 * 1000

/**
 * The host image: the host's own /usr under a clean root directory. Until a frozen copy of /usr exists (it is made in
 * the background, once a host state, at the lowest priority) instances start from /usr itself, read-only. A changed
 * host makes a new frozen copy; one in use never changes.
 */
export class HostImage {
  readonly #options: HostImageOptions
  readonly #usr: string
  #skeleton: Promise<{ path: string; stamp: string }> | null = null
  #freezing: Promise<void> | null = null
  readonly #held = new Set<string>()
  /** Of the live /usr when an instance was last made to stand on it; null: none was. */
  #liveStamp: string | null = null
  /** Many sandboxes at once start from the same image: the host is looked at once for all of them. */
  #resolved: { at: number; root: Promise<RootFilesystem> } | null = null
  readonly #closed = new AbortController()

  constructor(options: HostImageOptions) {
    this.#options = options
    this.#usr = options.usrPath ?? '/usr'
  }

  /** Starts what runs in the background. The skeleton first: the first create needs it. */
  start(): void {
    void this.#currentSkeleton().catch((error) =>
      this.#options.log.warn('host image: no skeleton yet', { error: String(error) }),
    )
    if (this.#options.source === 'live' || process.getuid?.() !== 0) return
    void this.#freezeNowAndThen().catch((error) => {
      if (!this.#closed.signal.aborted)
        this.#options.log.warn('host image: not frozen any more', { error: String(error) })
    })
  }

  /** Also later: a host that was upgraded is another image. */
  async #freezeNowAndThen(): Promise<void> {
    const { clock, log } = this.#options
    const { signal } = this.#closed
    const shared = await this.#sharesBytes()
    await clock.sleep(shared ? shareAfterMs : copyAfterMs, signal)
    for (;;) {
      const stamp = await this.#usrStamp()
      if (this.#liveStamp !== null && this.#liveStamp !== stamp) {
        log.warn('host image: the host was changed while sandboxes stood on its own /usr; they may see it')
        this.#liveStamp = null
      }
      await this.freeze(signal).catch((error) => {
        signal.throwIfAborted()
        log.warn('host image: not frozen', { error: String(error) })
      })
      await clock.sleep(shared ? shareAgainMs : copyAfterMs, signal)
    }
  }

  /** Whether a frozen copy takes no bytes of its own: by hard links, or where the file system shares extents. */
  async #sharesBytes(): Promise<boolean> {
    const { imageDir, source } = this.#options
    if (source === 'link') return true
    if (source === 'copy') return false
    await mkdir(imageDir, { recursive: true, mode: 0o700 })
    const probe = await mkdtemp(join(imageDir, 'reflink-'))
    try {
      const from = await this.#someFile()
      if (from === null) return false
      const child = Bun.spawn(['cp', '--reflink=always', '--', from, join(probe, 'file')], {
        stdio: ['ignore', 'ignore', 'ignore'],
        env: { PATH: '/usr/local/bin:/usr/bin:/bin' },
      })
      return (await child.exited) === 0
    } finally {
      await rm(probe, { recursive: true, force: true })
    }
  }

  async #someFile(): Promise<string | null> {
    const programs = join(this.#usr, 'bin')
    for (const name of await readdir(programs).catch(() => [])) {
      const stats = await lstat(join(programs, name)).catch(() => null)
      if (stats?.isFile()) return join(programs, name)
    }
    return null
  }

  async close(): Promise<void> {
    this.#closed.abort(new PlatformError('unavailable', 'the platform is closing'))
    await this.#freezing?.catch(() => {})
  }

  /** The root file system to start from now; a change of the host is noticed within a second. */
  async resolve(signal?: AbortSignal): Promise<RootFilesystem> {
    signal?.throwIfAborted()
    const now = this.#options.clock.monotonic()
    if (this.#resolved === null || now - this.#resolved.at > resolvedAgeMsMax) {
      const resolved = { at: now, root: this.#resolveNow() }
      this.#resolved = resolved
      resolved.root.catch(() => {
        if (this.#resolved === resolved) this.#resolved = null
      })
    }
    return await this.#resolved.root
  }

  async #resolveNow(): Promise<RootFilesystem> {
    const skeleton = await this.#currentSkeleton()
    const frozen = await this.#frozenUsr()
    const usr = frozen ?? this.#usr
    if (frozen) await this.#hold(frozen)
    else this.#liveStamp = await this.#usrStamp()
    const mounts: RootFilesystem['mounts'] = [{ source: usr, target: '/usr', kind: 'overlay' }]
    if (this.#options.executablePath) {
      mounts.push({ source: this.#options.executablePath, target: '/opt/hutch/bun', kind: 'bind' })
    }
    const digest = createHash('sha256')
      .update(`${skeleton.stamp} ${usr} ${await this.#usrStamp()}`)
      .digest('hex')
    return { digest: `sha256:${digest}`, layers: [skeleton.path], mounts }
  }

  /** Makes a frozen copy of the present /usr unless there is one. */
  async freeze(signal?: AbortSignal): Promise<void> {
    this.#freezing ??= this.#freezeOnce(signal).finally(() => {
      this.#freezing = null
      this.#resolved = null
    })
    return this.#freezing
  }

  #currentSkeleton(): Promise<{ path: string; stamp: string }> {
    this.#skeleton ??= this.#openSkeleton().catch((error) => {
      this.#skeleton = null
      throw error
    })
    return this.#skeleton
  }

  async #openSkeleton(): Promise<{ path: string; stamp: string }> {
    const stamp = await skeletonStamp()
    await mkdir(this.#options.imageDir, { recursive: true, mode: 0o700 })
    const path = join(this.#options.imageDir, `host-root-${stamp}`)
    if (!existsSync(path)) {
      await makeSkeleton(path)
      await writeBunLauncher(path)
    }
    return { path, stamp }
  }

  /** The frozen /usr that equals the host's by its stamp, or null. */
  async #frozenUsr(): Promise<string | null> {
    const path = join(this.#options.imageDir, `host-usr-${await this.#usrStamp()}`)
    return existsSync(join(path, 'complete')) ? join(path, 'usr') : null
  }

  /**
   * Changes whenever a package is installed, removed or upgraded, or an entry of a main directory comes or goes.
   * Cheap enough to ask at every create.
   */
  async #usrStamp(): Promise<string> {
    const hash = createHash('sha256')
    for (const path of [
      '',
      'bin',
      'sbin',
      'lib',
      'share',
      'libexec',
      'lib/x86_64-linux-gnu',
      'lib/aarch64-linux-gnu',
    ]) {
      const stats = await lstat(join(this.#usr, path)).catch(() => null)
      if (stats) hash.update(`${path} ${stats.mtimeMs} ${stats.ino}\n`)
    }
    for (const path of [
      '/var/lib/dpkg/status',
      '/var/lib/rpm',
      '/lib/apk/db/installed',
      '/var/lib/pacman/local',
    ]) {
      const stats = await lstat(path).catch(() => null)
      if (stats) hash.update(`${path} ${stats.mtimeMs} ${stats.size}\n`)
    }
    return hash.digest('hex').slice(0, 32)
  }

  async #freezeOnce(signal: AbortSignal | undefined): Promise<void> {
    const { imageDir, source, log, clock } = this.#options
    const stamp = await this.#usrStamp()
    const target = join(imageDir, `host-usr-${stamp}`)
    if (existsSync(join(target, 'complete'))) return
    await mkdir(imageDir, { recursive: true, mode: 0o700 })
    const space = await statfs(imageDir)
    if (source !== 'link' && space.bavail * space.bsize < freeBytesMin) {
      throw new PlatformError(
        'insufficient_storage',
        `${imageDir} has too little free space to copy ${this.#usr} into`,
      )
    }
    const lock = join(imageDir, `host-usr-${stamp}.lock`)
    if (!(await takeLock(lock, clock.now()))) return
    const draft = join(imageDir, `host-usr-${stamp}.draft`)
    try {
      await rm(draft, { recursive: true, force: true })
      await mkdir(join(draft, 'usr'), { recursive: true, mode: 0o755 })
      const started = clock.monotonic()
      const how = {
        auto: ['--reflink=auto'],
        reflink: ['--reflink=always'],
        copy: ['--reflink=never'],
        link: ['--link'],
        live: [],
      }
      for (const entry of await readdir(this.#usr)) {
        if (entry === 'local') continue
        await copyTree(join(this.#usr, entry), join(draft, 'usr'), how[source], signal)
      }
      for (const entry of ['bin', 'lib', 'sbin', 'share', 'etc', 'include', 'src']) {
        await mkdir(join(draft, 'usr/local', entry), { recursive: true })
      }
      if ((await this.#usrStamp()) !== stamp)
        throw new PlatformError('unavailable', `${this.#usr} changed while it was copied`)
      await writeFile(join(draft, 'complete'), `${new Date(clock.now()).toISOString()}\n`)
      await rename(draft, target)
      log.info('host image: frozen', { seconds: Math.round((clock.monotonic() - started) / 1000) })
      await this.#dropOld(stamp)
    } finally {
      await rm(draft, { recursive: true, force: true })
      await rm(lock, { force: true })
    }
  }

  /**
   * Says which host directories instances of this data directory still stand on; what `resolve` hands out later is
   * added by itself. Everything else this data directory held is let go.
   */
  async retain(paths: Iterable<string>): Promise<void> {
    this.#held.clear()
    for (const path of paths) if (path.startsWith(this.#options.imageDir)) this.#held.add(path)
    await this.#writeLease()
  }

  async #hold(path: string): Promise<void> {
    if (this.#held.has(path)) return
    this.#held.add(path)
    await this.#writeLease()
  }

  async #writeLease(): Promise<void> {
    const { imageDir, dataDir } = this.#options
    const leases = join(imageDir, 'leases')
    await mkdir(leases, { recursive: true, mode: 0o700 })
    const path = join(leases, `${createHash('sha256').update(dataDir).digest('hex').slice(0, 32)}.json`)
    if (this.#held.size === 0) return rm(path, { force: true })
    await writeFile(`${path}.draft`, JSON.stringify({ dataDir, paths: [...this.#held] }))
    await rename(`${path}.draft`, path)
  }

  /** Drops frozen copies that are neither the newest nor held by a data directory that still exists. */
  async #dropOld(currentStamp: string): Promise<void> {
    const { imageDir } = this.#options
    const held = await heldPaths(join(imageDir, 'leases'))
    for (const name of await readdir(imageDir)) {
      if (!/^host-usr-[0-9a-f]{32}$/.test(name) || name === `host-usr-${currentStamp}`) continue
      const path = join(imageDir, name)
      if (!held.has(join(path, 'usr'))) await rm(path, { recursive: true, force: true })
    }
  }
}

async function heldPaths(leases: string): Promise<Set<string>> {
  const held = new Set<string>()
  for (const name of await readdir(leases).catch(() => [])) {
    if (!name.endsWith('.json')) continue
    const lease = JSON.parse(await readFile(join(leases, name), 'utf8')) as {
      dataDir: string
      paths: string[]
    }
    if (existsSync(lease.dataDir)) for (const path of lease.paths) held.add(path)
    else await rm(join(leases, name), { force: true })
  }
  return held
}

async function copyTree(
  from: string,
  into: string,
  how: string[],
  signal: AbortSignal | undefined,
): Promise<void> {
  signal?.throwIfAborted()
  const child = Bun.spawn([...idlePriority(), 'cp', '-a', ...how, '--', from, `${into}/`], {
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'pipe',
    env: { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C' },
    ...(signal ? { signal } : {}),
  })
  const [code, errors] = await Promise.all([child.exited, new Response(child.stderr).text()])
  signal?.throwIfAborted()
  if (code !== 0) {
    throw new PlatformError('unavailable', `copying ${from} failed`, { cause: errors.slice(0, 2000) })
  }
}

/** Whoever works on this host goes first, for the processor and for the disk. */
function idlePriority(): string[] {
  const ionice = Bun.which('ionice')
  return ['nice', '-n', '19', ...(ionice ? [ionice, '-c', '3'] : [])]
}

async function takeLock(path: string, now: number): Promise<boolean> {
  for (let attempt = 0; attempt < lockAttemptsMax; attempt++) {
    try {
      await writeFile(path, String(process.pid), { flag: 'wx' })
      return true
    } catch {
      const holder = Number(await readFile(path, 'utf8').catch(() => '0'))
      const stats = await lstat(path).catch(() => null)
      const alive = holder > 0 && existsSync(`/proc/${holder}`)
      if (alive && stats && now - stats.mtimeMs < lockAgeMsMax) return false
      await rm(path, { force: true })
    }
  }
  return false
}

/** The platform's own executable is the JavaScript runtime inside; this is its name there. */
async function writeBunLauncher(root: string): Promise<void> {
  const path = join(root, 'opt/hutch/bin')
  await mkdir(path, { recursive: true })
  await writeFile(join(path, 'bun'), '#!/bin/sh\nBUN_BE_BUN=1 exec /opt/hutch/bun "$@"\n')
  await chmod(join(path, 'bun'), 0o755)
}
