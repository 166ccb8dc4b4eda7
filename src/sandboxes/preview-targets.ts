import { BoundedMap } from '../lib/bounded-map.ts'
import type { Clock } from '../lib/clock.ts'
import { parseDateMs } from '../lib/date.ts'
import { parseDuration } from '../lib/duration.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Resource, Store } from '../spec/store.ts'

export const previewKind = 'preview'
/** 82 bits: nobody finds a preview by guessing. */
export const idCharsCount = 16
const hostLabelCharsMax = 63
const hostCharsMax = 253
const cachedPreviewsMax = 10_000

export interface PreviewBody {
  id: string
  sandbox: string
  name: string
  displayName?: string
  createdBy: string
  updatedBy: string
  port: number
  public: boolean
  prefixUrl?: string
  customDomain?: string
  ttl?: string
  expires?: string
  /** They may carry credentials. */
  sealedRequestHeaders: string
  responseHeaders: Record<string, string>
  /** Newest first. */
  tokens: TokenRecord[]
}

export interface TokenRecord {
  hash: string
  name: string
  sealed: string
  expiresAt: number
}

export type StoredPreview = Resource<PreviewBody>

/** What the gateway needs to serve a preview. */
export interface PreviewTarget {
  readonly id: string
  readonly workspace: string
  readonly sandbox: string
  readonly name: string
  /** `sandboxApiPort`: the sandbox's own API. */
  readonly port: number
  readonly public: boolean
  readonly requestHeaders: Readonly<Record<string, string>>
  readonly responseHeaders: Readonly<Record<string, string>>
}

interface CachedTarget {
  target: PreviewTarget
  label: string
  expiresAt: number | null
  /** hash -> end, in milliseconds since the epoch */
  tokens: ReadonlyMap<string, number>
}

/** From an address to a preview, for every request: what was read once is remembered until a preview changes. */
export class PreviewTargets {
  readonly #store: Store
  readonly #secrets: SecretBox
  readonly #clock: Clock
  readonly #cache = new BoundedMap<string, CachedTarget>(cachedPreviewsMax)
  /** Host names to ids of previews; null: of none, as anybody may ask for any. */
  readonly #hosts = new BoundedMap<string, string | null>(cachedPreviewsMax)
  /** Counts changes: what was read before one is not remembered after it. */
  #changes = 0

  constructor(options: { store: Store; secrets: SecretBox; clock: Clock }) {
    this.#store = options.store
    this.#secrets = options.secrets
    this.#clock = options.clock
  }

  async resolve(label: string): Promise<PreviewTarget | null> {
    const cached = await this.#byId(label.slice(label.lastIndexOf('-') + 1))
    return cached?.label === label ? cached.target : null
  }

  /** By a preview's custom domain. */
  async resolveHost(host: string): Promise<PreviewTarget | null> {
    if (host.length > hostCharsMax || !host.includes('.')) return null
    const known = this.#hosts.get(host)
    const id = known === undefined ? await this.#findHost(host) : known
    return id === null ? null : ((await this.#byId(id))?.target ?? null)
  }

  async #findHost(host: string): Promise<string | null> {
    const changes = this.#changes
    const [found] = await this.#store.find<PreviewBody>({
      kind: previewKind,
      index: 'customDomain',
      value: host,
      limit: 1,
    })
    const id = found?.body.id ?? null
    if (changes === this.#changes) this.#hosts.set(host, id)
    return id
  }

  async admits(target: PreviewTarget, token: string | null): Promise<boolean> {
    if (target.public) return true
    if (token === null || token === '') return false
    const cached = await this.#byId(target.id)
    const end = cached?.tokens.get(this.hashOf(token))
    return end !== undefined && end > this.#clock.now()
  }

  /** As it is now; null when it is over. */
  async find(id: string): Promise<PreviewTarget | null> {
    return (await this.#byId(id))?.target ?? null
  }

  /** To be called after every change. Changes are rare beside requests, and an empty memory fills at a read each. */
  forget(): void {
    this.#changes++
    this.#cache.clear()
    this.#hosts.clear()
  }

  hashOf(token: string): string {
    return this.#secrets.lookupHash(`preview_token:${token}`)
  }

  requestHeaders(body: PreviewBody): Record<string, string> {
    return JSON.parse(this.#secrets.open(body.sealedRequestHeaders, `preview:${body.id}:headers`)) as Record<
      string,
      string
    >
  }

  async #byId(id: string): Promise<CachedTarget | null> {
    const cached = this.#cache.get(id) ?? (await this.#load(id))
    if (!cached || (cached.expiresAt !== null && cached.expiresAt <= this.#clock.now())) return null
    return cached
  }

  async #load(id: string): Promise<CachedTarget | null> {
    if (id.length !== idCharsCount) return null
    const changes = this.#changes
    const [found] = await this.#store.find<PreviewBody>({
      kind: previewKind,
      index: 'id',
      value: id,
      limit: 1,
    })
    if (!found) return null
    const { body, workspace } = found
    const cached: CachedTarget = {
      target: {
        id,
        workspace,
        sandbox: body.sandbox,
        name: body.name,
        port: body.port,
        public: body.public,
        requestHeaders: this.requestHeaders(body),
        responseHeaders: body.responseHeaders,
      },
      label: labelOf(workspace, body),
      expiresAt: endOf(found),
      tokens: new Map(body.tokens.map(({ hash, expiresAt }) => [hash, expiresAt])),
    }
    if (changes === this.#changes) this.#cache.set(id, cached)
    return cached
  }
}

/** What stands before `.preview.`: the id, behind the prefix and the workspace where a prefix was asked for. */
export function labelOf(workspace: string, body: PreviewBody): string {
  if (body.prefixUrl === undefined) return body.id
  const full = `${body.prefixUrl}-${workspace}-${body.id}`
  return full.length <= hostLabelCharsMax ? full : `${body.prefixUrl}-${body.id}`
}

/** When it expires, in milliseconds since the epoch; null: never. */
export function endOf(preview: StoredPreview): number | null {
  const { ttl, expires } = preview.body
  const moments = [
    ...(ttl === undefined ? [] : [preview.createdAt + parseDuration('ttl', ttl)]),
    ...(expires === undefined ? [] : [parseDateMs(expires)]),
  ].filter((moment) => moment !== null)
  return moments.length === 0 ? null : Math.min(...moments)
}
