import { closeSync, openSync, rmSync, statfsSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Clock } from './clock.ts'
import { libc } from './libc.ts'
import type { Logger } from './log.ts'

const tryAgainMs = 30_000

export interface DiskReserveOptions {
  path: string
  bytes: number
  /** What must be free besides, for it to be taken. */
  freeBytesMin: number
  clock: Clock
  log: Logger
}

/**
 * A file that holds disk back for later: it is given up when the disk is full, so that what makes room can still be
 * written down, and taken again when there is room.
 */
export class DiskReserve implements Disposable {
  readonly #options: DiskReserveOptions
  readonly #closing = new AbortController()
  #waiting = false

  constructor(options: DiskReserveOptions) {
    this.#options = options
  }

  /** Takes the disk, at once or when there is enough. A file of an earlier run serves. */
  keep(): void {
    if (!this.#take()) void this.#takeLater()
  }

  /** Answers false when there was nothing to give up. */
  giveUp(): boolean {
    const { path, log } = this.#options
    if (!this.#isThere()) return false
    rmSync(path, { force: true })
    log.warn('the disk is full: the reserve of the platform is in use, until there is room again', {
      directory: dirname(path),
    })
    if (!this.#closing.signal.aborted) void this.#takeLater()
    return true
  }

  /** The file stays, for the next run. */
  [Symbol.dispose](): void {
    this.#closing.abort()
  }

  #isThere(): boolean {
    return statSync(this.#options.path, { throwIfNoEntry: false })?.size === this.#options.bytes
  }

  #take(): boolean {
    const { path, bytes, freeBytesMin, log } = this.#options
    try {
      if (this.#isThere()) return true
      const { bavail, bsize } = statfsSync(dirname(path))
      if (bavail * bsize < bytes + freeBytesMin) return false
      const descriptor = openSync(path, 'w', 0o600)
      try {
        if (libc()?.posix_fallocate(descriptor, 0, bytes) === 0) return true
      } finally {
        closeSync(descriptor)
      }
    } catch (error) {
      log.debug('no disk could be kept in reserve', { error })
    }
    rmSync(path, { force: true })
    return false
  }

  async #takeLater(): Promise<void> {
    if (this.#waiting) return
    this.#waiting = true
    const { signal } = this.#closing
    try {
      do await this.#options.clock.sleep(tryAgainMs, signal)
      while (!this.#take())
    } catch (error) {
      if (!signal.aborted) this.#options.log.warn('no disk is kept in reserve', { error })
    } finally {
      this.#waiting = false
    }
  }
}
