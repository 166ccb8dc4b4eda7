/** Archives as they come: compressed or not, by what their bytes are, whatever they were said to be. */
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { pipeline, type Readable } from 'node:stream'
import { createGunzip, createZstdDecompress } from 'node:zlib'
import { PlatformError } from '../errors.ts'

const readBytes = 256 * 1024

export type Compression = 'none' | 'gzip' | 'zstd'

export function compressionOf(bytes: Uint8Array): Compression {
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) return 'gzip'
  const isZstd = bytes[0] === 0x28 && bytes[1] === 0xb5 && bytes[2] === 0x2f && bytes[3] === 0xfd
  return isZstd ? 'zstd' : 'none'
}

/** What is in a file. @throws unprocessable */
export async function* uncompressed(file: string): AsyncGenerator<Uint8Array> {
  const compression = compressionOf(await firstBytes(file))
  const stored = createReadStream(file, { highWaterMark: readBytes })
  try {
    yield* decompressed(stored, compression)
  } finally {
    stored.destroy()
  }
}

/** @throws unprocessable */
export async function* decompressed(stored: Readable, compression: Compression): AsyncGenerator<Uint8Array> {
  if (compression === 'none') {
    yield* stored
    return
  }
  const inflate =
    compression === 'gzip'
      ? createGunzip({ chunkSize: readBytes })
      : createZstdDecompress({ chunkSize: readBytes })
  // Its error reaches the reader below.
  pipeline(stored, inflate, () => {})
  try {
    yield* inflate
  } catch (cause) {
    if (PlatformError.is(cause)) throw cause
    throw new PlatformError('unprocessable', `the archive is not well-formed ${compression}`, { cause })
  } finally {
    inflate.destroy()
  }
}

async function firstBytes(file: string): Promise<Uint8Array> {
  const handle = await open(file)
  try {
    const bytes = new Uint8Array(4)
    const { bytesRead } = await handle.read(bytes, 0, 4, 0)
    return bytes.subarray(0, bytesRead)
  } finally {
    await handle.close()
  }
}
