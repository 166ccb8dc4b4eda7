import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import { readError, stdinBytesMax } from './codec.ts'
import { errnoName } from './errno.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { Requests } from './requests.ts'

/** Writes to one program that wait for those before them. */
const waitingMax = 256
const waitingWhat = 'writes wait for a process to read its stdin'

/** What programs are given to read, on a connection of its own: an answer may take as long as the program likes. */
export class GuestStdin {
  readonly #requests: Requests
  readonly #turns = new Map<number, Semaphore>()

  constructor(options: { path: string; log: Logger; timeoutMs: number | undefined }) {
    this.#requests = new Requests({
      ...options,
      role: 'control',
      // Exits are told on every connection; who watches them has its own.
      onEvent: (frame) => frame.type === FrameType.exit,
    })
  }

  /**
   * One turn after the other: bytes of two writers never mix, and answers cannot be confused. An aborted signal takes back
   * what was not sent yet; what was sent stays there to be read, and others wait for that.
   * @throws the signal's reason
   */
  async write(id: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    await this.#inTurn(id, signal, async () => {
      for (let at = 0; at < data.length; at += stdinBytesMax) {
        signal?.throwIfAborted()
        const part = data.subarray(at, at + stdinBytesMax)
        await this.#request(id, new FrameWriter(FrameType.stdin, id, part.length).raw(part).finish())
      }
    })
  }

  /** As `write`. */
  async end(id: number, signal?: AbortSignal): Promise<void> {
    const frame = new FrameWriter(FrameType.closeStdin, id).finish()
    await this.#inTurn(id, signal, () => this.#request(id, frame))
  }

  /** The process ended, so that nobody reads: answers that wait for that are due. */
  ended(id: number): void {
    this.#requests.expect(id)
  }

  suspend(): void {
    this.#requests.suspend()
  }

  resume(): void {
    this.#requests.resume()
  }

  close(error: PlatformError): void {
    this.#requests.close(error)
  }

  async #request(id: number, frame: Uint8Array): Promise<void> {
    const answer = await this.#requests.request(id, frame, FrameType.ok, { timeout: false })
    if (answer.type !== FrameType.error) return
    const name = errnoName(readError(answer.payload).errno)
    if (name === 'ESRCH') throw new PlatformError('not_found', `process ${id} does not run`)
    const why = name === 'EPIPE' ? 'is closed' : 'was not opened'
    throw new PlatformError('conflict', `stdin of process ${id} ${why}`, { details: { errno: name } })
  }

  async #inTurn(id: number, signal: AbortSignal | undefined, work: () => Promise<void>): Promise<void> {
    const turns = this.#turns.get(id) ?? new Semaphore({ concurrencyMax: 1, waitingMax, what: waitingWhat })
    this.#turns.set(id, turns)
    const place = await turns.acquire(signal)
    // The turn lasts until it is answered, also where nobody waits for that any more.
    const worked = work().finally(() => {
      place[Symbol.dispose]()
      if (turns.held === 0) this.#turns.delete(id)
    })
    const aborted = Promise.withResolvers<never>()
    const onAbort = () => aborted.reject(signal?.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      await Promise.race([worked, aborted.promise])
    } finally {
      signal?.removeEventListener('abort', onAbort)
    }
  }
}
