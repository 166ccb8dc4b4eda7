import { closeSync, openSync, readdirSync, statfsSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import { instanceIdPattern } from './record.ts'

/** Disk of the host that instances never get: the platform itself must be able to go on writing. */
export const hostFreeMbMin = 512
/** Those that exist are started again with less: what is in them may be what somebody wants to make room with. */
export const hostFreeMbMinToRestart = 32

/** Where the instances of a platform are on the host, each in a directory of its own. */
export class InstanceDirectories {
  readonly #path: string
  /** Sockets are reached through it, for their paths may have 107 bytes only. */
  readonly #file: number

  constructor(path: string) {
    this.#path = path
    this.#file = openSync(path, 'r')
  }

  of(id: string): string {
    return `${this.#path}/${id}`
  }

  /** The same by a short path. */
  socketsOf(id: string): string {
    return `/proc/self/fd/${this.#file}/${id}`
  }

  /** Those that have one. */
  ids(): string[] {
    return readdirSync(this.#path).filter((name) => instanceIdPattern.test(name))
  }

  /** @throws insufficient_storage */
  checkFreeSpace(freeMbMin: number): void {
    const { bavail, bsize } = statfsSync(this.#path)
    if (bavail * bsize >= freeMbMin * 1024 * 1024) return
    throw new PlatformError('insufficient_storage', `The host has less than ${freeMbMin} MiB of disk left`)
  }

  close(): void {
    closeSync(this.#file)
  }
}
