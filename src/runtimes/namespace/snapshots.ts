import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, statfs, writeFile } from 'node:fs/promises'
import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { ProcessIdentity } from '../../guest/index.ts'
import { sync } from '../../lib/durable.ts'
import type { MemoryKept } from '../../spec/runtime.ts'
import { isAlive } from '../helper-process.ts'
import type { Archives } from './archive.ts'
import { allocatedBytes, type DiskImages } from './disk.ts'
import type { MemoryRecord, ProgramMemory } from './program-memory/index.ts'
import { instanceIdPattern } from './record.ts'

const draftSuffix = '.draft'
const recordName = 'snapshot.json'
const image = 'disk.img'
const archive = 'archive'
const memoryDir = 'memory'

/** Which disk instances are made with from it. */
const recordSchema = z.strictObject({ disk: z.enum(['loop', 'dir']) })
type Disk = z.infer<typeof recordSchema>['disk']

export interface SnapshotSource {
  /** The instance's directory. */
  dir: string
  disk: Disk
  /** Its process 1, frozen; null: nothing of it runs. */
  guest: ProcessIdentity | null
  /** Writes memory into a directory, with `copyFiles` at the same moment; as `ProgramMemory.capture`. Absent: none is kept. */
  memory?: (dir: string, copyFiles: () => Promise<void>) => Promise<MemoryKept | null>
}

/**
 * Snapshots as files beside the instances: of a disk image a copy, which shares its blocks where the host's file system
 * can and keeps its holes anywhere; of a plain directory an archive; of an archived instance a copy of its archive. What
 * is called `<id>.draft` was not completed.
 */
export class DiskSnapshots {
  readonly #dir: string
  readonly #cpPath: string
  readonly #archives: Archives
  readonly #diskImages: DiskImages | null
  readonly #freeBytesMin: number
  /** Until the kernel said that copies cannot share their blocks there. */
  #mayShare = true

  constructor(options: {
    dir: string
    cpPath: string
    archives: Archives
    diskImages: DiskImages | null
    /** What copies leave free on the host. */
    freeBytesMin: number
  }) {
    this.#dir = options.dir
    this.#cpPath = options.cpPath
    this.#archives = options.archives
    this.#diskImages = options.diskImages
    this.#freeBytesMin = options.freeBytesMin
  }

  async capture(
    snapshotId: string,
    source: SnapshotSource,
    signal?: AbortSignal,
  ): Promise<MemoryKept | null> {
    const draft = this.#pathOf(snapshotId) + draftSuffix
    signal?.throwIfAborted()
    await mkdir(this.#dir, { recursive: true, mode: 0o700 })
    await rm(draft, { recursive: true, force: true })
    await mkdir(draft, { mode: 0o700 })
    try {
      await writeFile(`${draft}/${recordName}`, JSON.stringify({ disk: source.disk }), { mode: 0o600 })
      const memory = await this.#copy(source, draft, signal)
      // Ended while it was copied: then its disk was being written to.
      if (source.guest !== null && !isAlive(source.guest)) throw notStill()
      return memory
    } catch (error) {
      await rm(draft, { recursive: true, force: true })
      signal?.throwIfAborted()
      throw error
    }
  }

  async complete(snapshotId: string, signal?: AbortSignal): Promise<number> {
    const whole = this.#pathOf(snapshotId)
    if (!existsSync(whole)) {
      const draft = whole + draftSuffix
      if (!existsSync(draft)) throw missing(snapshotId)
      // It was in use when it was copied, so that it needs looking through, as after the end of the host.
      const sound = !existsSync(`${draft}/${image}`) || (await this.#diskImages?.repair(`${draft}/${image}`))
      if (!sound) throw new PlatformError('unavailable', 'The copy of the disk cannot be made sound')
      signal?.throwIfAborted()
      for (const name of await readdir(draft)) await sync(`${draft}/${name}`)
      await sync(draft)
      await rename(draft, whole)
      await sync(this.#dir)
    }
    const files = existsSync(`${whole}/${image}`) ? `${whole}/${image}` : `${whole}/${archive}`
    return allocatedBytes(files) + (await treeBytes(`${whole}/${memoryDir}`))
  }

  /** The memory that programs had, where it is kept; else why it cannot be used. */
  async memoryOf(
    snapshotId: string,
    memory: ProgramMemory,
  ): Promise<{ dir: string; record: MemoryRecord } | { reason: string }> {
    const dir = `${this.#pathOf(snapshotId)}/${memoryDir}`
    const record = await memory.recordOf(dir)
    if (record === null) return { reason: 'it has files only' }
    const stale = memory.staleness(record)
    return stale === null ? { dir, record } : { reason: stale }
  }

  /** Puts the files of a snapshot into the directory of an instance that is being made; answers which disk that is. */
  async place(snapshotId: string, instanceDir: string, signal?: AbortSignal): Promise<void> {
    const from = this.#pathOf(snapshotId)
    const disk = await this.diskOf(snapshotId)
    if (existsSync(`${from}/${image}`)) {
      await this.#copyFile(`${from}/${image}`, `${instanceDir}/${image}`, signal)
    } else {
      await this.#archives.unpackFrom(`${from}/${archive}`, instanceDir, disk, signal)
    }
  }

  /** @throws not_found */
  async diskOf(snapshotId: string): Promise<Disk> {
    if (instanceIdPattern.test(snapshotId)) {
      const text = await readFile(`${this.#pathOf(snapshotId)}/${recordName}`, 'utf8').catch(() => null)
      if (text !== null) return recordSchema.parse(JSON.parse(text)).disk
    }
    throw missing(snapshotId)
  }

  async remove(snapshotId: string): Promise<void> {
    if (!instanceIdPattern.test(snapshotId)) return
    const whole = this.#pathOf(snapshotId)
    // Half of one is none: it must not be taken for whole.
    if (existsSync(whole)) {
      await rm(whole + draftSuffix, { recursive: true, force: true })
      await rename(whole, whole + draftSuffix)
    }
    await rm(whole + draftSuffix, { recursive: true, force: true })
  }

  async list(): Promise<string[]> {
    const names = await readdir(this.#dir).catch(() => [])
    const ids = names.map((name) => (name.endsWith(draftSuffix) ? name.slice(0, -draftSuffix.length) : name))
    return [...new Set(ids)].filter((id) => instanceIdPattern.test(id))
  }

  async #copy(source: SnapshotSource, draft: string, signal?: AbortSignal): Promise<MemoryKept | null> {
    if (source.guest === null || source.memory === undefined) {
      await this.#copyFiles(source, draft, signal)
      return source.guest === null ? null : { kept: false, reason: 'this host keeps no memory' }
    }
    const dir = `${draft}/${memoryDir}`
    await mkdir(dir, { mode: 0o700 })
    const memory = await source.memory(dir, () => this.#copyFiles(source, draft, signal))
    if (!memory?.kept) await rm(dir, { recursive: true, force: true })
    return memory
  }

  async #copyFiles({ dir, disk, guest }: SnapshotSource, draft: string, signal?: AbortSignal): Promise<void> {
    if (existsSync(`${dir}/${archive}`)) {
      await this.#copyFile(`${dir}/${archive}`, `${draft}/${archive}`, signal)
    } else if (disk === 'dir') {
      await this.#archives.packTo(dir, disk, `${draft}/${archive}`, signal)
    } else {
      if (guest === null) await this.#archives.detached(`${dir}/${image}`)
      // Its root directory is one of process 1, which nothing inside can change; asked of that, the kernel writes all
      // of the disk that is mounted behind it.
      else await run(['sync', '--file-system', `/proc/${guest.pid}/root`], signal)
      await this.#copyFile(`${dir}/${image}`, `${draft}/${image}`, signal)
    }
  }

  async #copyFile(from: string, to: string, signal?: AbortSignal): Promise<void> {
    if (this.#mayShare) {
      try {
        return await run([this.#cpPath, '--reflink=always', '--', from, to], signal)
      } catch (error) {
        signal?.throwIfAborted()
        // A copy of its own takes more.
        if (PlatformError.is(error) && error.code === 'insufficient_storage') throw error
        // Any other reason is one of this copy.
        if (isUnable(error)) this.#mayShare = false
      }
    }
    const { bavail, bsize } = await statfs(this.#dir)
    if (bavail * bsize - allocatedBytes(from) < this.#freeBytesMin) {
      throw new PlatformError(
        'insufficient_storage',
        'The host has too little disk left for a copy of the files',
      )
    }
    await run([this.#cpPath, '--reflink=never', '--sparse=auto', '--', from, to], signal)
  }

  #pathOf(snapshotId: string): string {
    return `${this.#dir}/${snapshotId}`
  }
}

/** Null where there is none that knows holes. */
export function findCp(): string | null {
  const path = Bun.which('cp')
  if (path === null) return null
  const { stdout } = Bun.spawnSync([path, '--version'], { stderr: 'ignore', env: {} })
  return stdout.toString().includes('coreutils') ? path : null
}

export function notStill(): PlatformError {
  return new PlatformError('conflict', 'The instance does not stand still')
}

function missing(snapshotId: string): PlatformError {
  return new PlatformError('not_found', `there is no snapshot ${snapshotId.slice(0, 64)} on this host`)
}

async function treeBytes(dir: string): Promise<number> {
  const names = await readdir(dir, { recursive: true }).catch(() => [])
  return names.reduce((sum, name) => sum + allocatedBytes(`${dir}/${name}`), 0)
}

/** Whether `cp` said that blocks cannot be shared there, in the words of the C locale for what the kernel answers. */
function isUnable(error: unknown): boolean {
  const cause = PlatformError.is(error) ? error.cause : error
  return /Operation not supported|Invalid cross-device link|Invalid argument|Inappropriate ioctl for device|Function not implemented/.test(
    String(cause),
  )
}

async function run(argv: string[], signal?: AbortSignal): Promise<void> {
  const child = Bun.spawn(argv, {
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'pipe',
    env: {},
    ...(signal ? { signal, killSignal: 'SIGKILL' as const } : {}),
  })
  const [said, exitCode] = await Promise.all([new Response(child.stderr).text(), child.exited])
  signal?.throwIfAborted()
  if (exitCode === 0) return
  const full = said.includes('No space left')
  throw new PlatformError(
    full ? 'insufficient_storage' : 'unavailable',
    full ? 'The disk of the host is full' : 'The files of the instance cannot be copied',
    { cause: new Error(`${argv[0]} exited with ${exitCode}: ${said.slice(0, 500)}`) },
  )
}
