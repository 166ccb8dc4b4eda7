import { BrokenConnection, Call, type OutgoingRequest } from './call.ts'
import { Connection, type ServerAddress } from './connection.ts'

/** Connections without a user, kept for the next one. */
const idlePerServerMax = 128
const idleMax = 1024
const idleMsMax = 60_000
const sweepEveryMs = 15_000

export interface SendOptions {
  /** Not by a kept connection that was quiet for so long. */
  quietMsMax?: number
  /** By a connection of its own. */
  fresh?: boolean
  /** By one that nothing else is sent by, before or after. */
  once?: boolean
}

/**
 * Requests of HTTP/1 to servers on this host, over connections that are kept, on the event loop of whoever asks: neither what
 * leaves nor what comes waits for a turn of another thread. The servers may be anybody's: what they answer is read strictly
 * and within bounds.
 */
export class Connections {
  readonly #idle = new Map<string, Connection[]>()
  #idleCount = 0
  #sweep: Timer | null = null

  /** Begins a request. Whether it went well is told by what it returns. */
  send(server: ServerAddress, request: OutgoingRequest, options: SendOptions = {}): Call {
    const key = server.unix ?? server.origin
    const call = new Call(request)
    const kept = options.fresh || options.once ? null : this.#take(key, options.quietMsMax)
    if (kept !== null) call.goBy(kept)
    else void this.#dial(key, server, call, options.once ?? false)
    return call
  }

  async #dial(key: string, server: ServerAddress, call: Call, once: boolean): Promise<void> {
    try {
      const connection = await Connection.open(
        server,
        (idle) => (once ? idle.close() : this.#keep(key, idle)),
        (gone) => this.#forget(key, gone),
        server.tlsName === undefined ? undefined : call.whileDialled(),
      )
      call.goBy(connection)
    } catch (cause) {
      call.abort(new BrokenConnection('no connection could be made', { cause }))
    }
  }

  /** The one that was used last: so the others may go. */
  #take(key: string, quietMsMax = Number.POSITIVE_INFINITY): Connection | null {
    const kept = this.#idle.get(key)
    const last = kept?.at(-1)
    if (kept === undefined || last === undefined || performance.now() - last.idleSince >= quietMsMax)
      return null
    kept.pop()
    this.#idleCount--
    return last
  }

  #keep(key: string, connection: Connection): void {
    const kept = this.#idle.get(key)
    if (this.#idleCount >= idleMax || (kept?.length ?? 0) >= idlePerServerMax) {
      connection.close()
      return
    }
    connection.idleSince = performance.now()
    this.#idleCount++
    if (kept === undefined) this.#idle.set(key, [connection])
    else kept.push(connection)
    this.#sweep ??= setInterval(() => this.#closeIdle(), sweepEveryMs).unref()
  }

  #forget(key: string, connection: Connection): void {
    const kept = this.#idle.get(key)
    const at = kept?.indexOf(connection) ?? -1
    if (kept === undefined || at < 0) return
    kept.splice(at, 1)
    this.#idleCount--
    if (kept.length === 0) this.#idle.delete(key)
  }

  #closeIdle(): void {
    const before = performance.now() - idleMsMax
    for (const [key, kept] of this.#idle) {
      while (kept[0] !== undefined && kept[0].idleSince < before) {
        this.#idleCount--
        kept.shift()?.close()
      }
      if (kept.length === 0) this.#idle.delete(key)
    }
    if (this.#idleCount > 0 || this.#sweep === null) return
    clearInterval(this.#sweep)
    this.#sweep = null
  }
}
