/** Dependency layers: what an installation made, kept under the digest of everything that decided it. */
import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { BuiltImages, HeldLayer } from '../images/index.ts'
import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import { type BatchStep, everyItem, type Resource, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'

const layerKind = 'dependency-layer'
/** Changes when the same input is installed another way. */
const revision = 1
const cacheBytesMaxDefault = 8 * 1024 ** 3
const cacheLayersMax = 500
const unusedMsMax = 30 * 24 * 60 * 60 * 1000
/** A use is not written down more often. */
const noteEveryMs = 60 * 60 * 1000

interface LayerBody {
  diffId: string
  bytes: number
  usedAt: number
}

export interface DependencyLayersOptions {
  store: Store
  images: BuiltImages
  clock: Clock
  log: Logger
  bytesMax?: number
}

/**
 * Layers belong to a workspace: what installs them runs programs of packages, which the code of one workspace could
 * have a say in. A record names a layer that is whole; without a record it is nobody's and is collected.
 */
export class DependencyLayers {
  readonly #options: DependencyLayersOptions
  readonly #lock = new KeyedLock()

  constructor(options: DependencyLayersOptions) {
    this.#options = options
    options.images.keepLayers(() => this.#layers())
  }

  /**
   * The layer under a key, made by `make` unless it is here. Who asks for the same meanwhile waits for that, until the signal
   * says otherwise.
   */
  async get(
    workspace: string,
    parts: readonly unknown[],
    make: () => Promise<HeldLayer>,
    signal: AbortSignal,
  ): Promise<{ layer: HeldLayer; wasHere: boolean }> {
    const key = createHash('sha256')
      .update(JSON.stringify([revision, ...parts]))
      .digest('hex')
    const work = async () => {
      const known = await this.#find(workspace, key)
      if (known) return { layer: known, wasHere: true }
      const layer = await make()
      try {
        await this.#put(workspace, key, layer)
      } catch (error) {
        layer[Symbol.dispose]()
        throw error
      }
      return { layer, wasHere: false }
    }
    return await this.#lock.run(`${workspace}/${key}`, work, signal)
  }

  /** Steps that forget all of a workspace, for the batch that removes it. */
  async removal(workspace: string): Promise<BatchStep[]> {
    const records = await Array.fromAsync(this.#records(workspace))
    return records.map(({ name }) => ({ op: 'remove', key: { kind: layerKind, workspace, name } }))
  }

  async #find(workspace: string, name: string): Promise<HeldLayer | null> {
    const { store, images, clock } = this.#options
    const key = { kind: layerKind, workspace, name }
    const record = await store.get<LayerBody>(key)
    if (record === null) return null
    const layer = await images.holdLayer(record.body.diffId)
    const now = clock.now()
    if (layer !== null && now - record.body.usedAt > noteEveryMs) {
      // Another build may have noted it: as good.
      await store.update(key, record.version, { body: { ...record.body, usedAt: now } }).catch(() => {})
    }
    return layer
  }

  async #put(workspace: string, name: string, layer: HeldLayer): Promise<void> {
    const { store, images, clock } = this.#options
    const key = { kind: layerKind, workspace, name }
    const body: LayerBody = { diffId: layer.diffId, bytes: layer.bytes, usedAt: clock.now() }
    const before = await store.get<LayerBody>(key)
    // Of a layer that went, with a disk that was cleared by hand.
    if (before) await store.update(key, before.version, { body })
    else await store.batch([{ op: 'create', input: { ...key, body } }, inWorkspace(workspace)])
    images.kept(layer)
    await this.#makeRoom().catch((error) =>
      this.#options.log.warn('dependency layers were not looked through', { error }),
    )
  }

  /** Forgets those that were not used for longest. */
  async #makeRoom(): Promise<void> {
    const { store, clock, log, bytesMax = cacheBytesMaxDefault } = this.#options
    const records = await Array.fromAsync(this.#records())
    records.sort((left, right) => right.body.usedAt - left.body.usedAt)
    let bytes = 0
    let forgotten = 0
    for (const [index, { workspace, name, body, version }] of records.entries()) {
      bytes += body.bytes
      const isOld = clock.now() - body.usedAt > unusedMsMax
      // The newest stays whatever its size: it is about to be used.
      if (index === 0 || (bytes <= bytesMax && index < cacheLayersMax && !isOld)) continue
      await store.remove({ kind: layerKind, workspace, name }, version).catch((error) => {
        if (!PlatformError.is(error) || error.code !== 'version_mismatch') throw error
      })
      forgotten++
    }
    if (forgotten > 0) log.info('dependency layers were forgotten', { layers: forgotten })
  }

  async *#layers(): AsyncGenerator<string> {
    for await (const { body } of this.#records()) yield body.diffId
  }

  #records(workspace?: string): AsyncIterable<Resource<LayerBody>> {
    const where = { kind: layerKind, ...(workspace === undefined ? {} : { workspace }) }
    return everyItem((page) =>
      this.#options.store.page<LayerBody>({ ...where, sort: 'createdAt:asc', ...page }),
    )
  }
}
