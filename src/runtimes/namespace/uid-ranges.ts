import { existsSync, mkdirSync, readdirSync, readlinkSync, symlinkSync, unlinkSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import { codeOf } from './cgroup-hosts.ts'

/** Two ranges of 65536: the instance's own, and the one whose first uid is the keeper's. */
const stride = 131_072
const first = 0x4000_0000
/** Ranges that a platform takes at once: a file for each would cost a tenth of what an instance costs to make. */
export const rangesPerBlock = 64
const blockCount = Math.floor((0xffff_ffff - first) / (stride * rangesPerBlock))

/**
 * Host uid ranges of a platform's instances. They are taken from the host in blocks: a symbolic link named by the
 * block and pointing to the platform's `instances` directory, in one place for the whole host, so that two data
 * directories never share a range. The place is forgotten at boot, as all instances are.
 */
export class UidRanges {
  readonly #blocks = new Set<number>()
  /** Directory of the instance that has a range, by the range's first uid. */
  readonly #taken = new Map<number, string>()
  readonly #free: number[] = []

  /**
   * `instancesDir` is what tells platforms apart. `inUse` names the ranges of instances that may still run from before;
   * they stay theirs.
   */
  constructor(
    private readonly dir: string,
    private readonly instancesDir: string,
    inUse: () => Iterable<{ base: number; instanceDir: string }> = () => [],
  ) {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    this.#sweep()
    for (const name of readdirSync(dir))
      if (this.#ownerOf(Number(name)) === instancesDir) this.#add(Number(name))
    for (const { base, instanceDir } of inUse()) this.keep(base, instanceDir)
  }

  /** The first uid of a range that is nobody's. */
  claim(instanceDir: string): number {
    if (this.#free.length === 0) this.#claimBlock()
    const base = this.#free.shift()!
    this.#taken.set(base, instanceDir)
    return base
  }

  /** For an instance that runs already, or starts again with its files. False: another one has it. */
  keep(base: number, instanceDir: string): boolean {
    const block = Math.floor((base - first) / (stride * rangesPerBlock))
    if (!this.#blocks.has(block) && !this.#tryBlock(block)) return false
    const owner = this.#taken.get(base)
    if (owner !== undefined) return owner === instanceDir
    const at = this.#free.indexOf(base)
    if (at < 0) return false
    this.#free.splice(at, 1)
    this.#taken.set(base, instanceDir)
    return true
  }

  release(base: number, instanceDir: string): void {
    if (this.#taken.get(base) !== instanceDir) return
    this.#taken.delete(base)
    this.#free.push(base)
  }

  /** Whatever an instance has claimed. */
  releaseAll(instanceDir: string): void {
    for (const [base, owner] of this.#taken) if (owner === instanceDir) this.release(base, instanceDir)
  }

  /** Gives back the blocks that no instance has a range of. */
  [Symbol.dispose](): void {
    const used = new Set(
      [...this.#taken.keys()].map((base) => Math.floor((base - first) / (stride * rangesPerBlock))),
    )
    for (const block of this.#blocks) if (!used.has(block)) this.#forget(block)
  }

  #claimBlock(): void {
    const start = Math.floor(Math.random() * blockCount)
    for (let step = 0; step < blockCount; step++) {
      const block = (start + step) % blockCount
      if (!this.#blocks.has(block) && this.#tryBlock(block)) return
    }
    throw new PlatformError('unavailable', `All ${blockCount} blocks of uid ranges of this host are in use`)
  }

  /** False: another platform has it. */
  #tryBlock(block: number): boolean {
    if (!Number.isInteger(block) || block < 0 || block >= blockCount) return false
    try {
      symlinkSync(this.instancesDir, `${this.dir}/${block}`)
    } catch (error) {
      if (codeOf(error) !== 'EEXIST') throw error
      if (this.#ownerOf(block) !== this.instancesDir) return false
    }
    this.#add(block)
    return true
  }

  #add(block: number): void {
    if (this.#blocks.has(block)) return
    this.#blocks.add(block)
    for (let at = 0; at < rangesPerBlock; at++)
      this.#free.push(first + (block * rangesPerBlock + at) * stride)
  }

  #ownerOf(block: number): string | null {
    try {
      return readlinkSync(`${this.dir}/${block}`)
    } catch {
      return null
    }
  }

  #forget(block: number): void {
    try {
      unlinkSync(`${this.dir}/${block}`)
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw error
    }
    this.#blocks.delete(block)
  }

  /** Drops blocks of platforms whose directory is gone. */
  #sweep() {
    for (const name of readdirSync(this.dir)) {
      const owner = this.#ownerOf(Number(name))
      if (owner !== null && !existsSync(owner)) this.#forget(Number(name))
    }
  }
}
