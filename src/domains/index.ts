/** Custom domains: names of a workspace's own, under which its applications are reached once it has shown that they are. */
import { isIP } from 'node:net'
import { PlatformError } from '../errors.ts'
import {
  badRequest,
  checkDisplayName,
  checkLabels,
  checkPattern,
  checkRegion,
  quoted,
} from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import { defined } from '../lib/defined.ts'
import { randomText } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { isLoopbackHost } from '../lib/loopback.ts'
import { type BatchStep, everyItem, type Resource, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import type { DomainInput, DomainView, domainStatuses } from './schema.ts'

export { domainInputSchema, domainSchema } from './schema.ts'
export { lookUpTxt } from './txt.ts'

const domainKind = 'customDomain'
/** In a workspace. */
const domainsMax = 200
const challengeLabel = '_hutch-challenge'
const challengeLength = 32
/** So that the name of its TXT record is one, too. */
const domainPattern =
  /^(?=.{4,230}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])$/
const subdomainPattern =
  /^(?=.{1,200}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$/
const changeAttemptsMax = 8
const shownTextsMax = 5

interface DomainBody {
  displayName?: string
  labels: Record<string, string>
  region?: string
  application?: string
  createdBy: string
  updatedBy: string
  /** Value of the TXT record. */
  challenge: string
  status: (typeof domainStatuses)[number]
  /** The last look, whatever it found. */
  lastVerifiedAt?: string
  verificationError?: string
}

export type StoredDomain = Resource<DomainBody>

/** Who may be reached by a name. */
export interface DomainHolder {
  workspace: string
  domain: string
  /** Reached by the domain itself, whatever its urls say. */
  application: string | null
}

export interface DomainsOptions {
  store: Store
  clock: Clock
  /** Of a name; rejects with a code such as ENOTFOUND where there are none. */
  resolveTxt(name: string): Promise<string[][]>
  /** Whether a name is the platform's own. */
  ownsHost(host: string): boolean
  /** Which application has an address at, or below, a domain; null: none. */
  userOf(workspace: string, domain: string): string | null
}

export class Domains {
  readonly #options: DomainsOptions
  /** Every verified one: asked for with every request to a host that is not the platform's. */
  readonly #verified = new Map<string, DomainHolder>()
  /** By domain: two workspaces never show at once that one is theirs. */
  readonly #turns = new KeyedLock()

  constructor(options: DomainsOptions) {
    this.#options = options
  }

  /** At start. */
  async open(): Promise<void> {
    for await (const domain of everyItem((page) =>
      this.#options.store.page<DomainBody>({ kind: domainKind, ...page }),
    ))
      this.#note(domain)
  }

  /** It is reached by nobody before `verify` said so. @throws bad_request, already_exists, usage_limit_exceeded */
  async create(
    workspace: string,
    input: DomainInput,
    { actor, application }: { actor: string; application?: string },
  ): Promise<StoredDomain> {
    const { store, clock } = this.#options
    const name = this.#nameOf(input)
    const { total } = await store.page({ kind: domainKind, workspace, limit: 1 })
    if (total >= domainsMax) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `this workspace has ${total} custom domains, the most there can be: delete one first`,
      )
    }
    const body: DomainBody = {
      ...detailsOf(input, null),
      ...defined({ application }),
      createdBy: actor,
      updatedBy: actor,
      challenge: randomText(challengeLength),
      status: 'pending',
    }
    const key = { kind: domainKind, workspace, name }
    try {
      const [created] = await store.batch([
        { op: 'create', input: { ...key, body, createdAt: clock.now() } },
        inWorkspace(workspace),
      ])
      return created as StoredDomain
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'already_exists')
        throw new PlatformError('already_exists', `the custom domain "${name}" is registered already`)
      throw error
    }
  }

  /** @throws not_found */
  async get(workspace: string, name: string): Promise<StoredDomain> {
    const found = await this.#options.store.get<DomainBody>({ kind: domainKind, workspace, name })
    if (found) return found
    throw new PlatformError('not_found', `there is no custom domain "${name.slice(0, 80)}" in this workspace`)
  }

  /** Newest first. */
  async list(workspace: string): Promise<StoredDomain[]> {
    return await Array.fromAsync(
      everyItem((page) => this.#options.store.page<DomainBody>({ kind: domainKind, workspace, ...page })),
    )
  }

  /** Its name, its challenge and what it is verified for stay. @throws not_found, bad_request */
  async update(
    workspace: string,
    name: string,
    input: DomainInput,
    { actor }: { actor: string },
  ): Promise<StoredDomain> {
    const existing = await this.get(workspace, name)
    if (input.metadata?.name && this.#nameOf(input) !== name)
      throw badRequest(`metadata.name: a custom domain cannot be renamed; send "${name}" or leave it out`)
    return await this.#change(existing, (body) => ({ ...body, ...detailsOf(input, body), updatedBy: actor }))
  }

  /** Nobody is reached by it when this resolves. @throws not_found, conflict while an application has an address there */
  async remove(workspace: string, name: string): Promise<StoredDomain> {
    const existing = await this.get(workspace, name)
    const user = this.#options.userOf(workspace, name)
    if (user !== null && this.#verified.get(name)?.workspace === workspace)
      throw new PlatformError(
        'conflict',
        `the application "${user}" has an address there: change its spec.urls first`,
      )
    await this.#options.store.remove({ kind: domainKind, workspace, name })
    this.#forget(workspace, name)
    return existing
  }

  /** Steps that forget those of a workspace, for the batch that removes it. */
  async removal(workspace: string): Promise<BatchStep[]> {
    const domains = await this.list(workspace)
    for (const { name } of domains) this.#forget(workspace, name)
    return domains.map(({ name }) => ({ op: 'remove', key: { kind: domainKind, workspace, name } }))
  }

  /**
   * Looks for the TXT record that only who has the domain can make; what it found is in the answer. Also of one that is
   * verified: one whose record went leads to nobody any more. @throws not_found
   */
  async verify(workspace: string, name: string): Promise<StoredDomain> {
    const asked = await this.get(workspace, name)
    return await this.#turns.run(name, async () => {
      const problem = (await this.#lookAt(asked)) ?? this.#heldElsewhere(workspace, name)
      const lastVerifiedAt = new Date(this.#options.clock.now()).toISOString()
      const looked = await this.#change(asked, ({ verificationError: _, ...body }) => ({
        ...body,
        lastVerifiedAt,
        ...(problem === null ? { status: 'verified' } : { status: 'failed', verificationError: problem }),
      }))
      this.#note(looked)
      return looked
    })
  }

  /** Who is reached by a name that is not the platform's, as far as domains say; null: nobody. No work. */
  holderOf(host: string): DomainHolder | null {
    for (let at = 0; at >= 0; at = host.indexOf('.', at) + 1 || -1) {
      const holder = this.#verified.get(at === 0 ? host : host.slice(at))
      if (holder !== undefined) return holder
    }
    return null
  }

  /**
   * The host names of an application's `urls`. One that is not verified yet is looked at now. @throws bad_request that names
   * the field
   */
  async checkUrls(workspace: string, urls: readonly { domain: string; subdomain?: string }[]): Promise<void> {
    for (const [index, { domain, subdomain }] of urls.entries()) {
      const field = `spec.urls[${index}]`
      if (subdomain !== undefined)
        checkPattern(`${field}.subdomain`, subdomain, subdomainPattern, 'a name like www')
      if (this.#verified.get(domain)?.workspace === workspace) continue
      const found = await this.#options.store.get<DomainBody>({ kind: domainKind, workspace, name: domain })
      if (!found) {
        throw badRequest(
          `${field}.domain: ${quoted(domain)} is no custom domain of this workspace: register it first (POST /customdomains)`,
        )
      }
      const { status, verificationError } = (await this.verify(workspace, domain)).body
      if (status !== 'verified')
        throw badRequest(`${field}.domain: ${quoted(domain)} is not verified: ${verificationError}`)
    }
  }

  /** `origin` is that of the request. */
  view({ workspace, name, body, createdAt, updatedAt }: StoredDomain, origin: string): DomainView {
    const target = new URL(origin).hostname
    return {
      metadata: {
        name,
        ...defined({ displayName: body.displayName }),
        ...(Object.keys(body.labels).length > 0 ? { labels: body.labels } : {}),
        workspace,
        createdAt: new Date(createdAt).toISOString(),
        updatedAt: new Date(updatedAt).toISOString(),
        createdBy: body.createdBy,
        updatedBy: body.updatedBy,
      },
      spec: {
        domainType: 'applications',
        ...defined({ application: body.application, region: body.region }),
        status: body.status,
        txtRecords: { [`${challengeLabel}.${name}`]: body.challenge },
        ...(isLoopbackHost(target) || isIP(target.replace(/^\[|\]$/g, '')) !== 0
          ? {}
          : { cnameRecords: target }),
        ...defined({ lastVerifiedAt: body.lastVerifiedAt, verificationError: body.verificationError }),
      },
    }
  }

  /** Why it is not shown to be the workspace's; null: it is. */
  async #lookAt({ name, body }: StoredDomain): Promise<string | null> {
    const record = `${challengeLabel}.${name}`
    let texts: string[]
    try {
      texts = (await this.#options.resolveTxt(record)).map((parts) => parts.join(''))
    } catch (error) {
      const { code = 'ESERVFAIL' } = error as NodeJS.ErrnoException
      const missing = code === 'ENOTFOUND' || code === 'ENODATA'
      const why = missing ? 'there is no such record' : `it could not be looked up (${code})`
      return `the TXT record ${record} is to be ${body.challenge}: ${why}; a new one takes a while to be seen`
    }
    if (texts.includes(body.challenge)) return null
    const shown = texts.slice(0, shownTextsMax).map(quoted).join(', ')
    return `the TXT record ${record} is to be ${body.challenge}, and is ${shown || 'empty'}`
  }

  #heldElsewhere(workspace: string, name: string): string | null {
    const holder = this.#verified.get(name)
    if (holder === undefined || holder.workspace === workspace) return null
    return 'another workspace of this platform has shown that it is its own: it is to be deleted there first'
  }

  /** @throws bad_request */
  #nameOf(input: DomainInput): string {
    const given = input.metadata?.name
    if (!given) throw badRequest('metadata.name: missing: the domain, such as example.com')
    const name = given.toLowerCase().replace(/\.$/, '')
    checkPattern('metadata.name', name, domainPattern, 'a domain name like example.com')
    if (this.#options.ownsHost(name))
      throw badRequest(`metadata.name: "${name}" is a name of this platform: take a domain of your own`)
    return name
  }

  /** One after the other, however many come at once. @throws not_found */
  async #change(domain: StoredDomain, change: (body: DomainBody) => DomainBody): Promise<StoredDomain> {
    const { kind, workspace, name } = domain
    for (let current = domain, attempt = 1; ; attempt++) {
      try {
        return await this.#options.store.update<DomainBody>({ kind, workspace, name }, current.version, {
          body: change(current.body),
        })
      } catch (error) {
        const raced = PlatformError.is(error) && error.code === 'version_mismatch'
        if (!raced || attempt >= changeAttemptsMax) throw error
        current = await this.get(workspace, name)
      }
    }
  }

  #note({ workspace, name, body }: StoredDomain): void {
    if (body.status === 'verified')
      this.#verified.set(name, { workspace, domain: name, application: body.application ?? null })
    else this.#forget(workspace, name)
  }

  #forget(workspace: string, name: string): void {
    if (this.#verified.get(name)?.workspace === workspace) this.#verified.delete(name)
  }
}

/** @throws bad_request */
function detailsOf(
  { metadata, spec }: DomainInput,
  before: DomainBody | null,
): Pick<DomainBody, 'displayName' | 'labels' | 'region'> {
  const type = spec?.domainType ?? spec?.type
  if (type && type !== 'applications') {
    throw badRequest(
      `spec.domainType: ${quoted(type)} is not "applications"; a preview takes its domain as it is, as spec.customDomain`,
    )
  }
  const displayName = metadata?.displayName
  return {
    ...defined({
      displayName: displayName ? checkDisplayName(displayName) : before?.displayName,
      region: spec?.region ? checkRegion(spec.region) : before?.region,
    }),
    labels: metadata?.labels ? checkLabels(metadata.labels) : (before?.labels ?? {}),
  }
}
