/** Previews: addresses under which a port of a sandbox is reachable from outside, public or with a token. */
import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { Deadlines } from '../lib/deadlines.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import { everyItem } from '../spec/store.ts'
import { sandboxApiPort } from './draft.ts'
import type { Sandboxes } from './index.ts'
import {
  type PreviewDraft,
  type PreviewInput,
  type PreviewTokenInput,
  type PreviewTokenView,
  type PreviewView,
  previewDraft,
} from './preview-schema.ts'
import {
  endOf,
  idCharsCount,
  labelOf,
  type PreviewBody,
  type PreviewTarget,
  PreviewTargets,
  previewKind,
  type StoredPreview,
} from './preview-targets.ts'
import { PreviewTokens } from './preview-tokens.ts'
import { type PreviewVisit, PreviewVisits } from './preview-visits.ts'

export {
  previewInputSchema,
  previewSchema,
  previewTokenInputSchema,
  previewTokenSchema,
} from './preview-schema.ts'
export type { PreviewTarget } from './preview-targets.ts'

const previewsPerSandboxMax = 500
const changeAttemptsMax = 8

export interface PreviewsOptions {
  store: Store
  sandboxes: Sandboxes
  secrets: SecretBox
  clock: Clock
  log: Logger
  /** Previews are `<label>.preview.<domain>`. */
  domain: string
  /** Whether a name is the platform's own, so that no preview can be reached by it. */
  ownsHost: (host: string) => boolean
  /** Whether a name is below a domain that another workspace has shown to be its own. */
  heldElsewhere?: (workspace: string, host: string) => boolean
}

export class Previews {
  readonly #store: Store
  readonly #sandboxes: Sandboxes
  readonly #secrets: SecretBox
  readonly #clock: Clock
  readonly #domain: string
  readonly #ownsHost: (host: string) => boolean
  readonly #heldElsewhere: (workspace: string, host: string) => boolean
  readonly #deadlines: Deadlines
  readonly #targets: PreviewTargets
  readonly #tokens: PreviewTokens
  readonly #visits: PreviewVisits
  /** By preview, for its changes; by custom domain, for who holds it. The second is taken before the first. */
  readonly #lock = new KeyedLock()

  constructor(options: PreviewsOptions) {
    this.#store = options.store
    this.#sandboxes = options.sandboxes
    this.#secrets = options.secrets
    this.#clock = options.clock
    this.#domain = options.domain
    this.#ownsHost = options.ownsHost
    this.#heldElsewhere = options.heldElsewhere ?? (() => false)
    this.#targets = new PreviewTargets(options)
    this.#tokens = new PreviewTokens({ ...options, targets: this.#targets })
    this.#visits = new PreviewVisits({ ...options, targets: this.#targets })
    this.#deadlines = new Deadlines({ clock: options.clock, log: options.log, due: (key) => this.#due(key) })
    this.#sandboxes.addDependent({
      endsAtOnce: true,
      removal: async (workspace, sandbox) =>
        (await this.#ofSandbox(workspace, sandbox)).map(
          (preview): BatchStep => ({ op: 'remove', key: keyOf(preview) }),
        ),
      removed: () => void this.#changed(),
    })
  }

  /** At start: sets the deadlines of previews that end. */
  async open(): Promise<void> {
    const where = { kind: previewKind, where: { ends: 'yes' } }
    for await (const preview of everyItem((page) => this.#store.page<PreviewBody>({ ...where, ...page }))) {
      this.#watchDeadline(preview)
    }
  }

  close(): void {
    this.#deadlines[Symbol.dispose]()
    this.#visits[Symbol.dispose]()
  }

  /**
   * The id, and with it the address, depends on workspace, sandbox and name alone.
   * @throws not_found (sandbox), already_exists unless `force`, conflict when the custom domain is taken, bad_request
   */
  async create(
    workspace: string,
    sandbox: string,
    input: PreviewInput,
    options: { actor: string; force?: boolean },
  ): Promise<StoredPreview> {
    const draft = this.#draft(input)
    const { name } = draft
    if (name === undefined) throw new PlatformError('bad_request', 'metadata.name: a preview needs a name')
    return await this.#sandboxes.whileExists(workspace, sandbox, () =>
      this.#holdingDomain(draft.customDomain, () =>
        this.#create(workspace, sandbox, { ...draft, name }, options),
      ),
    )
  }

  async #create(
    workspace: string,
    sandbox: string,
    draft: PreviewDraft & { name: string },
    options: { actor: string; force?: boolean },
  ): Promise<StoredPreview> {
    const { name, requestHeaders, ...rest } = draft
    const key = previewKey(workspace, sandbox, name)
    const id = this.#idOf(workspace, sandbox, name)
    const held = await this.#ofSandbox(workspace, sandbox)
    const steps: BatchStep[] = []
    if (held.some((preview) => preview.name === key.name)) {
      if (!options.force) {
        throw new PlatformError(
          'already_exists',
          `the preview "${name}" of the sandbox "${sandbox}" exists already; ?force=true replaces it`,
        )
      }
      steps.push({ op: 'remove', key })
    } else if (held.length >= previewsPerSandboxMax) {
      throw new PlatformError(
        'conflict',
        `the sandbox "${sandbox}" has ${previewsPerSandboxMax} previews, the most allowed: delete one first`,
      )
    }
    steps.push(
      ...(await this.#customDomainHolders(workspace, draft.customDomain, key.name, options.force ?? false)),
    )
    const body: PreviewBody = {
      id,
      sandbox,
      name,
      createdBy: options.actor,
      updatedBy: options.actor,
      ...rest,
      sealedRequestHeaders: this.#secrets.seal(JSON.stringify(requestHeaders), `preview:${id}:headers`),
      tokens: [],
    }
    steps.push({
      op: 'create',
      input: { ...key, body, indexes: indexesOf(body), createdAt: this.#clock.now() },
    })
    const results = await this.#store.batch(steps)
    await this.#changed()
    const created = results[results.length - 1] as StoredPreview
    this.#watchDeadline(created)
    return created
  }

  /** @throws not_found */
  async get(workspace: string, sandbox: string, name: string): Promise<StoredPreview> {
    const found = await this.#store.get<PreviewBody>(previewKey(workspace, sandbox, name))
    if (!found || this.#isOver(found)) {
      throw new PlatformError(
        'not_found',
        `the sandbox "${sandbox.slice(0, 64)}" has no preview "${name.slice(0, 64)}"`,
      )
    }
    return found
  }

  /** Newest first. @throws not_found (sandbox) */
  async list(workspace: string, sandbox: string): Promise<StoredPreview[]> {
    await this.#sandboxes.get(workspace, sandbox)
    return (await this.#ofSandbox(workspace, sandbox)).filter((preview) => !this.#isOver(preview))
  }

  /** Replaces the spec; the address and the tokens stay. @throws not_found, conflict, bad_request */
  async update(
    workspace: string,
    sandbox: string,
    name: string,
    input: PreviewInput,
    options: { actor: string },
  ): Promise<StoredPreview> {
    const draft = this.#draft(input)
    if (draft.name !== undefined && draft.name !== name) {
      throw new PlatformError(
        'bad_request',
        `metadata.name: a preview cannot be renamed; send "${name.slice(0, 64)}" or leave it out`,
      )
    }
    const { name: _, requestHeaders, ...rest } = draft
    const existing = await this.get(workspace, sandbox, name)
    const updated = await this.#holdingDomain(draft.customDomain, async () => {
      await this.#customDomainHolders(workspace, draft.customDomain, existing.name, false)
      return await this.#change(existing, ({ id, tokens, createdBy }) => ({
        id,
        sandbox,
        name,
        createdBy,
        updatedBy: options.actor,
        ...rest,
        sealedRequestHeaders: this.#secrets.seal(JSON.stringify(requestHeaders), `preview:${id}:headers`),
        tokens,
      }))
    })
    this.#watchDeadline(updated)
    return updated
  }

  /** It answers nobody any more when this resolves, and who was there is not. @throws not_found */
  async remove(workspace: string, sandbox: string, name: string): Promise<StoredPreview> {
    const existing = await this.get(workspace, sandbox, name)
    await this.#store.remove(keyOf(existing))
    await this.#changed()
    this.#deadlines.delete(deadlineKey(existing))
    return existing
  }

  /** A new token; its value can be read again by `listTokens`. @throws not_found, conflict, bad_request */
  async createToken(
    workspace: string,
    sandbox: string,
    name: string,
    input: PreviewTokenInput,
  ): Promise<PreviewTokenView> {
    const existing = await this.get(workspace, sandbox, name)
    const token = this.#tokens.make(existing, input)
    const updated = await this.#change(existing, (body) => this.#tokens.added(body, token))
    return this.#tokens.view(updated, token)
  }

  /** Newest first. @throws not_found */
  async listTokens(workspace: string, sandbox: string, name: string): Promise<PreviewTokenView[]> {
    const preview = await this.get(workspace, sandbox, name)
    return preview.body.tokens.map((token) => this.#tokens.view(preview, token))
  }

  /** By the token's value. It opens nothing any more when this resolves, and who came by it is gone. @throws not_found */
  async removeToken(workspace: string, sandbox: string, name: string, value: string): Promise<void> {
    const existing = await this.get(workspace, sandbox, name)
    await this.#change(existing, (body) => this.#tokens.removed(body, value))
  }

  /**
   * The preview behind a host label or path segment, as `view` put it into its address; null when there is none (any
   * more). Cheap: called for every request.
   */
  resolve(label: string): Promise<PreviewTarget | null> {
    return this.#targets.resolve(label)
  }

  /** The preview whose custom domain this is; null when there is none. Cheap, too, also for hosts that are nobody's. */
  resolveHost(host: string): Promise<PreviewTarget | null> {
    return this.#targets.resolveHost(host)
  }

  /** Whether a token opens this preview now. A public one needs none. */
  admits(target: PreviewTarget, token: string | null): Promise<boolean> {
    return this.#targets.admits(target, token)
  }

  /** Somebody is let in by it now (and by this token), and told when that would not be so any more. */
  visit(target: PreviewTarget, token: string | null): PreviewVisit {
    return this.#visits.begin(target, token)
  }

  /**
   * As it is answered. `origin` is that of the request: its scheme and port go into the address. `requestHeaders`
   * may carry credentials, and are for people and service accounts only.
   */
  view(
    preview: StoredPreview,
    origin: string,
    options: { requestHeaders: boolean; status?: 'DEPLOYED' | 'TERMINATED' },
  ): PreviewView {
    const { body } = preview
    const requestHeaders = options.requestHeaders ? this.#targets.requestHeaders(body) : {}
    return {
      metadata: {
        name: body.name,
        ...(body.displayName === undefined ? {} : { displayName: body.displayName }),
        resourceName: body.sandbox,
        resourceType: 'sandbox',
        workspace: preview.workspace,
        createdAt: new Date(preview.createdAt).toISOString(),
        updatedAt: new Date(preview.updatedAt).toISOString(),
        createdBy: body.createdBy,
        updatedBy: body.updatedBy,
      },
      spec: {
        port: body.port,
        public: body.public,
        ...(body.prefixUrl === undefined ? {} : { prefixUrl: body.prefixUrl }),
        ...(body.customDomain === undefined ? {} : { customDomain: body.customDomain }),
        ...(body.ttl === undefined ? {} : { ttl: body.ttl }),
        ...(body.expires === undefined ? {} : { expires: body.expires }),
        ...(Object.keys(requestHeaders).length > 0 ? { requestHeaders } : {}),
        ...(Object.keys(body.responseHeaders).length > 0 ? { responseHeaders: body.responseHeaders } : {}),
        url: this.#url(preview, origin),
      },
      status: options.status ?? 'DEPLOYED',
    }
  }

  /** Programs resolve no name under .localhost everywhere, so that sessions, made for them, get the path form. */
  #url(preview: StoredPreview, origin: string): string {
    const label = labelOf(preview.workspace, preview.body)
    if (preview.body.port === sandboxApiPort && preview.body.customDomain === undefined)
      return `${origin}/-/preview/${label}`
    const { protocol, port } = new URL(origin)
    const host = preview.body.customDomain ?? `${label}.preview.${this.#domain}`
    return `${protocol}//${host}${port === '' ? '' : `:${port}`}`
  }

  async #ofSandbox(workspace: string, sandbox: string): Promise<StoredPreview[]> {
    return await this.#store.find<PreviewBody>({
      kind: previewKind,
      workspace,
      index: 'sandbox',
      value: sandbox,
      limit: previewsPerSandboxMax,
    })
  }

  /** @throws bad_request that names the field */
  #draft(input: PreviewInput): PreviewDraft {
    const draft = previewDraft(input, this.#clock.now())
    const { customDomain } = draft
    if (customDomain !== undefined && this.#ownsHost(customDomain)) {
      throw new PlatformError(
        'bad_request',
        `spec.customDomain: "${customDomain}" is a name of this platform: take one of a domain of your own, or spec.prefixUrl for a name of your choice here`,
      )
    }
    return draft
  }

  /** Steps that take a custom domain from its holders. @throws conflict without `force`, or when another workspace has it */
  async #customDomainHolders(
    workspace: string,
    customDomain: string | undefined,
    ownName: string,
    force: boolean,
  ): Promise<BatchStep[]> {
    if (customDomain === undefined) return []
    if (this.#heldElsewhere(workspace, customDomain)) {
      throw new PlatformError(
        'conflict',
        `spec.customDomain: "${customDomain}" is below a domain of another workspace`,
      )
    }
    const holders = await this.#store.find<PreviewBody>({
      kind: previewKind,
      index: 'customDomain',
      value: customDomain,
    })
    const others = holders.filter((holder) => holder.workspace !== workspace || holder.name !== ownName)
    if (others.some((holder) => !force || holder.workspace !== workspace)) {
      throw new PlatformError('conflict', `spec.customDomain: "${customDomain}" is used by another preview`)
    }
    return others.map((holder) => ({ op: 'remove', key: keyOf(holder) }))
  }

  async #holdingDomain<Result>(
    customDomain: string | undefined,
    work: () => Promise<Result>,
  ): Promise<Result> {
    return customDomain === undefined ? await work() : await this.#lock.run(`domain ${customDomain}`, work)
  }

  /** One after the other, however many come at once. @throws not_found, and what `change` throws */
  async #change(
    { workspace, name, body: { sandbox, name: shown } }: StoredPreview,
    change: (body: PreviewBody) => PreviewBody,
  ): Promise<StoredPreview> {
    return await this.#lock.run(`preview ${workspace}/${name}`, async () => {
      for (let attempt = 1; ; attempt++) {
        const current = await this.get(workspace, sandbox, shown)
        const body = change(current.body)
        try {
          const updated = await this.#store.update<PreviewBody>(keyOf(current), current.version, {
            body,
            indexes: indexesOf(body),
          })
          await this.#changed()
          return updated
        } catch (error) {
          // It was replaced meanwhile, by a creation that was told to.
          const raced = PlatformError.is(error) && error.code === 'version_mismatch'
          if (!raced || attempt >= changeAttemptsMax) throw error
        }
      }
    })
  }

  #isOver(preview: StoredPreview): boolean {
    const end = endOf(preview)
    return end !== null && end <= this.#clock.now()
  }

  #watchDeadline(preview: StoredPreview): void {
    const end = endOf(preview)
    if (end === null) this.#deadlines.delete(deadlineKey(preview))
    else this.#deadlines.set(deadlineKey(preview), end)
  }

  async #due(key: string): Promise<void> {
    const [workspace, ...rest] = key.split('/') as [string, ...string[]]
    const found = await this.#store.get<PreviewBody>({ kind: previewKind, workspace, name: rest.join('/') })
    if (!found) return
    if (!this.#isOver(found)) return this.#watchDeadline(found)
    await this.#store.remove(keyOf(found), found.version)
    await this.#changed()
  }

  /** What is known of previews holds no more, and so may some who visit them. */
  async #changed(): Promise<void> {
    this.#targets.forget()
    // What cannot be read now is looked at again soon.
    await this.#visits.review().catch(() => {})
  }

  #idOf(workspace: string, sandbox: string, name: string): string {
    const keyed = this.#secrets.lookupHash(`preview_id:${workspace}/${sandbox}/${name}`)
    const digest = createHash('sha256').update(keyed).digest('hex')
    return BigInt(`0x${digest}`).toString(36).padStart(idCharsCount, '0').slice(-idCharsCount)
  }
}

function indexesOf(body: PreviewBody): Record<string, string> {
  return {
    id: body.id,
    sandbox: body.sandbox,
    ...(body.customDomain === undefined ? {} : { customDomain: body.customDomain }),
    ...(body.ttl === undefined && body.expires === undefined ? {} : { ends: 'yes' }),
  }
}

function previewKey(workspace: string, sandbox: string, name: string) {
  return { kind: previewKind, workspace, name: `${sandbox}/${name}` }
}

function keyOf({ kind, workspace, name }: StoredPreview) {
  return { kind, workspace, name }
}

function deadlineKey({ workspace, name }: StoredPreview): string {
  return `${workspace}/${name}`
}
