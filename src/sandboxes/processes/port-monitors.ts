import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import { Semaphore } from '../../lib/semaphore.ts'
import type { ProcessSocket } from '../../spec/guest.ts'
import type { SandboxProcess } from './process.ts'

const portMonitorsMax = 100
const pollMs = 500
/** Of all monitors of a sandbox. */
const noticesAtOnceMax = 16
const noticesWaitingMax = 1000

/** Tells somebody of a port that a process opened. */
export type PortNotice = (port: number, signal: AbortSignal) => Promise<void>

export interface PortMonitorsOptions {
  clock: Clock
  log: Logger
  frozen: () => boolean
}

/**
 * Watches processes, and all that they started, for ports that they open. A monitor ends with the last of what its
 * process started, when it is stopped, and with hutch: whoever asked for it has to ask again.
 */
export class PortMonitors {
  private readonly running = new Map<SandboxProcess, AbortController>()
  private readonly notices = new Semaphore({
    concurrencyMax: noticesAtOnceMax,
    waitingMax: noticesWaitingMax,
    what: 'new ports are to be told',
  })

  constructor(private readonly options: PortMonitorsOptions) {}

  /** Takes the place of an earlier one of the same process. @throws conflict when there are too many */
  start(process: SandboxProcess, notify: PortNotice): void {
    this.stop(process)
    if (this.running.size >= portMonitorsMax) {
      throw new PlatformError('conflict', `${portMonitorsMax} processes are monitored, the most allowed`)
    }
    const stop = new AbortController()
    this.running.set(process, stop)
    void this.watch(process, notify, stop.signal).finally(() => {
      if (this.running.get(process) === stop) this.running.delete(process)
    })
  }

  /** False when there was none. */
  stop(process: SandboxProcess): boolean {
    this.running.get(process)?.abort()
    return this.running.delete(process)
  }

  close(): void {
    for (const process of [...this.running.keys()]) this.stop(process)
  }

  private async watch(process: SandboxProcess, notify: PortNotice, signal: AbortSignal): Promise<void> {
    const { clock, log, frozen } = this.options
    let known = new Set<number>()
    while (!signal.aborted) {
      try {
        if (!frozen()) {
          const { living, sockets } = await process.descent()
          const open = new Set(sockets.filter(isListener).map(({ localPort }) => localPort))
          // One that was closed and is opened again is told again.
          const fresh = [...open].filter((port) => !known.has(port))
          known = open
          for (const port of fresh) {
            const told = this.notices.run(() => notify(port, signal), signal)
            told.catch((error) => {
              log.debug('a new port could not be told', { port, error })
            })
          }
          if (living === 0 && !process.running) return
        }
      } catch (error) {
        log.debug('ports of a process cannot be seen', { process: process.name, error: String(error) })
      }
      await clock.sleep(pollMs, signal).catch(() => {})
    }
  }
}

export function isListener({ protocol, state }: ProcessSocket): boolean {
  return protocol === 'tcp' && state === 'LISTEN'
}
