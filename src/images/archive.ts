/** Images in one file: a tar archive of an OCI layout, or what `docker save` writes. */
import { readFile } from 'node:fs/promises'
import { join, posix } from 'node:path'
import { Readable } from 'node:stream'
import { PlatformError } from '../errors.ts'
import { ByteReader } from '../lib/byte-reader.ts'
import { compressionOf, decompressed } from '../lib/compression.ts'
import { ReceivedFile } from '../lib/received-file.ts'
import { TarReader } from '../lib/tar.ts'
import type { ImageSource } from './install.ts'
import { cleanPath } from './layer.ts'
import {
  configBytesMax,
  type Descriptor,
  forThisHost,
  isIndex,
  manifestBytesMax,
  parseConfig,
  parseDockerArchive,
  parseIndex,
  parseManifest,
} from './manifest.ts'

const filesMax = 10_000
const linksFollowedMax = 8
const nestedIndexesMax = 4
const refNameAnnotation = 'org.opencontainers.image.ref.name'
const fullNameAnnotation = 'io.containerd.image.name'

interface StoredFile {
  path: string
  size: number
  sha256: string
}

/** The files of an archive, each under a name of ours: no path of the archive reaches the host's file system. */
interface Contents {
  files: Map<string, StoredFile>
  links: Map<string, string>
}

export interface ArchiveLimits {
  /** Of the archive, uncompressed. */
  bytesMax: number
  /** Asked now and then. @throws insufficient_storage */
  checkSpace(): Promise<void>
}

const bytesPerSpaceCheck = 64 * 1024 * 1024

/**
 * Reads a whole archive into `dir` and finds the image in it.
 * @param reference which one, where the archive has several: its name or tag in the archive
 * @throws unprocessable when there is none, it is damaged or not for this host; body_too_large
 */
export async function openArchive(
  body: AsyncIterable<Uint8Array>,
  options: { dir: string; limits: ArchiveLimits; reference?: string; signal?: AbortSignal },
): Promise<ImageSource> {
  const contents = await store(body, options)
  const index = fileOf(contents, 'index.json')
  if (index) return await fromLayout(contents, index, options.reference)
  const manifest = fileOf(contents, 'manifest.json')
  if (manifest) return await fromDockerArchive(contents, manifest, options.reference)
  throw new PlatformError(
    'unprocessable',
    'the archive has neither index.json (OCI layout) nor manifest.json (docker save): it is not an image. ' +
      'Make one with: docker save IMAGE, or skopeo copy docker://IMAGE oci-archive:FILE',
  )
}

async function store(
  body: AsyncIterable<Uint8Array>,
  { dir, limits, signal }: { dir: string; limits: ArchiveLimits; signal?: AbortSignal },
): Promise<Contents> {
  const contents: Contents = { files: new Map(), links: new Map() }
  const bytes = new ByteReader(plain(body))
  const tar = new TarReader(bytes)
  let total = 0
  let unchecked = 0
  try {
    for (let entry = await tar.next(); entry !== null; entry = await tar.next()) {
      signal?.throwIfAborted()
      const path = cleanPath(entry.path)
      if (entry.type === 'symlink') {
        contents.links.set(path, posix.join(posix.dirname(path), entry.linkPath))
      } else if (entry.type === 'link') contents.links.set(path, cleanPath(entry.linkPath))
      else if (entry.type === 'file') {
        total += entry.size
        if (total > limits.bytesMax) {
          throw new PlatformError(
            'body_too_large',
            `the archive has more than ${limits.bytesMax} bytes, the most that an image may have (imageMbMax)`,
          )
        }
        // A large file at least once by itself.
        unchecked += entry.size
        if (unchecked >= bytesPerSpaceCheck) {
          unchecked = 0
          await limits.checkSpace()
        }
        if (entry.extents !== null) throw new PlatformError('unprocessable', 'the archive has sparse files')
        contents.links.delete(path)
        contents.files.set(path, await storeFile(tar, join(dir, `file-${contents.files.size}`), limits))
      }
      if (contents.files.size + contents.links.size > filesMax) {
        throw new PlatformError('unprocessable', `the archive has more than ${filesMax} files`)
      }
    }
    return contents
  } finally {
    await bytes.cancel().catch(() => {})
  }
}

async function storeFile(tar: TarReader, path: string, limits: ArchiveLimits): Promise<StoredFile> {
  await using file = await ReceivedFile.open(path, () => limits.checkSpace())
  for (let part = await tar.data(); part !== null; part = await tar.data()) await file.write(part.bytes)
  return { path, size: file.size, sha256: file.digest() }
}

/** The body as a tar archive, whether it was compressed or not. */
async function* plain(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const source = body[Symbol.asyncIterator]()
  let first: Uint8Array = new Uint8Array(0)
  while (first.length < 4) {
    const next = await source.next()
    if (next.done) break
    first = first.length === 0 ? next.value : Buffer.concat([first, next.value])
  }
  if (first.length === 0)
    throw new PlatformError('bad_request', 'the request has no body: send the archive in it')
  const rest = (async function* () {
    try {
      yield first
      for (let one = await source.next(); !one.done; one = await source.next()) yield one.value
    } finally {
      await source.return?.()
    }
  })()
  const compression = compressionOf(first)
  if (compression === 'none') yield* rest
  else yield* decompressed(Readable.from(rest, { objectMode: false }), compression)
}

function fileOf(contents: Contents, path: string): StoredFile | null {
  let at = posix.normalize(path)
  for (let followed = 0; followed <= linksFollowedMax; followed++) {
    const file = contents.files.get(at)
    if (file) return file
    const link = contents.links.get(at)
    if (link === undefined) return null
    at = posix.normalize(link)
  }
  return null
}

/** A blob of an OCI layout, whose name is its digest. */
function blobOf(contents: Contents, { digest, size }: Descriptor): StoredFile {
  const file = fileOf(contents, `blobs/${digest.replace(':', '/')}`)
  if (!file) throw new PlatformError('unprocessable', `the archive lacks the part ${digest}`)
  if (file.sha256 !== digest || file.size !== size) {
    throw new PlatformError(
      'unprocessable',
      `the archive is damaged: ${digest} is another than its name says`,
    )
  }
  return file
}

async function contentOf(file: StoredFile, bytesMax: number, what: string): Promise<Uint8Array> {
  if (file.size > bytesMax) {
    throw new PlatformError('unprocessable', `the ${what} of the image has more than ${bytesMax} bytes`)
  }
  return await readFile(file.path)
}

async function fromLayout(
  contents: Contents,
  indexFile: StoredFile,
  reference: string | undefined,
): Promise<ImageSource> {
  const index = parseIndex(await contentOf(indexFile, manifestBytesMax, 'index'))
  const names = index.manifests.map(
    (one) => one.annotations?.[fullNameAnnotation] ?? one.annotations?.[refNameAnnotation] ?? '',
  )
  let candidates = index.manifests
  if (reference !== undefined) {
    candidates = index.manifests.filter((one, at) => {
      return names[at] === reference || one.annotations?.[refNameAnnotation] === reference
    })
    if (candidates.length === 0) throw notInArchive(reference, names)
  }
  let chosen: Descriptor = candidates.length === 1 ? candidates[0]! : forThisHost({ manifests: candidates })
  for (let nested = 0; ; nested++) {
    const bytes = await contentOf(blobOf(contents, chosen), manifestBytesMax, 'manifest')
    if (!isIndex(chosen.mediaType, bytes)) {
      const manifest = parseManifest(bytes)
      const config = await contentOf(blobOf(contents, manifest.config), configBytesMax, 'configuration')
      return {
        digest: chosen.digest,
        config: parseConfig(config),
        // Checked even where the layer is here already: a damaged archive is told of.
        layers: manifest.layers.map((layer) => {
          const { path } = blobOf(contents, layer)
          return { open: async () => path }
        }),
      }
    }
    if (nested >= nestedIndexesMax) throw new PlatformError('unprocessable', 'the index is nested too deep')
    chosen = forThisHost(parseIndex(bytes))
  }
}

async function fromDockerArchive(
  contents: Contents,
  manifestFile: StoredFile,
  reference: string | undefined,
): Promise<ImageSource> {
  const images = parseDockerArchive(await contentOf(manifestFile, manifestBytesMax, 'manifest.json'))
  const names = images.flatMap((one) => one.RepoTags ?? [])
  const image =
    reference === undefined
      ? images.length === 1
        ? images[0]
        : undefined
      : images.find((one) => one.RepoTags?.includes(reference))
  if (!image) throw notInArchive(reference, names)
  const configFile = fileOf(contents, image.Config)
  if (!configFile)
    throw new PlatformError('unprocessable', 'the archive lacks the configuration of the image')
  const config = await contentOf(configFile, configBytesMax, 'configuration')
  return {
    digest: configFile.sha256,
    config: parseConfig(config),
    layers: (image.Layers ?? []).map((path) => ({
      open: async () => {
        const file = fileOf(contents, path)
        if (!file) throw new PlatformError('unprocessable', 'the archive lacks a layer of the image')
        return file.path
      },
    })),
  }
}

function notInArchive(reference: string | undefined, names: string[]): PlatformError {
  const known = names.filter((name) => name !== '').slice(0, 20)
  const has = known.length > 0 ? `it has ${known.join(', ')}` : 'its images have no names'
  return new PlatformError(
    'bad_request',
    reference === undefined
      ? `the archive has several images: say which one by reference; ${has}`
      : `reference ${JSON.stringify(reference.slice(0, 200))} is not in the archive; ${has}`,
  )
}
