import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { open, rename } from 'node:fs/promises'
import { dirname } from 'node:path'
import { PlatformError } from '../../errors.ts'

const blockBytes = 4096
/** Templates on disk, one a size; each takes some 60 KiB. */
const templatesMax = 256
const mkfsTimeoutMs = 60_000
const repairTimeoutMs = 300_000
/** Exit code of e2fsck: errors were found and corrected. */
const fsckCorrected = 1
export const storageMbMin = 16
/** Directories that a template is first made in. */
const scratchPrefix = '.made-'

const features = ['^has_journal', '^resize_inode']
const extended = ['lazy_itable_init=1', 'nodiscard', 'root_owner=0:0']
const mkfsOptions = [
  // Twice the usual number of files: what package managers install is small.
  ...['-q', '-F', '-b', String(blockBytes), '-m', '0', '-i', '8192'],
  ...['-O', features.join(','), '-E', extended.join(',')],
]

/**
 * Disk images of instances: sparse files with an ext4 file system. mkfs makes one for every size, which is kept; the
 * launcher makes an instance's image from its few blocks that are no holes, in a fraction of a millisecond.
 */
export class DiskImages {
  readonly #templates = new Map<number, Promise<string>>()
  readonly #prefix: string

  /** `dir` is theirs alone, and used by one platform at a time; made when missing. */
  constructor(
    private readonly dir: string,
    private readonly mkfsPath: string,
  ) {
    const version = createHash('sha256').update(mkfsOptions.join(' ')).digest('hex').slice(0, 8)
    this.#prefix = `${version}-`
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    for (const name of readdirSync(dir)) {
      const storageMb =
        name.startsWith(this.#prefix) && /^(\d+)\.img$/.exec(name.slice(this.#prefix.length))?.[1]
      if (storageMb) this.#templates.set(Number(storageMb), Promise.resolve(`${dir}/${name}`))
      // Of another version, or half made when a platform was killed.
      else rmSync(`${dir}/${name}`, { recursive: true, force: true })
    }
  }

  /** Path of an image to copy. @throws unavailable, insufficient_storage */
  template(storageMb: number): Promise<string> {
    const template = this.#templates.get(storageMb) ?? this.#make(storageMb)
    // The one that was used last stands last.
    this.#templates.delete(storageMb)
    this.#templates.set(storageMb, template)
    template.catch(() => this.#templates.delete(storageMb))
    if (this.#templates.size > templatesMax) {
      const [oldest] = this.#templates
      if (oldest) {
        this.#templates.delete(oldest[0])
        oldest[1].then((path) => rmSync(path, { force: true })).catch(() => {})
      }
    }
    return template
  }

  /**
   * Makes an image sound again that was in use when the host went down: it has no journal. Answers false when that
   * did not succeed; the kernel then mounts it read-only as soon as it notices.
   */
  async repair(path: string): Promise<boolean> {
    const child = Bun.spawn([`${dirname(this.mkfsPath)}/e2fsck`, '-p', path], {
      stdin: 'ignore',
      stdout: 'ignore',
      stderr: 'ignore',
      timeout: repairTimeoutMs,
      env: {},
    })
    return (await child.exited) <= fsckCorrected
  }

  async #make(storageMb: number): Promise<string> {
    const scratch = mkdtempSync(`${this.dir}/${scratchPrefix}`)
    const [made, path] = [`${scratch}/image`, `${this.dir}/${this.#prefix}${storageMb}.img`]
    try {
      const file = await open(made, 'wx', 0o600)
      try {
        await file.truncate(storageMb * 1024 * 1024)
        await this.#mkfs(made)
        // It is kept over boots: an empty file in its place would be the disk of every sandbox to come.
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(made, path)
      return path
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
  }

  async #mkfs(path: string): Promise<void> {
    const child = Bun.spawn([this.mkfsPath, ...mkfsOptions, path], {
      stdin: 'ignore',
      stdout: 'ignore',
      stderr: 'pipe',
      timeout: mkfsTimeoutMs,
      env: {},
    })
    const [said, exitCode] = await Promise.all([new Response(child.stderr).text(), child.exited])
    if (exitCode !== 0) {
      throw new PlatformError('unavailable', 'A disk image cannot be made', {
        cause: new Error(`mkfs.ext4 exited with ${exitCode}: ${said.slice(0, 500)}`),
      })
    }
  }
}

/** Bytes that a sparse file really takes. */
export function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512
}

/** In the superblock of ext4, behind the boot block: what the kernel noted of the file system's state. */
const stateOffset = 1024 + 0x3a
const stateHasErrors = 0x0002

/** Whether the kernel found something wrong with the file system of an image that is not in use. */
export async function hasErrors(path: string): Promise<boolean> {
  await using file = await open(path, 'r')
  const state = Buffer.alloc(2)
  await file.read(state, 0, state.length, stateOffset)
  return (state.readUInt16LE(0) & stateHasErrors) !== 0
}

/** The kernel's view of a disk image in use, found once. */
export class DiskInUse {
  #loop: string | null = null

  /** `path` of the image. */
  constructor(private readonly path: string) {}

  /** Whether the kernel takes no more writes: it stops that when it cannot write what a file system needs itself. */
  get closed(): boolean {
    this.#loop ??= readdirSync('/sys/block').find((name) => this.#isBacking(name)) ?? null
    if (this.#loop === null || !this.#isBacking(this.#loop)) return false
    return isClosed(readText(`/proc/fs/ext4/${this.#loop}/options`))
  }

  #isBacking(name: string): boolean {
    if (!name.startsWith('loop')) return false
    // As far as the mount goes that it lies on: of a data directory that is one, its own path is not part of it.
    const backing = readText(`/sys/block/${name}/loop/backing_file`).trim()
    return backing !== '' && this.path.endsWith(`/${backing.split('/').slice(-3).join('/')}`)
  }
}

/** Of the lines of options of a file system; kernels from 6.15 on have a name of its own for it. */
export function isClosed(options: string): boolean {
  return /^(?:ro|emergency_ro)$/m.test(options)
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

export function findMkfs(): string | null {
  return Bun.which('mkfs.ext4', { PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` })
}
