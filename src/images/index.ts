/** Images: what sandboxes and deployments start from. This door resolves references to root filesystems. */
import { PlatformError } from '../errors.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { HostImage } from './host-image.ts'

export { HostImage, type HostImageOptions, type HostImageSource, hostImageSources } from './host-image.ts'

/** An image made ready on this host, with the settings it carries. */
export interface ResolvedImage {
  /** As it was asked for. */
  reference: string
  root: RootFilesystem
  env: Record<string, string>
  workingDir: string
  /** '' is root. */
  user: string
  entrypoint: string[]
  command: string[]
  ports: { name?: string; target: number; protocol?: string }[]
}

/** A name of the catalogue that the host image answers to. */
export interface CatalogueEntry {
  /** Without tag, e.g. `blaxel/base-image`. */
  name: string
  summary: string
  /** Ports that programs of this image usually listen on. */
  ports: { name: string; target: number; protocol: string }[]
}

const httpPort = (name: string, target: number) => ({ name, target, protocol: 'HTTP' })

/** The well-known names: each stands for the host image, which carries the host's own node, python3 and git. */
export const catalogue: readonly CatalogueEntry[] = [
  {
    name: 'blaxel/base-image',
    summary: 'The host image: shell, and node, python3 and git of the host',
    ports: [],
  },
  { name: 'blaxel/node', summary: 'Node.js of the host', ports: [httpPort('app', 3000)] },
  { name: 'blaxel/node-slim', summary: 'Node.js of the host', ports: [httpPort('app', 3000)] },
  { name: 'blaxel/ts-app', summary: 'TypeScript and Node.js applications', ports: [httpPort('app', 3000)] },
  {
    name: 'blaxel/dev-ts-app',
    summary: 'TypeScript and Node.js applications',
    ports: [httpPort('app', 3000)],
  },
  { name: 'blaxel/py-app', summary: 'Python applications', ports: [httpPort('app', 8000)] },
  {
    name: 'blaxel/nextjs',
    summary: 'Next.js applications, on Node.js of the host',
    ports: [httpPort('preview', 3000)],
  },
  {
    name: 'blaxel/vite',
    summary: 'Vite applications, on Node.js of the host',
    ports: [httpPort('preview', 5173)],
  },
  {
    name: 'blaxel/astro',
    summary: 'Astro applications, on Node.js of the host',
    ports: [httpPort('preview', 4321)],
  },
  {
    name: 'blaxel/expo',
    summary: 'Expo applications, on Node.js of the host',
    ports: [httpPort('preview', 8081)],
  },
]

export const defaultImage = 'blaxel/base-image:latest'
const referenceCharsMax = 255
const referencePattern =
  /^(?<name>[a-z0-9]+(?:[._/-][a-z0-9]+)*)(?::(?<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?$/

/** Resolves image references. Every well-known name is the host image. */
export class Images {
  readonly #host: HostImage

  constructor(options: { host: HostImage }) {
    this.#host = options.host
  }

  /** @throws bad_request for a reference that is malformed or names nothing known here */
  async resolve(reference: string, signal?: AbortSignal): Promise<ResolvedImage> {
    const entry = knownImage(reference)
    const root = await this.#host.resolve(signal)
    return {
      reference,
      root,
      env: {
        PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hutch/bin',
        HOME: '/blaxel',
        LANG: 'C.UTF-8',
      },
      workingDir: '/blaxel',
      user: '',
      entrypoint: [],
      command: [],
      ports: entry.ports,
    }
  }
}

function knownImage(reference: string): CatalogueEntry {
  const shown = JSON.stringify(reference.slice(0, referenceCharsMax))
  const match = reference.length <= referenceCharsMax ? referencePattern.exec(reference) : null
  if (!match) {
    throw new PlatformError(
      'bad_request',
      `spec.runtime.image ${shown} is not an image reference: write name or name:tag, e.g. ${defaultImage}`,
    )
  }
  const { name, tag } = match.groups as { name: string; tag?: string }
  const entry = catalogue.find((candidate) => candidate.name === name)
  if (!entry) {
    throw new PlatformError(
      'bad_request',
      `spec.runtime.image ${shown} is unknown here. Known: ${catalogue.map((known) => known.name).join(', ')}`,
    )
  }
  if (tag !== undefined && tag !== 'latest') {
    throw new PlatformError(
      'bad_request',
      `spec.runtime.image ${shown}: ${name} has no tag ${JSON.stringify(tag)}, only "latest"`,
    )
  }
  return entry
}
