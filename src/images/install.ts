import { PlatformError } from '../errors.ts'
import type { LayerStore } from './layer-store.ts'
import type { ImageConfig } from './manifest.ts'

/** Layers of one image that are fetched or unpacked at once. */
const layersAtOnceMax = 3
/** Places of one image that the stand-in is mounted over. */
const sandboxApisMax = 8

/** An image somewhere, with its documents at hand and checked. */
export interface ImageSource {
  /** Of its manifest, or what stands for it. */
  digest: string
  config: ImageConfig
  /** Lowest first, as many as the configuration has diff ids. */
  layers: { open(signal: AbortSignal): Promise<string> }[]
}

export interface InstalledImage {
  digest: string
  /** Diff ids, topmost first. */
  layers: string[]
  /** Of all layers, unpacked. */
  bytes: number
  sandboxApis: string[]
}

/**
 * Brings the layers of an image to this host, those that are missing, several at once. The caller holds them.
 * @throws what fetching and unpacking throw; then layers that were complete stay, for the next attempt or the collector
 */
export async function install(
  source: ImageSource,
  store: LayerStore,
  { bytesMax, signal }: { bytesMax: number; signal?: AbortSignal },
): Promise<InstalledImage> {
  const { diffIds } = source.config
  if (diffIds.length !== source.layers.length) {
    throw new PlatformError(
      'unprocessable',
      `the image has ${source.layers.length} layers, its configuration speaks of ${diffIds.length}`,
    )
  }
  if (diffIds.length === 0) throw new PlatformError('unprocessable', 'the image has no layers')
  const failed = new AbortController()
  const stop = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  const image: InstalledImage = {
    digest: source.digest,
    layers: [...diffIds].reverse(),
    bytes: 0,
    sandboxApis: [],
  }
  const sandboxApis = new Set<string>()
  let next = 0
  const work = async () => {
    while (next < diffIds.length) {
      const at = next++
      stop.throwIfAborted()
      const diffId = diffIds[at]!
      const facts = await store.add(diffId, () => source.layers[at]!.open(stop), stop)
      image.bytes += facts.bytes
      for (const path of facts.sandboxApis) sandboxApis.add(path)
      if (image.bytes > bytesMax) {
        throw new PlatformError(
          'unprocessable',
          `the image has more than ${bytesMax} bytes, the most that one may have here (imageMbMax)`,
        )
      }
    }
  }
  const workers = Array.from({ length: Math.min(layersAtOnceMax, diffIds.length) }, () =>
    work().catch((error) => {
      failed.abort(error)
      throw error
    }),
  )
  const results = await Promise.allSettled(workers)
  // The first failure is the reason; the others were cut short by it.
  if (failed.signal.aborted) throw failed.signal.reason
  for (const result of results) if (result.status === 'rejected') throw result.reason
  image.sandboxApis = [...sandboxApis].sort().slice(0, sandboxApisMax)
  return image
}
