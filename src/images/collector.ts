import type { Logger } from '../lib/log.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { LayerStore } from './layer-store.ts'
import type { ImageRecords } from './records.ts'

/** Every root file system that an instance, running or not, or a snapshot stands on; `name` is for people. */
export type RootsInUse = () => Iterable<{
  workspace: string
  name: string
  root: RootFilesystem
  /** It is going, and keeps nobody from deleting an image; what lies below it stays meanwhile. */
  leaving?: true
}>

/**
 * Who needs which layer, and the removal of those that nobody needs: no tag names them, no instance stands on them and
 * nothing under way holds them. Whoever is going to need a layer holds it before asking for it.
 */
export class LayerCollector {
  readonly #layers: LayerStore
  readonly #records: ImageRecords
  readonly #inUse: RootsInUse
  readonly #log: Logger
  readonly #keepers: (() => AsyncIterable<string>)[] = []
  readonly #held = new Map<string, number>()
  /** Since the catalogue was last read: a tag may have come after, and its holder gone. */
  readonly #namedSince = new Set<string>()
  #collecting: Promise<number> = Promise.resolve(0)

  constructor(options: { layers: LayerStore; records: ImageRecords; inUse: RootsInUse; log: Logger }) {
    this.#layers = options.layers
    this.#records = options.records
    this.#inUse = options.inUse
    this.#log = options.log
  }

  /** Layers that somebody else has a use for: asked at every collection. Layers are held until they are among them. */
  keep(keeper: () => AsyncIterable<string>): void {
    this.#keepers.push(keeper)
  }

  /** Returns what lets go of them again, once. */
  hold(diffIds: readonly string[]): () => void {
    for (const diffId of diffIds) this.#held.set(diffId, (this.#held.get(diffId) ?? 0) + 1)
    let held = true
    return () => {
      if (!held) return
      held = false
      for (const diffId of diffIds) {
        const left = this.#held.get(diffId)! - 1
        if (left === 0) this.#held.delete(diffId)
        else this.#held.set(diffId, left)
      }
    }
  }

  /** A tag names them from now on. Said while they are held. */
  named(diffIds: readonly string[]): void {
    for (const diffId of diffIds) this.#namedSince.add(diffId)
  }

  /** Answers how many layers were removed. One at a time: who asks meanwhile gets a run of its own after. */
  async collect(): Promise<number> {
    const collecting = this.#collecting.catch(() => 0).then(() => this.#collect())
    this.#collecting = collecting
    return await collecting
  }

  async #collect(): Promise<number> {
    const present = await this.#layers.list()
    if (present.length === 0) return 0
    this.#namedSince.clear()
    const named = new Set<string>()
    for await (const { body } of this.#records.every())
      for (const { layers } of body.tags) for (const diffId of layers) named.add(diffId)
    for (const keeper of this.#keepers) for await (const diffId of keeper()) named.add(diffId)
    let removed = 0
    for (const diffId of present) {
      if (named.has(diffId)) continue
      if (await this.#layers.remove(diffId, () => this.#isNeeded(diffId))) removed++
    }
    if (removed > 0) this.#log.info('image layers were removed', { layers: removed })
    return removed
  }

  #isNeeded(diffId: string): boolean {
    if (this.#held.has(diffId) || this.#namedSince.has(diffId)) return true
    const tree = this.#layers.treeOf(diffId)
    for (const { root } of this.#inUse()) if (root.layers.includes(tree)) return true
    return false
  }
}
