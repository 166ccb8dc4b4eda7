import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createZstdCompress, createZstdDecompress } from 'node:zlib'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { sync } from '../../lib/durable.ts'
import { removeTree } from '../remove-tree.ts'

/** Loop devices are let go of by the kernel a moment after the last mount of them is. */
const detachTimeoutMs = 10_000
const detachStepMs = 5
const saidCharactersMax = 500
/** Owners by number, holes as holes, and every attribute: what the kernel keeps of an overlay is in those. */
const faithful = ['--sparse', '--numeric-owner', '--xattrs', '--xattrs-include=*']

type Disk = 'loop' | 'dir'
const nameOf = (disk: Disk) => (disk === 'loop' ? 'disk.img' : 'disk')

/**
 * Files of instances as archives: one compressed file in the place of an instance's disk. A disk image goes in as the
 * file it is; a plain directory is walked by tar(1), which follows no link, after all that wrote into it has ended.
 */
export class Archives {
  readonly #tarPath: string
  readonly #clock: Clock

  constructor(tarPath: string, clock: Clock) {
    this.#tarPath = tarPath
    this.#clock = clock
  }

  /** Packs what stands still into an archive of its own; the disk stays. Not durable yet. */
  async packTo(dir: string, disk: Disk, target: string, signal?: AbortSignal): Promise<void> {
    await this.#write(dir, nameOf(disk), target, signal)
  }

  /** Puts the disk that an archive holds into a directory that has none; the archive stays. */
  async unpackFrom(archive: string, dir: string, disk: Disk, signal?: AbortSignal): Promise<void> {
    const scratch = `${dir}/unpack`
    await removeTree(scratch)
    await mkdir(scratch, { mode: 0o700 })
    try {
      await this.#read(archive, scratch, signal)
      await run(['sync', '--file-system', scratch])
      await rename(`${scratch}/${nameOf(disk)}`, `${dir}/${nameOf(disk)}`)
    } finally {
      await removeTree(scratch)
    }
  }

  /**
   * Puts an archive in the place of the disk; answers its bytes. When it rejects, the disk is as it was. Idempotent.
   * Nothing may run in the instance any more.
   */
  async pack(dir: string, disk: Disk, signal?: AbortSignal): Promise<number> {
    const [whole, draft] = [`${dir}/archive`, `${dir}/archive.new`]
    if (!existsSync(whole)) {
      if (disk === 'loop') await this.detached(`${dir}/disk.img`)
      // Of an attempt that was cut off.
      await rm(draft, { force: true })
      try {
        await this.#write(dir, nameOf(disk), draft, signal)
        await rename(draft, whole)
      } catch (error) {
        await rm(draft, { force: true })
        signal?.throwIfAborted()
        throw error
      }
      await sync(dir)
    }
    // Whole from here on: the disk is of no more use.
    await this.#removeDisk(dir)
    return statSync(whole).size
  }

  /** Puts the disk back in the place of its archive. Idempotent; when it rejects, the archive is as it was. */
  async unpack(dir: string, disk: Disk, signal?: AbortSignal): Promise<void> {
    const whole = `${dir}/archive`
    if (!existsSync(whole)) return
    // Of an attempt that was cut off.
    await this.#removeDisk(dir)
    await this.unpackFrom(whole, dir, disk, signal)
    await sync(dir)
    await rm(whole)
  }

  async #write(dir: string, name: string, target: string, signal?: AbortSignal): Promise<void> {
    const tar = Bun.spawn([this.#tarPath, '--create', ...faithful, '--file', '-', '--directory', dir, name], {
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
      env: {},
    })
    const said = textOf(tar.stderr)
    const file = await open(target, 'wx', 0o600)
    try {
      const source = Readable.fromWeb(tar.stdout as never)
      const options = signal ? { signal } : {}
      await pipeline(source, createZstdCompress(), writableOf(file), options)
      await ended(tar, said, 'packed')
      await file.sync()
    } finally {
      tar.kill('SIGKILL')
      await file.close()
    }
  }

  async #read(source: string, target: string, signal?: AbortSignal): Promise<void> {
    const tar = Bun.spawn(
      [
        this.#tarPath,
        '--extract',
        ...faithful,
        '--preserve-permissions',
        '--same-owner',
        '--file',
        '-',
        '--directory',
        target,
      ],
      { stdin: 'pipe', stdout: 'ignore', stderr: 'pipe', env: {} },
    )
    const said = textOf(tar.stderr)
    const file = await open(source, 'r')
    try {
      const input = tar.stdin
      const sink = new Writable({
        async write(chunk: Uint8Array, _encoding, done) {
          try {
            input.write(chunk)
            await input.flush()
            done()
          } catch (error) {
            done(error as Error)
          }
        },
        async final(done) {
          try {
            await input.end()
            done()
          } catch (error) {
            done(error as Error)
          }
        },
      })
      const options = signal ? { signal } : {}
      await pipeline(file.createReadStream(), createZstdDecompress(), sink, options)
      await ended(tar, said, 'unpacked')
    } finally {
      tar.kill('SIGKILL')
      await file.close().catch(() => {})
    }
  }

  /** Until the kernel has written all of an image and let go of it. */
  async detached(path: string): Promise<void> {
    const deadline = this.#clock.monotonic() + detachTimeoutMs
    while (isAttached(path)) {
      if (this.#clock.monotonic() > deadline)
        throw new PlatformError('unavailable', 'The disk of the instance is still in use')
      await this.#clock.sleep(detachStepMs)
    }
  }

  async #removeDisk(dir: string): Promise<void> {
    await rm(`${dir}/disk.img`, { force: true })
    if (existsSync(`${dir}/disk`)) await run(['rm', '-rf', '--one-file-system', '--', `${dir}/disk`])
  }
}

/** Null where there is none that keeps everything. */
export function findTar(): string | null {
  const path = Bun.which('tar')
  if (path === null) return null
  const { stdout } = Bun.spawnSync([path, '--version'], { stderr: 'ignore', env: {} })
  return stdout.toString().includes('GNU tar') ? path : null
}

function isAttached(path: string): boolean {
  for (const name of readdirSync('/sys/block')) {
    if (!name.startsWith('loop')) continue
    try {
      if (readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').trim() === path) return true
    } catch {
      // Nothing is attached to it.
    }
  }
  return false
}

function writableOf(file: Awaited<ReturnType<typeof open>>): Writable {
  return new Writable({
    async write(chunk: Uint8Array, _encoding, done) {
      try {
        for (let at = 0; at < chunk.length; ) at += (await file.write(chunk, at)).bytesWritten
        done()
      } catch (error) {
        done(error as Error)
      }
    },
  })
}

async function ended(tar: Bun.Subprocess, said: Promise<string>, what: string): Promise<void> {
  const exitCode = await tar.exited
  if (exitCode === 0) return
  throw new PlatformError('unavailable', `The files of the instance cannot be ${what}`, {
    cause: new Error(`tar exited with ${exitCode}: ${await said}`),
  })
}

async function textOf(stream: ReadableStream<Uint8Array>): Promise<string> {
  let text = ''
  const decoder = new TextDecoder()
  for await (const chunk of stream) {
    if (text.length < saidCharactersMax) text += decoder.decode(chunk, { stream: true })
  }
  return text.slice(0, saidCharactersMax)
}

async function run(argv: string[]): Promise<void> {
  const child = Bun.spawn(argv, { stdin: 'ignore', stdout: 'ignore', stderr: 'pipe', cwd: '/' })
  const [said, exitCode] = await Promise.all([textOf(child.stderr), child.exited])
  if (exitCode !== 0) {
    throw new PlatformError('unavailable', 'The files of the instance cannot be moved', {
      cause: new Error(`${argv[0]} exited with ${exitCode}: ${said}`),
    })
  }
}
