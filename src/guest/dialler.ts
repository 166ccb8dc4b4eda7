import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import { readError } from './codec.ts'
import { errnoName } from './errno.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { Requests } from './requests.ts'

/** The dialler gives a connection up after about 31 s, and a mailbox that stays full after 20 s. */
const dialTimeoutMs = 60_000

export interface DialTarget {
  /** The keeper's, from the dialler's directory on. */
  mailbox: string
  /** As the keeper calls it. */
  connection: number
  /** A numeric address; with port 0 the path of a unix socket. */
  address: string
  port: number
  preamble?: Uint8Array | undefined
}

/** The channel to the process that makes connections in the host's network. */
export class DiallerChannel {
  readonly #requests: Requests
  #nextId = 1

  constructor(options: { socketPath: string; log: Logger; onLost: () => void }) {
    this.#requests = new Requests({
      path: options.socketPath,
      role: 'dialler',
      log: options.log,
      timeoutMs: dialTimeoutMs,
      onEvent: () => false,
      onLost: options.onLost,
    })
  }

  open(): Promise<void> {
    return this.#requests.open()
  }

  /**
   * Resolves when the connected socket is in the mailbox, with null, or with the name of the errno that stood in the way.
   * @throws unavailable when there is no dialler any more
   */
  async dial(target: DialTarget): Promise<string | null> {
    const id = this.#nextId
    this.#nextId = (id % 0xffff_fff0) + 1
    const frame = new FrameWriter(FrameType.dial, id, 128)
      .u32(target.connection)
      .u16(target.port)
      .str(target.mailbox)
      .str(target.address)
    if (target.preamble) frame.raw(target.preamble)
    const answer = await this.#requests.request(id, frame.finish(), FrameType.ok)
    return answer.type === FrameType.error ? errnoName(readError(answer.payload).errno) : null
  }

  close(): void {
    this.#requests.close(new PlatformError('unavailable', 'The dialler was let go of'))
  }
}
