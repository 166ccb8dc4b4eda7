/** For tests: images made on the spot, of programs of this host or of entries that no honest tool would write. */
import { lstatSync, readFileSync, realpathSync } from 'node:fs'
import { basename } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { hostArchitecture } from './manifest.ts'

export interface TestEntry {
  path: string
  /** As in a header; default: `0`, or `5` for a path that ends with a slash. */
  type?: string
  mode?: number
  uid?: number
  gid?: number
  mtime?: number
  content?: string | Uint8Array
  link?: string
  pax?: Record<string, string | Uint8Array>
  /** Instead of the content's length. */
  size?: number
}

/** A tar archive, as it is asked for and no better. */
export function tar(entries: TestEntry[], options: { end?: boolean } = {}): Buffer {
  const parts: Buffer[] = []
  for (const entry of entries) {
    if (entry.pax) {
      const records = Buffer.concat(Object.entries(entry.pax).map(([key, value]) => paxRecord(key, value)))
      parts.push(header({ path: 'pax', type: 'x', content: records }), padded(records))
    }
    const content = bytesOf(entry.content)
    parts.push(header(entry), padded(content))
  }
  if (options.end !== false) parts.push(Buffer.alloc(1024))
  return Buffer.concat(parts)
}

export function header(entry: TestEntry): Buffer {
  const block = Buffer.alloc(512)
  const type = entry.type ?? (entry.path.endsWith('/') ? '5' : '0')
  block.write(entry.path.slice(0, 100), 0, 'latin1')
  block.write(octal(entry.mode ?? (type === '5' ? 0o755 : 0o644), 7), 100)
  block.write(octal(entry.uid ?? 0, 7), 108)
  block.write(octal(entry.gid ?? 0, 7), 116)
  block.write(octal(entry.size ?? bytesOf(entry.content).length, 11), 124)
  block.write(octal(entry.mtime ?? 1_700_000_000, 11), 136)
  block.write(type, 156, 'latin1')
  block.write((entry.link ?? '').slice(0, 100), 157, 'latin1')
  block.write('ustar\0' + '00', 257, 'latin1')
  return withChecksum(block)
}

export function withChecksum(block: Buffer): Buffer {
  block.write('        ', 148)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${octal(sum, 6)}\0 `, 148, 'latin1')
  return block
}

function paxRecord(key: string, value: string | Uint8Array): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), bytesOf(value), Buffer.from('\n')])
  let length = rest.length
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

export function padded(content: Uint8Array): Buffer {
  return Buffer.concat([content, Buffer.alloc((512 - (content.length % 512)) % 512)])
}

function octal(value: number, digits: number): string {
  return value.toString(8).padStart(digits, '0')
}

function bytesOf(content: string | Uint8Array | undefined): Buffer {
  return typeof content === 'string' ? Buffer.from(content) : Buffer.from(content ?? [])
}

/** Programs of this host with the libraries they need, under `/bin`. */
export function programs(...names: string[]): TestEntry[] {
  const files = new Map<string, string>()
  for (const name of names) {
    const path = Bun.which(name)
    if (!path) throw new Error(`this test needs ${name}`)
    files.set(`bin/${basename(path)}`, realpathSync(path))
    const { stdout } = Bun.spawnSync(['ldd', path])
    for (const [library] of stdout.toString().matchAll(/\/\S+/g)) {
      files.set(library.replace(/^\//, ''), realpathSync(library))
    }
  }
  const directories = new Set<string>()
  for (const path of files.keys()) {
    const parts = path.split('/').slice(0, -1)
    for (let depth = 1; depth <= parts.length; depth++) directories.add(`${parts.slice(0, depth).join('/')}/`)
  }
  return [
    ...[...directories].map((path) => ({ path, type: '5' })),
    ...[...files].map(([path, source]) => ({
      path,
      mode: lstatSync(source).mode & 0o777,
      content: readFileSync(source),
    })),
  ]
}

export interface TestImage {
  digest: string
  /** By digest. */
  blobs: Map<string, Buffer>
  manifest: Buffer
  config: Buffer
  layers: { diffId: string; archive: Buffer }[]
}

export interface TestImageOptions {
  config?: Record<string, unknown>
  compression?: 'gzip' | 'zstd' | 'none'
  architecture?: string
}

/** An image of layers, lowest first. */
export function testImage(layers: Buffer[], options: TestImageOptions = {}): TestImage {
  const blobs = new Map<string, Buffer>()
  const keep = (bytes: Buffer, mediaType: string) => {
    blobs.set(digestOf(bytes), bytes)
    return { mediaType, digest: digestOf(bytes), size: bytes.length }
  }
  const compression = options.compression ?? 'gzip'
  const compress = { gzip: gzipSync, zstd: zstdCompressSync, none: (bytes: Buffer) => bytes }[compression]
  const stored = layers.map((archive) =>
    keep(Buffer.from(compress(archive)), `application/vnd.oci.image.layer.v1.tar+${compression}`),
  )
  const config = Buffer.from(
    JSON.stringify({
      os: 'linux',
      architecture: options.architecture ?? hostArchitecture(),
      config: options.config ?? {},
      rootfs: { type: 'layers', diff_ids: layers.map(digestOf) },
    }),
  )
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: keep(config, 'application/vnd.oci.image.config.v1+json'),
      layers: stored,
    }),
  )
  keep(manifest, 'application/vnd.oci.image.manifest.v1+json')
  return {
    digest: digestOf(manifest),
    blobs,
    manifest,
    config,
    layers: layers.map((archive) => ({ diffId: digestOf(archive), archive })),
  }
}

/** As `skopeo copy ... oci-archive:` writes it. */
export function ociArchive(image: TestImage): Buffer {
  const index = {
    schemaVersion: 2,
    manifests: [
      {
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        digest: image.digest,
        size: image.manifest.length,
      },
    ],
  }
  return tar([
    { path: 'oci-layout', content: '{"imageLayoutVersion":"1.0.0"}' },
    { path: 'index.json', content: JSON.stringify(index) },
    ...[...image.blobs].map(([digest, content]) => ({ path: `blobs/${digest.replace(':', '/')}`, content })),
  ])
}

/** As `docker save` wrote it before it knew OCI layouts. */
export function dockerArchive(image: TestImage, tags: string[] = ['test:latest']): Buffer {
  const config = `${digestOf(image.config).slice(7)}.json`
  const manifest = [
    { Config: config, RepoTags: tags, Layers: image.layers.map((_, index) => `${index}/layer.tar`) },
  ]
  return tar([
    { path: config, content: image.config },
    ...image.layers.map(({ archive }, index) => ({ path: `${index}/layer.tar`, content: archive })),
    { path: 'manifest.json', content: JSON.stringify(manifest) },
  ])
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${new Bun.CryptoHasher('sha256').update(bytes).digest('hex')}`
}
