/** What the tool hands out, read from inside the machine: nothing of it is believed before it is checked. */
import { PlatformError } from '../../errors.ts'
import type { ImageParts } from '../../images/index.ts'
import type { BuildMachine } from '../machine.ts'
import { hostMarkDiffId } from './base-images.ts'

const documentBytesMax = 8 * 1024 * 1024
const layersMax = 1000
const hexPattern = /^[0-9a-f]{64}$/

/** The image in a directory of the form `dir:`. */
export async function builtImage(
  machine: BuildMachine,
  dir: string,
  options: { withoutEnv: Readonly<Record<string, string>>; signal: AbortSignal },
): Promise<ImageParts & { onHost: boolean }> {
  const document = async (name: string): Promise<unknown> => {
    const parts: Uint8Array[] = []
    let bytes = 0
    for await (const part of machine.read(`${dir}/${name}`, options.signal)) {
      bytes += part.length
      if (bytes > documentBytesMax) throw unreadable()
      parts.push(part.slice())
    }
    try {
      return JSON.parse(Buffer.concat(parts).toString('utf8'))
    } catch {
      throw unreadable()
    }
  }
  const manifest = (await document('manifest.json')) as {
    config?: { digest?: unknown }
    layers?: { digest?: unknown }[]
  } | null
  const layers = Array.isArray(manifest?.layers) ? manifest.layers.map((layer) => hexOf(layer?.digest)) : []
  if (layers.length === 0 || layers.length > layersMax) throw unreadable()
  const settings = await document(hexOf(manifest?.config?.digest))
  const config = withoutEnv(settings, options.withoutEnv)
  return {
    onHost: lowestOf(settings) === hostMarkDiffId,
    digest: `sha256:${new Bun.CryptoHasher('sha256').update(config).digest('hex')}`,
    config,
    layers: layers.map((hex) => ({ content: (signal) => machine.read(`${dir}/${hex}`, signal) })),
  }
}

function lowestOf(config: unknown): unknown {
  return (config as { rootfs?: { diff_ids?: unknown[] } } | null)?.rootfs?.diff_ids?.[0]
}

function withoutEnv(config: unknown, variables: Readonly<Record<string, string>>): Uint8Array {
  const parsed = config as { config?: { Env?: unknown } } | null
  if (parsed?.config && Array.isArray(parsed.config.Env)) {
    const ours = new Set(Object.entries(variables).map(([name, value]) => `${name}=${value}`))
    parsed.config.Env = parsed.config.Env.filter((entry) => !ours.has(String(entry)))
  }
  return Buffer.from(JSON.stringify(parsed))
}

function hexOf(digest: unknown): string {
  const hex = typeof digest === 'string' ? digest.replace(/^sha256:/, '') : ''
  if (!hexPattern.test(hex)) throw unreadable()
  return hex
}

function unreadable(): PlatformError {
  return new PlatformError('unprocessable', 'what the build handed out is no image')
}
