import { existsSync, mkdirSync, readdirSync, readlinkSync, symlinkSync, unlinkSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import { codeOf } from './cgroup-hosts.ts'

/** Two ranges of 65536: the instance's own, and the one whose first uid is the keeper's. */
const stride = 131_072
const first = 0x4000_0000
const count = Math.floor((0xffff_ffff - first) / stride)

/**
 * Host uid ranges of instances. A claim is a symbolic link named by the range and pointing to the instance's
 * directory, in one place for the whole host, so that two data directories never share a range. The place is
 * forgotten at boot, as all instances are.
 */
export class UidRanges {
  constructor(private readonly dir: string) {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    this.#sweep()
  }

  /** The first uid of a range that is nobody's. The directory must exist, or the claim counts as left over. */
  claim(instanceDir: string): number {
    const start = Math.floor(Math.random() * count)
    for (let step = 0; step < count; step++) {
      const base = first + ((start + step) % count) * stride
      try {
        symlinkSync(instanceDir, `${this.dir}/${base}`)
        return base
      } catch (error) {
        if (codeOf(error) !== 'EEXIST') throw error
      }
    }
    throw new PlatformError('unavailable', `All ${count} uid ranges of this host are in use`)
  }

  /** For an instance that runs already, or starts again with its files. False: another one has it. */
  keep(base: number, instanceDir: string): boolean {
    const path = `${this.dir}/${base}`
    try {
      symlinkSync(instanceDir, path)
      return true
    } catch (error) {
      if (codeOf(error) !== 'EEXIST') throw error
      return readlinkSync(path) === instanceDir
    }
  }

  release(base: number, instanceDir: string): void {
    const path = `${this.dir}/${base}`
    try {
      if (readlinkSync(path) === instanceDir) unlinkSync(path)
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw error
    }
  }

  /** Whatever an instance has claimed. */
  releaseAll(instanceDir: string): void {
    for (const name of readdirSync(this.dir)) this.release(Number(name), instanceDir)
  }

  /** Drops claims of directories that are gone, as a crash in the middle of a removal leaves them. */
  #sweep() {
    for (const name of readdirSync(this.dir)) {
      try {
        if (!existsSync(readlinkSync(`${this.dir}/${name}`))) unlinkSync(`${this.dir}/${name}`)
      } catch {}
    }
  }
}
