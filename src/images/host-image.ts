import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { lstat, mkdir, mkdtemp, readdir, readFile, rename, rm, statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { Layers } from '../spec/layers.ts'
import type { RootFilesystem, RootMount } from '../spec/runtime.ts'
import { copyTree, idlePriority, removeLater } from './idle-work.ts'
import { draftMark, makeWhole } from './made-whole.ts'
import { makeSkeleton, skeletonStamp } from './skeleton.ts'
import { removeUnreadable } from './unreadable.ts'
import { makeLocal, UsrMask, usrRevision } from './usr-mask.ts'
import { makeWholeHost, wholeHostRevision } from './whole-host.ts'

/** How /usr of the host becomes part of the image; `auto` is reflink where the file system can, else copy. */
const hostImageSources = ['auto', 'reflink', 'copy', 'link', 'live'] as const
export type HostImageSource = (typeof hostImageSources)[number]

export interface HostImageOptions {
  /** Cache shared by the data directories of this host. */
  imageDir: string
  /** Whose instances stand on what `resolve` hands out. */
  dataDir: string
  source: HostImageSource
  /** /usr/local of the host is part of the image; else an empty one is. */
  usrLocal: boolean
  /** Null: no driver here starts from layers, and nothing of the host is hidden. */
  layers: Layers | null
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
/** Nothing is made for as long. */
const leftoverAgeMsMin = 60 * 60 * 1000
const probeMark = 'reflink-'
const wholeMark = 'host-whole-'

/**
 * The host image: the host's own /usr under a clean root directory. Until a frozen copy of /usr exists (it is made in
 * the background, once a host state, at the lowest priority) instances start from /usr itself, read-only. A changed
 * host makes a new frozen copy; one in use never changes.
 */
export class HostImage {
  readonly #options: HostImageOptions
  readonly #usr: string
  #skeleton: Promise<{ path: string; stamp: string }> | null = null
  readonly #making = new KeyedLock()
  #freezing: Promise<void> | null = null
  /** Null for ordinary users: what they may not read outside they do not read inside. */
  readonly #mask: UsrMask | null
  readonly #held = new Set<string>()
  /** Of the live /usr when an instance was last made to stand on it; null: none was. */
  #liveStamp: string | null = null
  /** Many sandboxes at once start from the same image: the host is looked at once for all of them. */
  #resolved: { at: number; root: Promise<RootFilesystem> } | null = null
  readonly #closed = new AbortController()

  constructor(options: HostImageOptions) {
    this.#options = options
    this.#usr = options.usrPath ?? '/usr'
    const { imageDir, layers, usrLocal } = options
    this.#mask =
      layers !== null && asRoot()
        ? new UsrMask({ usr: this.#usr, imageDir, layers, withoutLocal: !usrLocal })
        : null
  }

  /** Starts what runs in the background. The skeleton first: the first create needs it. */
  start(): void {
    void this.#currentSkeleton().catch((error) =>
      this.#options.log.warn('host image: no skeleton yet', { error: String(error) }),
    )
    void this.#removeLeftovers().catch((error) =>
      this.#options.log.warn('host image: leftovers stay', { error: String(error) }),
    )
    if (!asRoot()) return
    void this.#makeMask().catch((error) => {
      if (!this.#closed.signal.aborted)
        this.#options.log.warn('host image: no mask yet', { error: String(error) })
    })
    void this.#freezeNowAndThen().catch((error) => {
      if (!this.#closed.signal.aborted)
        this.#options.log.warn('host image: not frozen any more', { error: String(error) })
    })
  }

  /** Also later: a host that was upgraded is another image. */
  async #freezeNowAndThen(): Promise<void> {
    const { clock, log, source } = this.#options
    const { signal } = this.#closed
    const shared = await this.#sharesBytes()
    await clock.sleep(shareAfterMs, signal)
    await this.#lookForPrivateFiles()
    if (!shared) await clock.sleep(copyAfterMs - shareAfterMs, signal)
    for (;;) {
      const stamp = await this.#usrStamp()
      if (this.#liveStamp !== null && this.#liveStamp !== stamp) {
        log.warn('host image: the host was changed while sandboxes stood on its own /usr; they may see it')
        this.#liveStamp = null
      }
      if (source !== 'live') {
        await this.freeze(signal).catch((error) => {
          signal.throwIfAborted()
          log.warn('host image: not frozen', { error: String(error) })
        })
      }
      await this.#lookForPrivateFiles()
      await clock.sleep(shared ? shareAgainMs : copyAfterMs, signal)
    }
  }

  /** So that the first sandbox need not wait for it. */
  async #makeMask(): Promise<void> {
    await mkdir(this.#options.imageDir, { recursive: true, mode: 0o700 })
    await this.#maskOf(await this.#usrStamp())
  }

  async #maskOf(stamp: string): Promise<string | null> {
    return this.#mask === null || (await this.#frozenUsr(stamp)) !== null ? null : await this.#mask.of(stamp)
  }

  /** A file of the live /usr may have become private without a package that changed. */
  async #lookForPrivateFiles(): Promise<void> {
    const { imageDir, clock, log } = this.#options
    const stamp = await this.#usrStamp()
    if (this.#mask === null || (await this.#frozenUsr(stamp)) !== null) return
    try {
      if (await this.#mask.refresh(stamp)) {
        log.info('host image: what not everybody may read has changed')
        this.#resolved = null
      }
      await this.#mask.dropOld(stamp, await heldPaths(join(imageDir, 'leases')), clock.now())
    } catch (error) {
      this.#closed.signal.throwIfAborted()
      log.warn('host image: not looked at', { error: String(error) })
    }
  }

  /** What a platform that was killed was making. */
  async #removeLeftovers(): Promise<void> {
    const { imageDir, clock } = this.#options
    const held = await heldPaths(join(imageDir, 'leases'))
    for (const name of await readdir(imageDir).catch(() => [] as string[])) {
      const path = join(imageDir, name)
      // Made again when it is needed.
      const isUnused = name.startsWith(wholeMark) && !held.has(path)
      if (!name.startsWith(probeMark) && !name.includes(draftMark) && !isUnused) continue
      const stats = await lstat(path).catch(() => null)
      // Its modification time is that of the directory it was copied from.
      const madeAt = isUnused ? stats?.ctimeMs : stats?.mtimeMs
      if (madeAt !== undefined && clock.now() - madeAt > leftoverAgeMsMin)
        await rm(path, { recursive: true, force: true })
    }
  }

  /** Whether a frozen copy takes no bytes of its own: by hard links, or where the file system shares extents. */
  async #sharesBytes(): Promise<boolean> {
    const { imageDir, source } = this.#options
    if (source === 'link') return true
    if (source === 'copy' || source === 'live') return false
    await mkdir(imageDir, { recursive: true, mode: 0o700 })
    const probe = await mkdtemp(join(imageDir, probeMark))
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
    const reason = new PlatformError('unavailable', 'the platform is closing')
    this.#closed.abort(reason)
    await this.#mask?.close(reason)
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

  /** Another one once programs of the host were installed, upgraded or removed. */
  async revision(): Promise<string> {
    return await this.#usrStamp()
  }

  /**
   * The same files as layers alone, topmost first: for images that are stacked on them and have a part of /usr of their own.
   * @throws unprocessable for ordinary users
   */
  async resolveWhole(signal?: AbortSignal): Promise<RootFilesystem> {
    if (!asRoot()) {
      throw new PlatformError(
        'unprocessable',
        'to build on the host image takes a platform that runs as root',
      )
    }
    signal?.throwIfAborted()
    const { skeleton, usr, mask, stamp } = await this.#parts()
    const key = [wholeHostRevision, skeleton.stamp, usr, stamp, mask ?? ''].join(' ')
    const digest = createHash('sha256').update(`whole ${key}`).digest('hex')
    const path = join(this.#options.imageDir, `${wholeMark}${digest.slice(0, 32)}`)
    await this.#hold(path)
    await this.#making.run(path, async () => {
      if (!existsSync(path)) await makeWholeHost(path, { skeleton: skeleton.path, usr, mask })
    })
    return { digest: `sha256:${digest}`, layers: [path, usr], mounts: this.#ownMounts() }
  }

  #ownMounts(): RootMount[] {
    const { executablePath: source } = this.#options
    return source === undefined ? [] : [{ source, target: '/opt/hutch/bun', kind: 'bind' }]
  }

  /** What the host image is made of now, held for this data directory. */
  async #parts() {
    const skeleton = await this.#currentSkeleton()
    const stamp = await this.#usrStamp()
    const frozen = await this.#frozenUsr(stamp)
    const mask = frozen ? null : await this.#maskOf(stamp)
    if (frozen) await this.#hold(frozen)
    else this.#liveStamp = stamp
    if (mask) await this.#hold(mask)
    return { skeleton, stamp, usr: frozen ?? this.#usr, mask }
  }

  /** An ordinary user's sandboxes may not write /usr, but for a directory of their own in it. */
  get #hasOwnLocal(): boolean {
    return !asRoot() && !this.#options.usrLocal && existsSync(join(this.#usr, 'local'))
  }

  /** Variables for programs inside: npm installs for all where that can be written. */
  get env(): Record<string, string> {
    return this.#hasOwnLocal ? { NPM_CONFIG_PREFIX: '/usr/local' } : {}
  }

  async #resolveNow(): Promise<RootFilesystem> {
    const { skeleton, stamp, usr, mask } = await this.#parts()
    const mounts: RootMount[] = [{ source: usr, target: '/usr', kind: 'overlay', ...(mask ? { mask } : {}) }]
    if (this.#hasOwnLocal) {
      mounts.push({ source: await this.#ownLocal(), target: '/usr/local', kind: 'overlay' })
    }
    mounts.push(...this.#ownMounts())
    const digest = createHash('sha256')
      .update(`${skeleton.stamp} ${usr} ${stamp} ${mask ?? ''}`)
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
    if (!existsSync(path)) await makeSkeleton(path)
    return { path, stamp }
  }

  /** An ordinary user cannot hide what is in the host's: its own is mounted over that. */
  async #ownLocal(): Promise<string> {
    const path = join(this.#options.imageDir, `host-local-${usrRevision}`)
    if (!existsSync(path)) await makeWhole(path, makeLocal)
    return path
  }

  /** The frozen /usr that equals the host's by its stamp, or null. */
  async #frozenUsr(stamp: string): Promise<string | null> {
    const path = join(this.#options.imageDir, `host-usr-${stamp}`)
    return existsSync(join(path, 'complete')) ? join(path, 'usr') : null
  }

  /**
   * Changes whenever a package is installed, removed or upgraded, or an entry of a main directory comes or goes.
   * Cheap enough to ask at every create.
   */
  async #usrStamp(): Promise<string> {
    const { usrLocal } = this.#options
    const hash = createHash('sha256').update(`${usrRevision} ${usrLocal}\n`)
    for (const path of [
      ...(usrLocal ? ['local', 'local/bin', 'local/lib', 'local/share'] : []),
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
    const { imageDir, source, log, clock, usrLocal } = this.#options
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
        if (entry === 'local' && !usrLocal) continue
        await copyTree(join(this.#usr, entry), join(draft, 'usr'), how[source], signal)
      }
      await removeUnreadable(join(draft, 'usr'), idlePriority(), ['.'], signal)
      if (!usrLocal) await makeLocal(join(draft, 'usr/local'))
      if ((await this.#usrStamp()) !== stamp)
        throw new PlatformError('unavailable', `${this.#usr} changed while it was copied`)
      await writeFile(join(draft, 'complete'), `${new Date(clock.now()).toISOString()}\n`)
      await rename(draft, target)
      log.info('host image: frozen', { seconds: Math.round((clock.monotonic() - started) / 1000) })
      await this.#dropOld(stamp)
    } finally {
      if (signal?.aborted) await removeLater(draft)
      else await rm(draft, { recursive: true, force: true })
      await rm(lock, { force: true })
    }
  }

  /**
   * Says which host directories instances of this data directory still stand on; what `resolve` hands out later is
   * added by itself. Everything else this data directory held is let go.
   */
  async retain(roots: Iterable<RootFilesystem>): Promise<void> {
    this.#held.clear()
    const paths = [...roots].flatMap(({ layers, mounts }) => [
      ...layers,
      ...mounts.flatMap(({ source, mask }) => (mask === undefined ? [source] : [source, mask])),
    ])
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

function asRoot(): boolean {
  return process.getuid?.() === 0
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
