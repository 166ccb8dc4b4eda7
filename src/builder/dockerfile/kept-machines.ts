import type { Clock } from '../../lib/clock.ts'
import type { BuildMachine } from '../machine.ts'

/** They take disk and next to no memory. */
const keptMax = 4
const keptMsMax = 60 * 60_000

/** A machine with a tool's store, and the base images in it by their digests. */
export interface Workbench {
  machine: BuildMachine
  bases: Map<string, string>
  /** Digest of the host image that can be built on in it; null: none can. */
  host: string | null
}

interface Kept {
  bench: Workbench
  forget: AbortController
}

/** Machines of builds that have ended, whose layers are there for the next build of the same thing, and for nothing else. */
export class KeptMachines {
  readonly #clock: Clock
  readonly #kept = new Map<string, Kept>()
  #closed = false

  constructor(options: { clock: Clock }) {
    this.#clock = options.clock
  }

  /**
   * It is the caller's from then on. Null when there is none that works, or none with this host image.
   * @param host null: any does
   */
  async take(key: string, host: string | null, signal: AbortSignal): Promise<Workbench | null> {
    const kept = this.#kept.get(key)
    if (!kept) return null
    this.#drop(key, kept)
    const { machine } = kept.bench
    const works = async () => {
      try {
        await machine.wake(signal)
        const argv = ['/bin/true']
        return (await machine.output({ argv, env: {}, workingDir: '/' }, signal)).exitCode === 0
      } catch {
        return false
      }
    }
    if ((host === null || host === kept.bench.host) && (await works())) return kept.bench
    await machine[Symbol.asyncDispose]()
    return null
  }

  async keep(key: string, bench: Workbench): Promise<void> {
    const rests =
      !this.#closed &&
      (await bench.machine.rest().then(
        () => true,
        () => false,
      ))
    if (!rests || this.#closed) return await bench.machine[Symbol.asyncDispose]()
    const ending: Promise<void>[] = []
    const before = this.#kept.get(key)
    if (before) ending.push(this.#end(key, before))
    for (const [oldest, kept] of this.#kept) {
      if (this.#kept.size < keptMax) break
      ending.push(this.#end(oldest, kept))
    }
    const kept: Kept = { bench, forget: new AbortController() }
    this.#kept.set(key, kept)
    this.#clock.sleep(keptMsMax, kept.forget.signal).then(
      () => this.#end(key, kept),
      () => {},
    )
    await Promise.all(ending)
  }

  /** Ends those whose keys begin so. */
  async forget(prefix: string): Promise<void> {
    const going = [...this.#kept].filter(([key]) => key.startsWith(prefix))
    await Promise.all(going.map(([key, kept]) => this.#end(key, kept)))
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.forget('')
  }

  #drop(key: string, kept: Kept): void {
    kept.forget.abort(new Error('it is used again, or ends'))
    this.#kept.delete(key)
  }

  async #end(key: string, kept: Kept): Promise<void> {
    this.#drop(key, kept)
    await kept.bench.machine[Symbol.asyncDispose]()
  }
}
