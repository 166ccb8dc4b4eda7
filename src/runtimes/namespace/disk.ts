import { dlopen } from 'bun:ffi'
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, statSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { PlatformError } from '../../errors.ts'

const blockBytes = 4096
/** Templates kept in memory; each is some 100 KiB. */
const templatesMax = 32
/** A fresh ext4 of any allowed size is far below this. */
const templateBytesMax = 16 * 1024 * 1024
const mkfsTimeoutMs = 60_000
const repairTimeoutMs = 300_000
/** Exit code of e2fsck: errors were found and corrected. */
const fsckCorrected = 1
export const storageMbMin = 16
/** Directories that an image is first made in. */
export const diskScratchPrefix = '.disk-'
const seekData = 3
const seekHole = 4

interface Template {
  sizeBytes: number
  extents: { at: number; bytes: Uint8Array }[]
}

/**
 * Disk images of instances: sparse files with an ext4 file system. One is made by mkfs for every size; the others are
 * written from its few blocks that are not zero, which takes well under a millisecond.
 */
export class DiskImages {
  #templates = new Map<number, Promise<Template>>()

  constructor(
    private readonly dir: string,
    private readonly mkfsPath: string,
  ) {}

  async create(path: string, storageMb: number): Promise<void> {
    const template = await this.#template(storageMb)
    // Off the request loop: a new file waits for whatever the host's file system is committing.
    const file = await open(path, 'wx', 0o600)
    try {
      await file.truncate(template.sizeBytes)
      for (const { at, bytes } of template.extents) await writeWhole(file, bytes, at)
    } catch (error) {
      rmSync(path, { force: true })
      throw error
    } finally {
      await file.close()
    }
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

  #template(storageMb: number): Promise<Template> {
    const known = this.#templates.get(storageMb)
    if (known) return known
    const made = this.#make(storageMb)
    made.catch(() => this.#templates.delete(storageMb))
    this.#templates.set(storageMb, made)
    if (this.#templates.size > templatesMax) {
      const [oldest] = this.#templates.keys()
      if (oldest !== undefined) this.#templates.delete(oldest)
    }
    return made
  }

  async #make(storageMb: number): Promise<Template> {
    const scratch = mkdtempSync(`${this.dir}/${diskScratchPrefix}`)
    const path = `${scratch}/image`
    try {
      const sizeBytes = storageMb * 1024 * 1024
      const file = openSync(path, 'wx+', 0o600)
      try {
        ftruncateSync(file, sizeBytes)
        await this.#mkfs(path)
        return { sizeBytes, extents: readExtents(file, sizeBytes) }
      } finally {
        closeSync(file)
      }
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
  }

  async #mkfs(path: string): Promise<void> {
    const features = ['^has_journal', '^resize_inode']
    const extended = ['lazy_itable_init=1', 'nodiscard', 'root_owner=0:0']
    const child = Bun.spawn(
      [
        this.mkfsPath,
        ...['-q', '-F', '-b', String(blockBytes), '-m', '0'],
        ...['-O', features.join(','), '-E', extended.join(','), path],
      ],
      { stdin: 'ignore', stdout: 'ignore', stderr: 'pipe', timeout: mkfsTimeoutMs, env: {} },
    )
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

export function findMkfs(): string | null {
  return Bun.which('mkfs.ext4', { PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` })
}

/** Blocks that are not zero, neighbours joined. */
function readExtents(file: number, sizeBytes: number): Template['extents'] {
  const extents: Template['extents'] = []
  let total = 0
  for (const [start, end] of dataRanges(file, sizeBytes)) {
    for (let at = start; at < end; at += blockBytes) {
      const block = new Uint8Array(blockBytes)
      readSync(file, block, 0, blockBytes, at)
      if (block.every((byte) => byte === 0)) continue
      total += blockBytes
      if (total > templateBytesMax)
        throw new PlatformError('unavailable', 'A fresh disk image is unexpectedly large')
      const last = extents.at(-1)
      if (last && last.at + last.bytes.length === at) last.bytes = Buffer.concat([last.bytes, block])
      else extents.push({ at, bytes: block })
    }
  }
  return extents
}

/** Where a sparse file has data. */
function* dataRanges(file: number, sizeBytes: number): Generator<[start: number, end: number]> {
  const seek = openSeek()
  for (let at = 0; at < sizeBytes; ) {
    const start = Number(seek(file, at, seekData))
    if (start < 0) return
    const end = Number(seek(file, start, seekHole))
    if (end <= start) return
    yield [start - (start % blockBytes), Math.min(Math.ceil(end / blockBytes) * blockBytes, sizeBytes)]
    at = end
  }
}

function openSeek(): (file: number, at: number, whence: number) => number | bigint {
  for (const library of [
    'libc.so.6',
    'libc.so',
    `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
  ]) {
    try {
      return dlopen(library, { lseek: { args: ['i32', 'i64', 'i32'], returns: 'i64' } }).symbols.lseek
    } catch {}
  }
  throw new PlatformError('unavailable', 'Sparse files cannot be read: no C library was found')
}

async function writeWhole(file: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let written = 0; written < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, written, bytes.length - written, at + written)
    written += bytesWritten
  }
}
