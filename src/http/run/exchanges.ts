import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { Lingering } from '../../lib/lingering.ts'
import type { Logger } from '../../lib/log.ts'

/** Without a byte in either direction a request is given up. */
const silenceMsMax = 100_000
/** Of a request in all. */
const exchangeMsMax = 15 * 60_000
/**
 * From then on a client that leaves is noticed before the answer begins. To look for that at once would cost a request that
 * is answered soon more than all else of the gateway.
 */
const unwatchedMs = 100
export const requestBytesMax = 128 * 1024 * 1024
const responseBytesMax = 1024 * 1024 * 1024

/** How long requests to something deployed may take, be silent and be large. */
export class Exchanges implements Disposable {
  readonly #silent: Lingering<Exchange>
  readonly #long: Lingering<Exchange>
  readonly #unwatched: Lingering<Exchange>

  constructor({ clock, log }: { clock: Clock; log: Logger }) {
    const after = (afterMs: number, message: string) =>
      new Lingering<Exchange>({
        afterMs,
        clock,
        log,
        due: (exchange) => exchange.cut(new PlatformError('gateway_timeout', message)),
      })
    this.#unwatched = new Lingering({ afterMs: unwatchedMs, clock, log, due: (exchange) => exchange.watch() })
    this.#silent = after(
      silenceMsMax,
      `No data came for ${silenceMsMax / 1000} seconds, after which the synchronous endpoint closes the connection: ` +
        'stream the answer, or run what takes long as a job',
    )
    this.#long = after(
      exchangeMsMax,
      `The request took ${exchangeMsMax / 60_000} minutes, the most that one may take`,
    )
  }

  /** One that begins now. `timed`: it may not be silent, or take, too long. */
  begin(request: Request, { timed }: { timed: boolean }): Exchange {
    const [silent, long] = timed ? [this.#silent, this.#long] : [null, null]
    return new Exchange(request, { silent, long, unwatched: this.#unwatched })
  }

  [Symbol.dispose](): void {
    this.#silent[Symbol.dispose]()
    this.#long[Symbol.dispose]()
    this.#unwatched[Symbol.dispose]()
  }
}

/** One request and its answer. */
export class Exchange {
  readonly #silent: Lingering<Exchange> | null
  readonly #long: Lingering<Exchange> | null
  readonly #unwatched: Lingering<Exchange>
  readonly #cut = new AbortController()
  readonly #request: Request
  #client: AbortSignal | null = null
  #connection: { touch(): void } | null = null
  #sentBytes = 0
  #answeredBytes = 0
  #over = false

  constructor(
    request: Request,
    times: {
      silent: Lingering<Exchange> | null
      long: Lingering<Exchange> | null
      unwatched: Lingering<Exchange>
    },
  ) {
    this.#silent = times.silent
    this.#long = times.long
    this.#unwatched = times.unwatched
    this.#request = request
    this.#silent?.add(this)
    this.#long?.add(this)
    this.#unwatched.add(this)
  }

  /** Aborted when the client left, or it is cut. */
  get signal(): AbortSignal {
    return this.#cut.signal
  }

  /** Why it was cut; null while it was not. */
  get failure(): PlatformError | null {
    const { reason } = this.#cut.signal
    return PlatformError.is(reason) ? reason : null
  }

  /** It takes its time: a client that left, or leaves, ends it. */
  watch(): void {
    this.#client = this.#request.signal
    if (this.#client.aborted) this.#onLeave()
    else this.#client.addEventListener('abort', this.#onLeave, { once: true })
  }

  readonly #onLeave = () => this.#cut.abort(this.#client?.reason)

  cut(failure: PlatformError): void {
    this.end()
    this.#cut.abort(failure)
  }

  /** It is used only while something is said on it. */
  stayOpen(connection: { touch(): void }): void {
    this.#connection = connection
  }

  /** Bytes of the request. @throws body_too_large */
  sent(bytes: number): void {
    if (this.#over) return
    this.#silent?.add(this)
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
    this.#silent?.add(this)
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
    this.#silent?.delete(this)
    this.#long?.delete(this)
    this.#unwatched.delete(this)
    this.#client?.removeEventListener('abort', this.#onLeave)
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
