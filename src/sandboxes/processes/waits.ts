import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { isListener } from './port-monitors.ts'
import { type SandboxProcess, timerMsMax } from './process.ts'

const portPollMsFirst = 5
const portPollMsMax = 100

/** Waiting for what becomes of a process, for as long as it may take and somebody wants to know. */
export class ProcessWaits {
  constructor(
    private readonly options: {
      clock: Clock
      closing: AbortSignal
      /** Whether anybody listens: cheaper to know than who does. */
      listening?: ((port: number) => Promise<boolean>) | undefined
    },
  ) {}

  /**
   * Resolves when the process, or what it started, listens on all of these ports; also when none of them is left who
   * could. @throws unprocessable when the time is over, the signal's reason when it is aborted
   */
  async forPorts(
    process: SandboxProcess,
    ports: readonly number[],
    seconds: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const { clock, closing } = this.options
    const deadline = clock.monotonic() + seconds * 1000
    const wanted = [...new Set(ports)]
    for (let pollMs = portPollMsFirst; ; pollMs = Math.min(pollMs * 2, portPollMsMax)) {
      if (process.failed) return
      // It may have ended well and left servers behind, in the background.
      const ended = !process.running
      if (ended || (await this.allListen(wanted))) {
        const { living, sockets } = await process.descent()
        const own = new Set(sockets.filter(isListener).map(({ localPort }) => localPort))
        // Nobody is left who could open them.
        if (wanted.every((port) => own.has(port)) || (ended && living === 0)) return
      }
      if (clock.monotonic() >= deadline) {
        throw new PlatformError(
          'unprocessable',
          `process timed out waiting for ports after ${seconds} seconds`,
        )
      }
      signal?.throwIfAborted()
      await clock.sleep(pollMs, closing)
    }
  }

  /**
   * What `work` comes to; null when that takes longer, and then it goes on unseen: a start where no memory is left waits
   * for the kernel to make room, and whoever gave a time is answered by then.
   */
  async inTime<Value>(work: Promise<Value>, waitMs: number | null): Promise<Value | null> {
    if (waitMs === null) return await work
    const stop = new AbortController()
    const late = this.options.clock.sleep(Math.min(waitMs, timerMsMax), stop.signal).then(
      () => null,
      () => null,
    )
    try {
      return await Promise.race([work, late])
    } finally {
      stop.abort()
      work.catch(() => {})
    }
  }

  /** True when the process ended in time; null: it has all of it. @throws when the client left or hutch closes */
  async forEnd(process: SandboxProcess, waitMs: number | null, signal?: AbortSignal): Promise<boolean> {
    const { clock, closing } = this.options
    const stop = new AbortController()
    const aborted = new Promise<never>((_, reject) => {
      for (const source of [signal, closing]) {
        if (source?.aborted) return reject(source.reason)
        source?.addEventListener('abort', () => reject(source.reason), { once: true, signal: stop.signal })
      }
    })
    const contenders = [process.done.then(() => true), aborted]
    if (waitMs !== null) {
      contenders.push(
        clock.sleep(Math.min(waitMs, timerMsMax), stop.signal).then(
          () => false,
          () => false,
        ),
      )
    }
    try {
      return await Promise.race(contenders)
    } finally {
      aborted.catch(() => {})
      stop.abort()
    }
  }

  private async allListen(ports: number[]): Promise<boolean> {
    const { listening } = this.options
    if (!listening) return true
    return (await Promise.all(ports.map((port) => listening(port)))).every((open) => open)
  }
}
