/** Images that Dockerfiles build on: fetched by the platform, so that no credential comes near what is built. */
import { mkdir, mkdtemp, open, readdir, readFile, rename, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../../errors.ts'
import { catalogue, type Images } from '../../images/index.ts'
import type { Clock } from '../../lib/clock.ts'
import { TarWriter } from '../tar-writer.ts'
import type { DockerfileImage } from './file.ts'

/** Of parts of images kept for the next build. */
const keptBytesMax = 8 * 1024 ** 3
const partsDir = 'parts'
const scratchMark = 'fetch-'
const stubName = 'ghcr.io/blaxel-ai/sandbox'
const manifestType = 'application/vnd.oci.image.manifest.v1+json'
const layerType = 'application/vnd.oci.image.layer.v1.tar'
const architecture = process.arch === 'x64' ? 'amd64' : process.arch
const configType = 'application/vnd.oci.image.config.v1+json'

/** An image as an OCI layout, whose larger parts are files of this host, held until disposed. */
export interface BaseImage extends Disposable {
  /** Another one for another image. */
  digest: string
  /** Path in the layout to content. */
  documents: [path: string, content: Uint8Array][]
  files: [path: string, source: string][]
}

interface Part {
  mediaType: string
  digest: string
  size: number
}

export interface BaseImagesOptions {
  images: Pick<Images, 'open'>
  /** Theirs alone; made when missing. */
  dir: string
  /** What stands in for the cloud's own sandbox API. */
  standInPath: string
  clock: Clock
}

export class BaseImages {
  readonly #options: BaseImagesOptions
  readonly #held = new Map<string, number>()
  #prepared: Promise<void> | null = null

  constructor(options: BaseImagesOptions) {
    this.#options = options
  }

  /**
   * @throws bad_request for a registry that is not allowed, and what its client throws; each says in which line of the
   * Dockerfile the image is named
   */
  async fetch(
    workspace: string,
    image: DockerfileImage,
    options: { dockerConfig: string | null; signal: AbortSignal },
  ): Promise<BaseImage> {
    try {
      const reference = fullReference(image.text)
      if (isHostName(image.text)) return this.#hostMark()
      if (reference.split(/[:@]/)[0] === stubName) return await this.#stub()
      return await this.#pull(workspace, reference, options)
    } catch (error) {
      options.signal.throwIfAborted()
      if (!PlatformError.is(error)) throw error
      throw new PlatformError(
        error.retryable ? error.code : 'unprocessable',
        `line ${image.line} of the Dockerfile names the image ${JSON.stringify(image.text.slice(0, 200))}: ${error.message}`,
        { cause: error },
      )
    }
  }

  async #pull(
    workspace: string,
    reference: string,
    { dockerConfig, signal }: { dockerConfig: string | null; signal: AbortSignal },
  ): Promise<BaseImage> {
    const { dir, images } = this.#options
    this.#prepared ??= this.#prepare().catch((error) => {
      // Of a full disk, perhaps: the next one tries again.
      this.#prepared = null
      throw error
    })
    await this.#prepared
    const scratch = await mkdtemp(join(dir, scratchMark))
    const holds: Disposable[] = []
    try {
      const image = await images.open(workspace, reference, {
        dir: scratch,
        signal,
        ...(dockerConfig === null ? {} : { dockerConfig }),
      })
      const parts: Part[] = []
      for (const { blob, open: fetchBlob } of image.layers) {
        holds.push(this.#hold(blob.digest))
        if (!(await this.#isHere(blob.digest))) {
          await keepFile(await fetchBlob(signal), this.#pathOf(blob.digest))
        }
        const { size } = await stat(this.#pathOf(blob.digest))
        parts.push({ mediaType: blob.mediaType || layerType, digest: blob.digest, size })
      }
      await this.#dropOldest()
      return this.#layout(image.configDocument, parts, holds)
    } catch (error) {
      for (const hold of holds) hold[Symbol.dispose]()
      throw error
    } finally {
      await rm(scratch, { recursive: true, force: true })
    }
  }

  /** What was being fetched when a platform before this one ended goes. */
  async #prepare(): Promise<void> {
    const { dir } = this.#options
    await mkdir(join(dir, partsDir), { recursive: true, mode: 0o700 })
    for (const name of await readdir(dir))
      if (name.startsWith(scratchMark)) await rm(join(dir, name), { recursive: true, force: true })
  }

  /** What Dockerfiles for the cloud copy out of its own image: the program that is put in its place when one starts. */
  async #stub(): Promise<BaseImage> {
    const program = await readFile(this.#options.standInPath)
    const writer = new TarWriter()
    const header = writer.header({
      path: 'sandbox-api',
      type: 'file',
      mode: 0o755,
      modifiedNs: 0n,
      bytes: program.length,
      target: '',
    })
    const layer = Buffer.concat([header, program, writer.padding(program.length), writer.end()])
    const config = {
      architecture,
      os: 'linux',
      config: { Entrypoint: ['/sandbox-api'], ExposedPorts: { '8080/tcp': {} } },
      rootfs: { type: 'layers', diff_ids: [digestOf(layer)] },
    }
    const part = { mediaType: layerType, digest: digestOf(layer), size: layer.length }
    const layout = this.#layout(Buffer.from(JSON.stringify(config)), [part], [])
    return {
      ...layout,
      files: [],
      documents: [...layout.documents, [blobPath(part.digest), layer]],
    }
  }

  /** Stands for the host image, whose files are mounted in the place of its one layer. */
  #hostMark(): BaseImage {
    const env = ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hutch/bin']
    const config = {
      architecture,
      os: 'linux',
      config: { Env: [...env, 'HOME=/blaxel', 'LANG=C.UTF-8'], WorkingDir: '/blaxel' },
      rootfs: { type: 'layers', diff_ids: [hostMarkDiffId] },
    }
    const part = { mediaType: layerType, digest: hostMarkDiffId, size: hostMarkLayer.length }
    const layout = this.#layout(Buffer.from(JSON.stringify(config)), [part], [])
    return {
      ...layout,
      files: [],
      documents: [...layout.documents, [blobPath(part.digest), hostMarkLayer]],
    }
  }

  #layout(configDocument: Uint8Array, layers: Part[], holds: Disposable[]): BaseImage {
    const config = withHistory(configDocument, layers.length)
    const configPart = { mediaType: configType, digest: digestOf(config), size: config.length }
    const manifest = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: manifestType, config: configPart, layers }),
    )
    const digest = digestOf(manifest)
    const index = {
      schemaVersion: 2,
      manifests: [{ mediaType: manifestType, digest, size: manifest.length }],
    }
    return {
      digest,
      documents: [
        ['oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')],
        ['index.json', Buffer.from(JSON.stringify(index))],
        [blobPath(digest), manifest],
        [blobPath(configPart.digest), config],
      ],
      files: [...new Set(layers.map((layer) => layer.digest))].map((part) => [
        blobPath(part),
        this.#pathOf(part),
      ]),
      [Symbol.dispose]() {
        for (const hold of holds) hold[Symbol.dispose]()
      },
    }
  }

  async #isHere(digest: string): Promise<boolean> {
    const now = new Date(this.#options.clock.now())
    return await utimes(this.#pathOf(digest), now, now).then(
      () => true,
      () => false,
    )
  }

  #pathOf(digest: string): string {
    return join(this.#options.dir, partsDir, digest.slice('sha256:'.length))
  }

  #hold(digest: string): Disposable {
    this.#held.set(digest, (this.#held.get(digest) ?? 0) + 1)
    let held = true
    return {
      [Symbol.dispose]: () => {
        if (!held) return
        held = false
        const left = (this.#held.get(digest) ?? 1) - 1
        if (left > 0) this.#held.set(digest, left)
        else this.#held.delete(digest)
      },
    }
  }

  /** Those used last stay. */
  async #dropOldest(): Promise<void> {
    const dir = join(this.#options.dir, partsDir)
    const found = await Promise.all(
      (await readdir(dir)).map(async (name) => ({
        name,
        stats: await stat(join(dir, name)).catch(() => null),
      })),
    )
    let bytes = 0
    for (const { stats } of found) bytes += stats?.size ?? 0
    const oldestFirst = found.sort((left, right) => (left.stats?.mtimeMs ?? 0) - (right.stats?.mtimeMs ?? 0))
    for (const { name, stats } of oldestFirst) {
      if (bytes <= keptBytesMax) return
      if (this.#held.has(`sha256:${name}`)) continue
      await rm(join(dir, name), { force: true })
      bytes -= stats?.size ?? 0
    }
  }
}

/** Of nothing but what the host image has as well: images on it keep it. */
const hostMarkLayer = markLayer()
export const hostMarkDiffId = digestOf(hostMarkLayer)

/** Whether an image is one of the well-known ones that are the host image. */
export function isHostName(text: string): boolean {
  const [name, tag = 'latest'] = text.replace(/^docker\.io\//, '').split(':')
  return tag === 'latest' && catalogue.some((entry) => entry.name === name)
}

function markLayer(): Buffer {
  const writer = new TarWriter()
  const entry = {
    path: 'tmp/',
    type: 'directory',
    mode: 0o1777,
    modifiedNs: 0n,
    bytes: 0,
    target: '',
  } as const
  return Buffer.concat([writer.header(entry), writer.end()])
}

/** As tools spell it out: what names no registry is Docker's own. */
function fullReference(text: string): string {
  const slash = text.indexOf('/')
  const first = slash < 0 ? '' : text.slice(0, slash)
  const named = first.includes('.') || first.includes(':') || first === 'localhost'
  return named ? text : `docker.io/${text}`
}

/** Tools refuse to build on an image whose history does not speak of all its layers. */
function withHistory(config: Uint8Array, layers: number): Uint8Array {
  const parsed = JSON.parse(Buffer.from(config).toString('utf8')) as {
    history?: { empty_layer?: boolean }[]
  }
  const told = Array.isArray(parsed.history)
    ? parsed.history.filter((entry) => entry?.empty_layer !== true).length
    : -1
  if (told === layers) return config
  const history = Array.from({ length: layers }, () => ({ created_by: 'base image' }))
  return Buffer.from(JSON.stringify({ ...parsed, history }))
}

/** Durably: what has this name is taken for whole from then on. */
async function keepFile(from: string, to: string): Promise<void> {
  const file = await open(from, 'r+')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(from, to)
}

function blobPath(digest: string): string {
  return `blobs/${digest.replace(':', '/')}`
}

function digestOf(bytes: Uint8Array): string {
  return `sha256:${new Bun.CryptoHasher('sha256').update(bytes).digest('hex')}`
}
