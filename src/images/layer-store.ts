import { existsSync, readdirSync } from 'node:fs'
import {
  chmod,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  statfs,
} from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { uncompressed } from '../lib/compression.ts'
import { sync } from '../lib/durable.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Layers } from '../spec/layers.ts'
import { type LayerFacts, writeLayer } from './layer.ts'

/** Kept free on the disk of the layers: the platform itself and its instances must be able to go on writing. */
export const freeBytesMin = 1024 ** 3
/** Written between two looks at the free space. */
const bytesPerSpaceCheck = 64 * 1024 * 1024
const layerEntriesMax = 1_000_000
const unpackConcurrencyMax = 2
const unpackWaitingMax = 4096
const digestPattern = /^sha256:[0-9a-f]{64}$/

export interface LayerStoreOptions {
  /** `<dataDir>/images`; nobody else writes there. */
  dir: string
  /** Null: no driver here starts from layers. */
  layers: Layers | null
  /** Of one layer, written out. */
  layerBytesMax: number
  log: Logger
}

/**
 * Image layers on this host's disk, each under the digest of its archive (its diff id), so that images share them. A
 * layer appears whole, checked and durable, or not at all.
 */
export class LayerStore {
  readonly #options: LayerStoreOptions
  readonly #lock = new KeyedLock()
  readonly #unpacking = new Semaphore({
    concurrencyMax: unpackConcurrencyMax,
    waitingMax: unpackWaitingMax,
    what: 'image layers are being unpacked',
  })

  constructor(options: LayerStoreOptions) {
    this.#options = options
  }

  /** Removes what an interrupted download or unpacking left; what begins after this call is not among it. */
  async open(): Promise<void> {
    const left = existsSync(this.#partialDir) ? readdirSync(this.#partialDir) : []
    for (const name of left) {
      await this.#removeDirectory(join(this.#partialDir, name)).catch((error) =>
        this.#options.log.warn('a part of an image was not removed', { error: String(error) }),
      )
    }
  }

  /** A directory of one's own for downloads; gone with the next start at the latest. */
  async workspace(): Promise<{ path: string } & AsyncDisposable> {
    await this.#prepare()
    const path = await mkdtemp(join(this.#partialDir, 'work-'))
    return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
  }

  /** The tree of a layer, to start instances from. */
  treeOf(diffId: string): string {
    return join(this.#dirOf(diffId), 'tree')
  }

  /**
   * What is known of a layer that is here; null when it is not. Who holds it before asking keeps it: the answer and a
   * removal come one after the other.
   */
  async facts(diffId: string): Promise<LayerFacts | null> {
    return await this.#lock.run(diffId, () => this.#factsNow(diffId))
  }

  async #factsNow(diffId: string): Promise<LayerFacts | null> {
    const text = await readFile(join(this.#dirOf(diffId), 'layer.json'), 'utf8').catch(() => null)
    return text === null ? null : (JSON.parse(text) as LayerFacts)
  }

  async list(): Promise<string[]> {
    const names = await readdir(this.#layersDir).catch(() => [] as string[])
    return names.filter((name) => /^[0-9a-f]{64}$/.test(name)).map((name) => `sha256:${name}`)
  }

  /**
   * Unpacks the archive in the file that `fetch` brings (tar; gzip and zstd are recognised) unless the layer is here
   * already. Who asks for the same layer meanwhile waits for this.
   * @throws unprocessable when it is not what its digest says or not allowed, insufficient_storage, what `fetch` throws
   */
  async add(diffId: string, fetch: () => Promise<string>, signal?: AbortSignal): Promise<LayerFacts> {
    return await this.#lock.run(diffId, async () => {
      const present = await this.#factsNow(diffId)
      if (present) return present
      const file = await fetch()
      return await this.#unpacking.run(() => this.#unpack(diffId, file, signal))
    })
  }

  /** Idempotent. `isNeeded` is asked at the last moment. Answers whether it is gone by this. */
  async remove(diffId: string, isNeeded: () => boolean): Promise<boolean> {
    return await this.#lock.run(diffId, async () => {
      const from = this.#dirOf(diffId)
      if ((await stat(from).catch(() => null)) === null) return false
      await mkdir(this.#partialDir, { recursive: true, mode: 0o700 })
      // First out of sight in one step, so that a half-removed layer is never taken for a whole one.
      const aside = await mkdtemp(join(this.#partialDir, 'gone-'))
      const removed = !isNeeded()
      if (removed) await rename(from, join(aside, 'layer'))
      await this.#removeDirectory(aside)
      return removed
    })
  }

  /** Everything, for a data directory that goes. */
  async removeAll(): Promise<void> {
    for (const diffId of await this.list()) await this.remove(diffId, () => false)
    await this.open()
  }

  /**
   * Unpacks a tar archive whose digest is not known yet, and is its name then. `hold` is told it before the layer can be
   * seen. @throws as `add`
   */
  async addNew(
    content: AsyncIterable<Uint8Array>,
    hold: (diffId: string) => void,
    signal?: AbortSignal,
  ): Promise<{ diffId: string; facts: LayerFacts }> {
    return await this.#unpacking.run(async () => {
      await using draft = await this.#draft()
      const { digest, facts } = await this.#write(draft.path, content, signal)
      hold(digest)
      return await this.#lock.run(digest, async () => {
        const present = await this.#factsNow(digest)
        if (present) return { diffId: digest, facts: present }
        await draft.keepAs(this.#dirOf(digest))
        return { diffId: digest, facts }
      })
    })
  }

  async #unpack(diffId: string, file: string, signal: AbortSignal | undefined): Promise<LayerFacts> {
    await using draft = await this.#draft()
    const { digest, facts } = await this.#write(draft.path, uncompressed(file), signal)
    if (digest !== diffId) {
      throw new PlatformError(
        'unprocessable',
        `a layer is not what the image says: its digest is ${digest}, not ${diffId}`,
      )
    }
    await draft.keepAs(this.#dirOf(diffId))
    return facts
  }

  /** A directory that becomes a layer in one step, or goes. */
  async #draft(): Promise<{ path: string; keepAs(target: string): Promise<void> } & AsyncDisposable> {
    if (this.#options.layers === null) throw cannotUnpack()
    await this.#prepare()
    const path = await mkdtemp(join(this.#partialDir, 'layer-'))
    let kept = false
    return {
      path,
      keepAs: async (target) => {
        await rename(path, target)
        kept = true
        await sync(this.#layersDir)
      },
      [Symbol.asyncDispose]: async () => {
        if (kept) return
        await this.#removeDirectory(path).catch((failure) =>
          this.#options.log.warn('a part of an image was not removed', { error: String(failure) }),
        )
      },
    }
  }

  /** Durable, with what is known of it beside it. */
  async #write(
    draft: string,
    content: AsyncIterable<Uint8Array>,
    signal: AbortSignal | undefined,
  ): Promise<{ digest: string; facts: LayerFacts }> {
    const { layers, layerBytesMax } = this.#options
    if (layers === null) throw cannotUnpack()
    const tree = join(draft, 'tree')
    await mkdir(tree, { mode: 0o755 })
    await chmod(tree, 0o755)
    const hash = new Bun.CryptoHasher('sha256')
    await using sink = await layers.open(tree)
    const looked = watched(content, { hash, signal, checkSpace: () => this.checkSpace() })
    const facts = await writeLayer(looked, sink, { bytesMax: layerBytesMax, entriesMax: layerEntriesMax })
    await sink.finish()
    await writeDurably(join(draft, 'layer.json'), JSON.stringify(facts))
    return { digest: `sha256:${hash.digest('hex')}`, facts }
  }

  /** @throws insufficient_storage */
  async checkSpace(): Promise<void> {
    const { bavail, bsize } = await statfs(this.#options.dir)
    if (bavail * bsize >= freeBytesMin) return
    throw new PlatformError(
      'insufficient_storage',
      `the host has less than ${freeBytesMin / 1024 ** 2} MiB of disk left for images: remove some (hutch images rm)`,
    )
  }

  /** Of `partial`: what is in its trees was made from a stranger's archive, and is taken away confined. */
  async #removeDirectory(path: string): Promise<void> {
    for (const tree of [join(path, 'tree'), join(path, 'layer', 'tree')]) {
      if ((await stat(tree).catch(() => null)) === null) continue
      await this.#options.layers?.empty(tree)
      await rmdir(tree)
    }
    await rm(path, { recursive: true, force: true })
  }

  async #prepare(): Promise<void> {
    for (const dir of [this.#options.dir, this.#layersDir, this.#partialDir]) {
      // Closed to others: a setuid program of an image is one on this disk too.
      await mkdir(dir, { recursive: true, mode: 0o700 })
    }
    await this.checkSpace()
  }

  #dirOf(diffId: string): string {
    if (!digestPattern.test(diffId)) {
      throw new PlatformError(
        'unprocessable',
        `${JSON.stringify(diffId.slice(0, 100))} is not a sha256 digest`,
      )
    }
    return join(this.#layersDir, diffId.slice('sha256:'.length))
  }

  get #layersDir(): string {
    return join(this.#options.dir, 'layers')
  }

  get #partialDir(): string {
    return join(this.#options.dir, 'partial')
  }
}

export function cannotUnpack(): PlatformError {
  return new PlatformError(
    'not_implemented',
    "images of one's own need the namespace runtime; this platform runs another",
  )
}

async function* watched(
  content: AsyncIterable<Uint8Array>,
  {
    hash,
    signal,
    checkSpace,
  }: { hash: Bun.CryptoHasher; signal: AbortSignal | undefined; checkSpace: () => Promise<void> },
): AsyncGenerator<Uint8Array> {
  let unchecked = 0
  for await (const chunk of content) {
    signal?.throwIfAborted()
    hash.update(chunk)
    unchecked += chunk.length
    if (unchecked >= bytesPerSpaceCheck) {
      await checkSpace()
      unchecked = 0
    }
    yield chunk
  }
}

async function writeDurably(path: string, text: string): Promise<void> {
  const handle = await open(path, 'wx', 0o600)
  try {
    await handle.writeFile(text)
    await handle.sync()
  } finally {
    await handle.close()
  }
}
