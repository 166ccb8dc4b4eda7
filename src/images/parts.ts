import { PlatformError } from '../errors.ts'
import { ReceivedFile } from '../lib/received-file.ts'
import type { ImageSource } from './install.ts'
import { parseConfig } from './manifest.ts'

/** An image in pieces, as a tool that built it hands it out. */
export interface ImageParts {
  digest: string
  /** Its configuration, a JSON document. */
  config: Uint8Array
  /** Archives of its layers, lowest first: read only for those that are not here yet. */
  layers: { content(signal: AbortSignal): AsyncIterable<Uint8Array> }[]
}

/** @throws unprocessable for a configuration that is not one, and layers that are too large */
export function sourceOf(
  { digest, config, layers }: ImageParts,
  options: { dir: string; bytesMax: number; checkSpace(): Promise<void> },
): ImageSource {
  return {
    digest,
    config: parseConfig(config),
    layers: layers.map(({ content }, at) => ({
      open: async (signal) => {
        const path = `${options.dir}/layer-${at}`
        await using file = await ReceivedFile.open(path, () => options.checkSpace())
        for await (const bytes of content(signal)) {
          signal.throwIfAborted()
          if (file.size + bytes.length > options.bytesMax) {
            throw new PlatformError(
              'unprocessable',
              `a layer of the image has more than ${options.bytesMax} bytes, the most that an image may have here (imageMbMax)`,
            )
          }
          await file.write(bytes)
        }
        return path
      },
    })),
  }
}
