import { PlatformError } from '../../errors.ts'
import type { Instances } from '../../instances/index.ts'
import type { Background } from '../../lib/background.ts'
import type { Logger } from '../../lib/log.ts'
import type { RootFilesystem } from '../../spec/runtime.ts'
import { runtimeIdOf, type SnapshotBody, snapshotId } from './record.ts'

interface Root {
  workspace: string
  name: string
  root: RootFilesystem
  /** It was deleted: its files go, and what is below them stays until they are gone. */
  leaving?: true
}

interface Hold {
  holders: number
  ending: PromiseWithResolvers<void> | null
}

/** What snapshots have on the host: their files, kept while something is made of them, and the images below. */
export class SnapshotFiles {
  readonly #instances: Instances
  readonly #background: Background
  readonly #log: Logger
  readonly #held = new Map<string, Hold>()
  readonly #roots = new Map<string, Root>()

  constructor(options: { instances: Instances; background: Background; log: Logger }) {
    this.#instances = options.instances
    this.#background = options.background
    this.#log = options.log
  }

  /** What they stand on. */
  roots(): Iterable<Root> {
    return this.#roots.values()
  }

  /** There are files of this one from now on, or will be. */
  keep(workspace: string, { id, name, machine }: SnapshotBody): void {
    this.#roots.set(id, {
      workspace,
      name: `the snapshot ${JSON.stringify(name)} (${id})`,
      root: machine.image,
    })
  }

  /** Removes those of snapshots that `keep` was not called for. */
  async removeOthers(): Promise<void> {
    for (const runtimeId of await this.#instances.snapshots.list()) {
      const id = snapshotId(runtimeId)
      if (!this.#roots.has(id)) await this.remove(id)
    }
  }

  /** They stay until it is disposed. @throws not_found when they are going */
  hold(id: string): Disposable {
    const hold = this.#held.get(id) ?? { holders: 0, ending: null }
    if (hold.ending !== null) {
      throw new PlatformError('not_found', `the snapshot ${id} was deleted meanwhile`)
    }
    hold.holders++
    this.#held.set(id, hold)
    return {
      [Symbol.dispose]: () => {
        hold.holders--
        if (hold.holders > 0) return
        this.#held.delete(id)
        hold.ending?.resolve()
      },
    }
  }

  /** Removes them in the background, once nobody holds them. */
  removeSoon(id: string): void {
    const hold = this.#held.get(id)
    const root = this.#roots.get(id)
    if (root) this.#roots.set(id, { ...root, leaving: true })
    if (hold) hold.ending ??= Promise.withResolvers<void>()
    this.#background.run((hold?.ending?.promise ?? Promise.resolve()).then(() => this.remove(id)))
  }

  /** What is not removed now, the next start removes. */
  async remove(id: string): Promise<void> {
    try {
      await this.#instances.snapshots.remove(runtimeIdOf(id))
    } catch (error) {
      this.#log.warn('the files of a snapshot were not removed', { snapshot: id, error })
    }
    this.#roots.delete(id)
  }
}
