import { DiallerChannel, type DialTarget } from '../../guest/index.ts'
import type { Clock } from '../../lib/clock.ts'
import { FairPlaces } from '../../lib/fair-places.ts'
import { randomText } from '../../lib/ids.ts'
import type { Logger } from '../../lib/log.ts'
import { startDialler } from '../helper-process.ts'

/** Fewer than the dialler makes at once: what goes to sockets of this process is done at once, and never waits. */
const dialsMax = 3072
/** What a keeper has waiting, and how long it does. */
const waitingPerInstanceMax = 1024
const waitMsMax = 45_000

/** The one process that makes connections for all instances, started when the first is wanted, and again when it ended. */
export class Dialler {
  readonly #options: {
    helperPath: string
    instancesDir: string
    socketDir: string
    log: Logger
    clock: Clock
  }
  readonly #places: FairPlaces
  #channel: Promise<DiallerChannel> | null = null
  #closed = false

  constructor(options: {
    helperPath: string
    /** Where the dialler stands: mailboxes are named from there on. */
    instancesDir: string
    /** A short path of the same. */
    socketDir: string
    log: Logger
    clock: Clock
  }) {
    this.#options = options
    const { clock } = options
    this.#places = new FairPlaces({
      placesMax: dialsMax,
      waitingMax: waitingPerInstanceMax,
      waitMsMax,
      clock,
    })
  }

  /** Null when it worked, else what stood in the way. Never rejects. */
  async dial(instanceId: string, target: DialTarget): Promise<string | null> {
    if (target.port === 0) return await this.#dial(target)
    // Addresses where nobody answers take half a minute: none may use up the others' chances with them.
    using place = await this.#places.take(instanceId)
    return place === null ? 'EAGAIN' : await this.#dial(target)
  }

  async #dial(target: DialTarget): Promise<string | null> {
    if (this.#closed) return 'ECANCELED'
    try {
      this.#channel ??= this.#start()
      const channel = await this.#channel
      return await channel.dial(target)
    } catch (error) {
      this.#options.log.warn('the dialler cannot be reached', { error: String(error) })
      return 'EIO'
    }
  }

  /** The very promise that it made, by which its end is told from that of a later one. */
  #start(): Promise<DiallerChannel> {
    const { helperPath, instancesDir, socketDir, log } = this.#options
    const name = `.dialler-${randomText(12)}`
    const again = () => {
      if (this.#channel === starting) this.#channel = null
    }
    const start = async () => {
      await startDialler(helperPath, instancesDir, name)
      const channel = new DiallerChannel({ socketPath: `${socketDir}/${name}`, log, onLost: again })
      await channel.open()
      return channel
    }
    const starting = start()
    starting.catch(again)
    return starting
  }

  close(): void {
    this.#closed = true
    void this.#channel?.then((channel) => channel.close()).catch(() => {})
  }
}
