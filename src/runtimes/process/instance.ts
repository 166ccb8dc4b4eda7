import { connect } from 'node:net'
import { PlatformError } from '../../errors.ts'
import { GuestClient, type ProcessIdentity } from '../../guest/index.ts'
import { originOf } from '../../lib/addresses.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type {
  Instance,
  InstanceExit,
  InstanceHandle,
  InstanceStats,
  PortAddress,
} from '../../spec/runtime.ts'
import { isAlive } from '../helper-process.ts'
import { descendants, treeStats } from '../process-tree.ts'
import { handleVersion, type ProcessRecord } from './record.ts'

const stopGraceMs = 5_000
const stopExtraMs = 3_000
const endTimeoutMs = 10_000
const endStepMs = 5
const probeTimeoutMs = 2_000

export interface ProcessInstanceOptions {
  id: string
  dir: string
  socketDir: string
  state: ProcessRecord
  log: Logger
  clock: Clock
  onExit: () => void
}

export class ProcessInstance implements Instance {
  readonly id: string
  readonly handle: InstanceHandle
  readonly guest: GuestClient
  readonly exited: Promise<InstanceExit>
  #options: ProcessInstanceOptions
  #exit = Promise.withResolvers<InstanceExit>()
  #ended = false
  #disposed = false
  #ending: 'stopped' | 'killed' | null = null
  #stopping: Promise<void> | null = null

  constructor(options: ProcessInstanceOptions) {
    this.#options = options
    this.id = options.id
    this.handle = { driver: 'process', version: handleVersion, id: options.id, state: options.state }
    this.exited = this.#exit.promise
    this.guest = new GuestClient({
      socketPath: `${options.socketDir}/run/guest.sock`,
      logDir: `${options.dir}/log`,
      log: options.log,
      workingDir: options.state.workingDir,
      onLost: () => void this.#onLost(),
    })
  }

  async open(): Promise<void> {
    await this.guest.open()
  }

  async address(port: number): Promise<PortAddress> {
    return { origin: `http://127.0.0.1:${port}` }
  }

  async listening(port: number): Promise<boolean> {
    return (await accepts('127.0.0.1', port)) || (await accepts('::1', port))
  }

  wayOut(address: Uint8Array, port: number): PortAddress {
    return { origin: originOf(address, port) }
  }

  async stats(): Promise<InstanceStats> {
    return { ...treeStats(this.#options.state.guest.pid), diskBytes: null }
  }

  stop(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  async kill(): Promise<void> {
    this.#ending ??= 'killed'
    await endTree(this.#options.state.guest, this.#options.clock)
    this.#onEnd()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true
    this.guest.close(new PlatformError('unavailable', 'The sandbox was let go of'))
  }

  async #stop(): Promise<void> {
    if (this.#ended) return
    this.#ending ??= 'stopped'
    const late = new AbortController()
    try {
      await this.guest.processes.shutdown(stopGraceMs)
      const timeout = this.#options.clock.sleep(stopGraceMs + stopExtraMs, late.signal).catch(() => {})
      await Promise.race([this.exited, timeout])
    } catch (error) {
      this.#options.log.debug('guest cannot be asked to stop', { instance: this.id, error: String(error) })
    } finally {
      late.abort()
    }
    await this.kill()
  }

  /** The guest's end closes its connections a moment before it is gone. */
  async #onLost(): Promise<void> {
    const deadline = this.#options.clock.monotonic() + endTimeoutMs
    while (isAlive(this.#options.state.guest)) {
      if (this.#disposed || this.#options.clock.monotonic() > deadline) return
      await this.#options.clock.sleep(endStepMs)
    }
    this.#onEnd()
  }

  #onEnd() {
    if (this.#ended || this.#disposed) return
    this.#ended = true
    this.#exit.resolve({ reason: this.#ending ?? 'lost', exitCode: null, signal: null })
    this.guest.close(new PlatformError('unavailable', 'The sandbox ended'))
    this.#options.onExit()
  }
}

/** Ends a guest and everything below it. While it lives, all that its programs start stays below it. */
export async function endTree(guest: ProcessIdentity, clock: Clock): Promise<void> {
  const deadline = clock.monotonic() + endTimeoutMs
  while (isAlive(guest)) {
    const below = descendants(guest.pid).filter((pid) => pid !== guest.pid)
    // The guest last: it adopts what is left behind.
    for (const pid of below.length > 0 ? below : [guest.pid]) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {}
    }
    if (clock.monotonic() > deadline) {
      throw new PlatformError('unavailable', 'Processes of the instance do not end')
    }
    await clock.sleep(endStepMs)
  }
}

function accepts(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port })
    const done = (answer: boolean) => {
      clearTimeout(timer)
      socket.destroy()
      resolve(answer)
    }
    const timer = setTimeout(() => done(false), probeTimeoutMs)
    socket.once('connect', () => done(true))
    socket.once('error', () => done(false))
  })
}
