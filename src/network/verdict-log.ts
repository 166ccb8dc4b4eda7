import { formatAddress } from '../lib/addresses.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { EgressConnection } from '../spec/egress.ts'

const linesPerWindowMax = 20
const windowMs = 60_000
const instancesMax = 10_000

interface Window {
  since: number
  lines: number
  left: number
}

/** What became of outgoing connections, for the log: refusals as they happen, but not as many as a program can cause. */
export class VerdictLog {
  readonly #log: Logger
  readonly #clock: Clock
  readonly #windows = new BoundedMap<string, Window>(instancesMax)

  constructor(log: Logger, clock: Clock) {
    this.#log = log
    this.#clock = clock
  }

  allowed(connection: EgressConnection): void {
    this.#log.debug('an outgoing connection', fieldsOf(connection))
  }

  refused(connection: EgressConnection, reason: string): void {
    this.#bounded('an outgoing connection was refused', connection, { reason })
  }

  failed(connection: EgressConnection, errno: string): void {
    this.#bounded('an outgoing connection failed', connection, { errno })
  }

  forget(instanceId: string): void {
    this.#windows.delete(instanceId)
  }

  #bounded(message: string, connection: EgressConnection, more: Record<string, string>): void {
    const { instanceId } = connection
    const now = this.#clock.monotonic()
    let window = this.#windows.get(instanceId)
    if (window === undefined || now - window.since >= windowMs) {
      if (window && window.left > 0) {
        this.#log.info('further outgoing connections were refused or failed', {
          instance: instanceId,
          count: window.left,
        })
      }
      window = { since: now, lines: 0, left: 0 }
      this.#windows.set(instanceId, window)
    }
    if (window.lines >= linesPerWindowMax) {
      window.left++
      return
    }
    window.lines++
    this.#log.info(message, { ...fieldsOf(connection), ...more })
  }
}

function fieldsOf({ instanceId, kind, address, port }: EgressConnection) {
  return kind === 'api'
    ? { instance: instanceId, kind }
    : { instance: instanceId, address: formatAddress(address), port }
}
