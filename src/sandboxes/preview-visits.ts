import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { PreviewTarget, PreviewTargets } from './preview-targets.ts'

/** Previews and tokens end by the clock, too. */
const lookEveryMs = 1_000
const idleLooksMax = 10

const message = 'the preview, or the token that opened it, is over'

/** Somebody's exchange with a preview, for as long as it takes. */
export class PreviewVisit {
  readonly #told: ((failure: PlatformError) => void)[] = []
  #failure: PlatformError | null = null

  constructor(
    readonly target: PreviewTarget,
    /** That it came by. */
    readonly token: string | null,
    private readonly onEnd: (visit: PreviewVisit) => void,
  ) {}

  /** Why it may not go on; null while it may. */
  get failure(): PlatformError | null {
    return this.#failure
  }

  /** Told, perhaps at once, when it may not go on. */
  onOver(told: (failure: PlatformError) => void): void {
    if (this.#failure === null) this.#told.push(told)
    else told(this.#failure)
  }

  cut(): void {
    if (this.#failure !== null) return
    this.end()
    this.#failure = new PlatformError('authentication_failed', message)
    for (const told of this.#told.splice(0)) told(this.#failure)
  }

  /** It is over by itself. Idempotent. */
  end(): void {
    this.onEnd(this)
  }
}

/** Who is visiting previews: none stays whom they would not let in any more. */
export class PreviewVisits implements Disposable {
  readonly #targets: PreviewTargets
  readonly #clock: Clock
  readonly #open = new Set<PreviewVisit>()
  readonly #closing = new AbortController()
  #looking = false

  constructor({ targets, clock }: { targets: PreviewTargets; clock: Clock }) {
    this.#targets = targets
    this.#clock = clock
  }

  begin(target: PreviewTarget, token: string | null): PreviewVisit {
    const visit = new PreviewVisit(target, token, (ended) => this.#open.delete(ended))
    this.#open.add(visit)
    if (!this.#looking) void this.#look()
    return visit
  }

  /** After a change: when it resolves nobody is left whom a preview would not let in. */
  async review(): Promise<void> {
    for (const visit of this.#open) if (!(await this.#mayStay(visit))) visit.cut()
  }

  async #mayStay({ target, token }: PreviewVisit): Promise<boolean> {
    const now = await this.#targets.find(target.id)
    if (now === null || now.port !== target.port) return false
    return await this.#targets.admits(now, token)
  }

  /** One timer for all of them, until there was none for a while. */
  async #look(): Promise<void> {
    this.#looking = true
    const { signal } = this.#closing
    for (let idle = 0; idle < idleLooksMax && !signal.aborted; idle = this.#open.size > 0 ? 0 : idle + 1) {
      await this.#clock.sleep(lookEveryMs, signal).catch(() => {})
      // A store that cannot be read now says nothing about anybody.
      await this.review().catch(() => {})
    }
    this.#looking = false
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
  }
}
