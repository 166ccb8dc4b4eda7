import { PlatformError } from '../errors.ts'
import { pullAnswerMsMax } from '../images/index.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Deployment, SandboxDeployments } from './deployments.ts'
import type { SandboxDraft } from './draft.ts'
import { failed, isReplaceable, type StoredSandbox } from './record.ts'
import type { SandboxRecords } from './records.ts'
import type { SandboxRemoval } from './removal.ts'
import type { SandboxTurns } from './turns.ts'

export interface CreationImages {
  /** A pull that has to be over before the image can be started from; null: none. @throws bad_request */
  prepare(
    workspace: string,
    reference: string,
    options: { dockerConfig?: string },
  ): Promise<{ pulling: Promise<unknown> } | null>
}

interface Wanted {
  workspace: string
  name: string
  draft: SandboxDraft
  /** Credentials for the registry of its image, as docker keeps them. */
  dockerConfig?: string
  actor: string
  /** What is told of it once it runs, where it is not pulled first. */
  message?: string
}

/** What there is now, and whether it was made for that. */
export interface FoundOrCreated {
  sandbox: StoredSandbox
  isNew: boolean
}

/** How sandboxes come: at once, or once their image was pulled. */
export class SandboxCreation {
  readonly #records: SandboxRecords
  readonly #turns: SandboxTurns
  readonly #deployments: SandboxDeployments
  readonly #removal: SandboxRemoval
  readonly #images: CreationImages
  readonly #background: Background
  readonly #clock: Clock

  constructor(options: {
    records: SandboxRecords
    turns: SandboxTurns
    deployments: SandboxDeployments
    removal: SandboxRemoval
    images: CreationImages
    background: Background
    clock: Clock
  }) {
    this.#records = options.records
    this.#turns = options.turns
    this.#deployments = options.deployments
    this.#removal = options.removal
    this.#images = options.images
    this.#background = options.background
    this.#clock = options.clock
  }

  /**
   * Resolves when the sandbox can be used, or, while its image is still being pulled after `pullAnswerMsMax`, in the
   * state DEPLOYING. @throws bad_request, already_exists, and what starting an instance throws; then no record is left
   */
  async create(wanted: Wanted): Promise<StoredSandbox> {
    return (await this.#create(wanted, { mayExist: false })).sandbox
  }

  /** As `create`, unless there is one of this name. @throws as `create` */
  async findOrCreate(wanted: Wanted): Promise<FoundOrCreated> {
    return await this.#create(wanted, { mayExist: true })
  }

  async #create(wanted: Wanted, { mayExist }: { mayExist: boolean }): Promise<FoundOrCreated> {
    const { workspace, name, draft, dockerConfig } = wanted
    let found = false
    let pull: { pending: StoredSandbox; pulling: Promise<unknown> } | null = null
    const answer = await this.#turns.run(workspace, name, async () => {
      const existing = await this.#turns.current(workspace, name)
      if (existing && !isReplaceable(existing.body.status)) {
        found = mayExist && existing.body.status !== 'DELETING'
        if (found) return existing
        throw alreadyExists(existing)
      }
      this.#deployments.admit(draft)
      const { actor, message } = wanted
      const told = message === undefined ? {} : { message }
      const deployment: Deployment = { workspace, name, draft, actor, replaced: existing, ...told }
      const image = draft.spec.image
      const missing = draft.seed
        ? null
        : await this.#images
            .prepare(workspace, image, dockerConfig ? { dockerConfig } : {})
            .catch((error) => Promise.reject(ofImage(error, image)))
      if (missing === null) return await this.#deployments.launch(deployment)
      const pending = await this.#deployments.announce(deployment, {
        status: 'DEPLOYING',
        message: `Deployment started: pulling ${image}`,
      })
      pull = { pending, pulling: missing.pulling }
      return pending
    })
    return { sandbox: pull === null ? answer : await this.#afterPull(pull, wanted), isNew: !found }
  }

  async #afterPull(
    { pending, pulling }: { pending: StoredSandbox; pulling: Promise<unknown> },
    wanted: Wanted,
  ): Promise<StoredSandbox> {
    const { workspace, name } = pending
    let answered = false
    const launched = pulling
      .then(() => this.#launchPulled(pending, wanted))
      .catch(async (error) => {
        // Whoever was told of it finds it failed; who was not is told now, and nothing is left.
        const reason = PlatformError.is(error) ? error.message : 'it could not be started'
        await this.#whilePending(pending, async (current) => {
          if (current === null) return
          if (!answered) await this.#removal.forget(current)
          else await this.#records.change(current, (body) => failed(body, this.#clock.now(), reason))
        })
        throw error
      })
    this.#background.run(launched)
    const stop = new AbortController()
    const late = this.#clock.sleep(pullAnswerMsMax, stop.signal).then(
      async () => {
        answered = true
        return (await this.#records.get(workspace, name)) ?? pending
      },
      () => launched,
    )
    try {
      return await Promise.race([launched, late])
    } finally {
      stop.abort()
    }
  }

  async #launchPulled(pending: StoredSandbox, { draft, actor }: Wanted): Promise<StoredSandbox> {
    this.#background.refuseWhenClosing()
    return await this.#whilePending(pending, async (current) => {
      if (current === null) {
        throw new PlatformError(
          'conflict',
          `the sandbox "${pending.name}" was deleted while its image was pulled`,
        )
      }
      this.#deployments.admit(draft)
      const message = 'Deployment successful'
      return this.#deployments.inUse(await this.#deployments.replaceMachine(current, draft, actor, message))
    })
  }

  /** In its turn, with the sandbox as it is then; null when it is not that one any more, or waits for nothing. */
  async #whilePending<Result>(
    { workspace, name, body: { uid } }: StoredSandbox,
    work: (current: StoredSandbox | null) => Promise<Result>,
  ): Promise<Result> {
    return await this.#turns.run(workspace, name, async () => {
      const found = await this.#turns.current(workspace, name)
      return await work(found?.body.uid === uid && found.body.status === 'DEPLOYING' ? found : null)
    })
  }
}

function alreadyExists({ name, body: { status } }: StoredSandbox): PlatformError {
  return new PlatformError(
    'already_exists',
    `the sandbox "${name}" exists already in this workspace (status ${status})`,
    status === 'DELETING' ? { details: { reason: 'DELETION_IN_PROGRESS' } } : {},
  )
}

const imageFailures = new Set(['bad_request', 'not_found', 'forbidden', 'unprocessable'])

/** The same failure, with what it is of, as clients look for it. */
function ofImage(error: unknown, image: string): unknown {
  if (!PlatformError.is(error) || !imageFailures.has(error.code) || error.details?.code) return error
  const details = { ...error.details, code: 'INVALID_IMAGE', details: { requested_image: image } }
  return new PlatformError(error.code, error.message, { cause: error.cause, details })
}
