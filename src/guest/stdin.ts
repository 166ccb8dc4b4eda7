import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import { readError, stdinBytesMax } from './codec.ts'
import { errnoName } from './errno.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { Requests } from './requests.ts'

/** What programs are given to read, on a connection of its own: an answer may take as long as the program likes. */
export class GuestStdin {
  readonly #requests: Requests
  readonly #turns = new Map<number, Promise<void>>()

  constructor(options: { path: string; log: Logger; timeoutMs: number | undefined }) {
    this.#requests = new Requests({
      ...options,
      role: 'control',
      // Exits are told on every connection; who watches them has its own.
      onEvent: (frame) => frame.type === FrameType.exit,
    })
  }

  /** One turn after the other: bytes of two writers never mix, and answers cannot be confused. */
  async write(id: number, data: Uint8Array): Promise<void> {
    await this.#inTurn(id, async () => {
      for (let at = 0; at < data.length; at += stdinBytesMax) {
        const part = data.subarray(at, at + stdinBytesMax)
        const frame = new FrameWriter(FrameType.stdin, id, part.length).raw(part).finish()
        await this.#request(id, frame)
      }
    })
  }

  async end(id: number): Promise<void> {
    await this.#inTurn(id, () => this.#request(id, new FrameWriter(FrameType.closeStdin, id).finish()))
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

  async #inTurn(id: number, work: () => Promise<void>): Promise<void> {
    const before = this.#turns.get(id) ?? Promise.resolve()
    const turn = before.then(work, work)
    this.#turns.set(id, turn)
    try {
      await turn
    } finally {
      if (this.#turns.get(id) === turn) this.#turns.delete(id)
    }
  }
}
