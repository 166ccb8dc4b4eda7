import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'

/** Without a byte in either direction a request is given up. */
const silenceMsMax = 100_000
/** Of a request in all. */
const exchangeMsMax = 15 * 60_000
/**
 * From then on a client that leaves is noticed before the answer begins. To look for that at once would cost a request that
 * is answered soon more than all else of the gateway.
 */
const lookEveryMs = 100
const idleLooksMax = 10
export const requestBytesMax = 128 * 1024 * 1024
const responseBytesMax = 1024 * 1024 * 1024

const silenceMessage =
  `No data came for ${silenceMsMax / 1000} seconds, after which the synchronous endpoint closes the connection: ` +
  'stream the answer, or run what takes long as a job'
const longMessage = `The request took ${exchangeMsMax / 60_000} minutes, the most that one may take`

/** How long requests to something deployed may take, be silent and be large. */
export class Exchanges implements Disposable {
  readonly #active = new Set<Exchange>()
  readonly clock: Clock
  readonly #closing = new AbortController()
  #looking = false

  constructor({ clock }: { clock: Clock }) {
    this.clock = clock
  }

  /** One that begins now. `timed`: it may not be silent, or take, too long. */
  begin(request: Request, { timed }: { timed: boolean }): Exchange {
    const exchange = new Exchange(request, { timed, clock: this.clock, active: this.#active })
    this.#active.add(exchange)
    if (!this.#looking) void this.#look()
    return exchange
  }

  /** One timer for all of them, until there was none for a while: to set one for each request costs more. */
  async #look(): Promise<void> {
    this.#looking = true
    const { signal } = this.#closing
    for (let idle = 0; idle < idleLooksMax && !signal.aborted; idle = this.#active.size > 0 ? 0 : idle + 1) {
      await this.clock.sleep(lookEveryMs, signal).catch(() => {})
      const now = this.clock.monotonic()
      for (const exchange of this.#active) exchange.look(now)
    }
    this.#looking = false
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
  }
}

/** One request and its answer. */
export class Exchange {
  readonly #request: Request
  readonly #timed: boolean
  readonly #clock: Clock
  readonly #active: Set<Exchange>
  readonly #beganAt: number
  /** Made when somebody asks for its signal: most requests are over before. */
  #cut: AbortController | null = null
  #cutBy: { reason: unknown } | null = null
  #onCut: ((reason: unknown) => void) | null = null
  #spokeAt: number
  #client: AbortSignal | null = null
  #connection: { touch(): void } | null = null
  #sentBytes = 0
  #answeredBytes = 0
  #over = false

  constructor(request: Request, options: { timed: boolean; clock: Clock; active: Set<Exchange> }) {
    this.#request = request
    this.#timed = options.timed
    this.#clock = options.clock
    this.#active = options.active
    this.#beganAt = options.clock.monotonic()
    this.#spokeAt = this.#beganAt
  }

  /** Called now and then while it lasts. */
  look(now: number): void {
    if (this.#client === null) this.#watch()
    if (!this.#timed) return
    if (now - this.#spokeAt >= silenceMsMax) this.cut(new PlatformError('gateway_timeout', silenceMessage))
    else if (now - this.#beganAt >= exchangeMsMax) this.cut(new PlatformError('gateway_timeout', longMessage))
  }

  /** It takes its time: a client that left, or leaves, ends it. */
  #watch(): void {
    this.#client = this.#request.signal
    if (this.#client.aborted) this.handleEvent()
    else this.#client.addEventListener('abort', this, { once: true })
  }

  /** The client left. */
  handleEvent(): void {
    this.#break(this.#client?.reason)
  }

  /** Aborted when the client left, or it is cut. */
  get signal(): AbortSignal {
    if (this.#cut === null) {
      this.#cut = new AbortController()
      if (this.#cutBy !== null) this.#cut.abort(this.#cutBy.reason)
    }
    return this.#cut.signal
  }

  /** Told, instead of who was before, when the client leaves or it is cut: what a signal would cost most requests is saved. */
  onCut(told: (reason: unknown) => void): void {
    this.#onCut = told
    if (this.#cutBy !== null) told(this.#cutBy.reason)
  }

  /** Why it was cut; null while it was not. */
  get failure(): PlatformError | null {
    const reason = this.#cutBy?.reason
    return PlatformError.is(reason) ? reason : null
  }

  cut(failure: PlatformError): void {
    this.end()
    this.#break(failure)
  }

  #break(reason: unknown): void {
    if (this.#cutBy !== null) return
    this.#cutBy = { reason }
    this.#cut?.abort(reason)
    this.#onCut?.(reason)
  }

  /** It is used only while something is said on it. */
  stayOpen(connection: { touch(): void }): void {
    this.#connection = connection
  }

  /** Bytes of the request. @throws body_too_large */
  sent(bytes: number): void {
    if (this.#over) return
    this.#spokeAt = this.#clock.monotonic()
    this.#sentBytes += bytes
    if (this.#sentBytes <= requestBytesMax) return
    const failure = tooLarge()
    this.cut(failure)
    throw failure
  }

  /** Bytes of the answer. */
  answered(bytes: number): void {
    if (this.#over) return
    this.#connection?.touch()
    this.#spokeAt = this.#clock.monotonic()
    this.#answeredBytes += bytes
    if (this.#answeredBytes <= responseBytesMax) return
    this.cut(
      new PlatformError(
        'bad_gateway',
        `The answer is larger than ${responseBytesMax / 2 ** 20} MiB, the most there may be`,
      ),
    )
  }

  /** It is over, whatever became of it. Idempotent. */
  end(): void {
    this.#over = true
    this.#active.delete(this)
    this.#client?.removeEventListener('abort', this)
  }
}

/** @throws body_too_large */
export function checkRequestLength(headers: Headers): void {
  if (Number(headers.get('content-length') ?? 0) > requestBytesMax) throw tooLarge()
}

function tooLarge(): PlatformError {
  return new PlatformError(
    'body_too_large',
    `The request is larger than ${requestBytesMax / 2 ** 20} MiB, the most there may be`,
  )
}
