import { ClientError, type Transport } from './transport.ts'

export interface ImageInfo {
  metadata: {
    name: string
    resourceType: string
    status: string
    createdAt?: string
    updatedAt?: string
    events?: { time: string; message: string; tag?: string }[]
  }
  spec: { size: number; tags: { name: string; size: number; createdAt: string; updatedAt: string }[] }
  /** For `spec.runtime.image`; only in the answers to pull and import. */
  reference?: string
}

export interface RegistryInfo {
  host: string
  username: string
  updatedAt: string
}

const pollMs = 1_000

/** Images of a workspace, and the registries it has credentials for. */
export class Images {
  private readonly origin: string

  constructor(private readonly transport: Transport) {
    this.origin = new URL(transport.apiUrl).origin
  }

  async list(): Promise<ImageInfo[]> {
    return await this.transport.json('GET', '/images')
  }

  async get(type: string, name: string): Promise<ImageInfo> {
    return await this.transport.json('GET', this.path(type, name))
  }

  /** Resolves when the image is here; a pull that takes longer than an answer may is looked after. */
  async pull(image: string, options: { name?: string; tag?: string }): Promise<ImageInfo> {
    const pulled = await this.transport.json<ImageInfo>('POST', `${this.origin}/-/images/pull`, {
      image,
      ...options,
    })
    const { resourceType, name } = pulled.metadata
    let { status, events } = pulled.metadata
    while (status === 'BUILDING') {
      await new Promise((resolve) => setTimeout(resolve, pollMs))
      ;({ status, events } = (await this.get(resourceType, name)).metadata)
    }
    if (status === 'FAILED') throw new ClientError(422, events?.at(-1)?.message ?? 'the pull failed')
    return pulled
  }

  async import(body: Blob, options: { name: string; tag?: string; reference?: string }): Promise<ImageInfo> {
    const query = new URLSearchParams(Object.entries(options).filter(([, value]) => value !== undefined))
    const response = await this.transport.request(`${this.origin}/-/images/import?${query}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/x-tar' },
      body,
    })
    return (await response.json()) as ImageInfo
  }

  /** An image with all its tags, or one tag. */
  async remove(type: string, name: string, tag?: string): Promise<void> {
    const rest = tag === undefined ? '' : `/tags/${encodeURIComponent(tag)}`
    await this.transport.json('DELETE', `${this.path(type, name)}${rest}`)
  }

  /** Every image that no sandbox stands on; answers how many. */
  async removeUnused(): Promise<number> {
    return (await this.transport.json<{ deleted: number }>('DELETE', '/images')).deleted
  }

  async registries(): Promise<RegistryInfo[]> {
    return await this.transport.json('GET', `${this.origin}/-/registries`)
  }

  async login(host: string, credentials: { username: string; password: string }): Promise<void> {
    await this.transport.json('PUT', `${this.origin}/-/registries/${encodeURIComponent(host)}`, credentials)
  }

  async logout(host: string): Promise<void> {
    await this.transport.json('DELETE', `${this.origin}/-/registries/${encodeURIComponent(host)}`)
  }

  private path(type: string, name: string): string {
    return `/images/${encodeURIComponent(type)}/${encodeURIComponent(name)}`
  }
}
