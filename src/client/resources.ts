import { pages } from './pages.ts'
import type { Transport } from './transport.ts'

export interface ResourceEvent {
  time: string
  type: string
  status?: string
  message?: string
  revision?: string
  canaryRevision?: string
}

/** Any object of the control plane, as it answers: what only some kinds have is read by whoever knows the kind. */
export interface Resource {
  metadata?: Record<string, unknown> & { name?: string; url?: string; createdAt?: string }
  spec?: Record<string, unknown>
  status?: string
  events?: ResourceEvent[]
  [field: string]: unknown
}

/** What an accepted change of a resource answers. */
export interface Accepted {
  resource: Resource
  /** Where the archive goes, when one was asked for. */
  uploadUrl: string | null
  /** The revision that the change made, where the kind has revisions. */
  revision: string | null
}

export interface ResourcePage {
  items: Resource[]
  /** '' on the last page. */
  nextCursor: string
}

const uploadHeader = 'x-blaxel-upload-url'
const revisionHeader = 'x-hutch-revision'

/** Objects of the control plane by their path below it, e.g. `/agents` and `/agents/mine`. */
export class Resources {
  constructor(private readonly transport: Transport) {}

  async *list(collection: string): AsyncIterable<Resource> {
    yield* pages<Resource>(this.transport, collection)
  }

  /** One page; of a kind without pages all there is. */
  async page(collection: string, options: { limit?: number; cursor?: string }): Promise<ResourcePage> {
    const query = new URLSearchParams()
    if (options.limit !== undefined) query.set('limit', String(options.limit))
    if (options.cursor) query.set('cursor', options.cursor)
    const answer = await this.transport.json<
      Resource[] | { data: Resource[]; meta?: { nextCursor?: string } }
    >('GET', `${collection}${collection.includes('?') ? '&' : '?'}${query}`)
    if (Array.isArray(answer)) return { items: answer, nextCursor: '' }
    return { items: answer.data, nextCursor: answer.meta?.nextCursor ?? '' }
  }

  async get(path: string): Promise<Resource> {
    return await this.transport.json('GET', path)
  }

  /** `upload`: an archive follows, which its image is built from. */
  async create(collection: string, body: object, options: { upload?: boolean } = {}): Promise<Accepted> {
    return await this.send('POST', collection, body, options)
  }

  async replace(path: string, body: object, options: { upload?: boolean } = {}): Promise<Accepted> {
    return await this.send('PUT', path, body, options)
  }

  async remove(path: string): Promise<void> {
    await this.transport.json('DELETE', path)
  }

  private async send(
    method: string,
    path: string,
    body: object,
    { upload = false }: { upload?: boolean },
  ): Promise<Accepted> {
    const address = `${this.transport.apiUrl}${path}${upload ? '?upload=true' : ''}`
    const response = await this.transport.request(address, {
      method,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    })
    return {
      resource: (await response.json()) as Resource,
      uploadUrl: response.headers.get(uploadHeader),
      revision: response.headers.get(revisionHeader),
    }
  }
}
