import { PlatformError } from '../../errors.ts'
import { GuestClient, type GuestState, KeeperChannel } from '../../guest/index.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type {
  Instance,
  InstanceExit,
  InstanceHandle,
  InstanceStats,
  PortAddress,
} from '../../spec/runtime.ts'
import { treeStats } from '../process-tree.ts'
import type { InstanceCgroup } from './cgroups.ts'
import { allocatedBytes } from './disk.ts'
import { handleVersion, type InstanceState } from './record.ts'

/** Programs get this long after SIGTERM. */
const stopGraceMs = 5_000
/** Beyond the grace, until the machine is ended from outside. */
const stopExtraMs = 3_000

export interface NamespaceInstanceOptions {
  id: string
  /** The instance's directory, for files. */
  dir: string
  /** A short path of the same directory, for unix sockets; valid in this process only. */
  socketDir: string
  state: InstanceState
  group: InstanceCgroup
  log: Logger
  clock: Clock
  /** Called once, when process 1 ended. */
  onExit: (instance: NamespaceInstance) => void
}

export class NamespaceInstance implements Instance {
  readonly id: string
  readonly handle: InstanceHandle
  readonly guest: GuestClient
  readonly exited: Promise<InstanceExit>
  /** Only where the host can. */
  readonly freeze: (() => Promise<void>) | undefined
  readonly thaw: (() => Promise<void>) | undefined
  readonly group: InstanceCgroup
  #keeper: KeeperChannel
  #options: NamespaceInstanceOptions
  #exit = Promise.withResolvers<InstanceExit>()
  #ended = false
  #ending: 'stopped' | 'killed' | null = null
  #stopping: Promise<void> | null = null
  #frozen = false

  constructor(options: NamespaceInstanceOptions) {
    this.#options = options
    this.id = options.id
    this.group = options.group
    this.handle = { driver: 'namespace', version: handleVersion, id: options.id, state: options.state }
    this.exited = this.#exit.promise
    if (options.group.freezes) {
      this.freeze = () => this.#freeze()
      this.thaw = () => this.#thaw()
    }
    const run = `${options.socketDir}/run`
    this.guest = new GuestClient({
      socketPath: `${run}/guest.sock`,
      logDir: `${options.dir}/log`,
      log: options.log,
    })
    this.#keeper = new KeeperChannel({
      socketPath: `${run}/keeper.sock`,
      log: options.log,
      onEnd: (state) => this.#onEnd(state),
    })
  }

  /** Connects to both; when it rejects, the instance is let go of. */
  async open(): Promise<void> {
    try {
      const [state] = await Promise.all([this.#keeper.status(), this.guest.open()])
      if (state.state !== 'running')
        throw new PlatformError('unavailable', 'The sandbox ended while it started')
    } catch (error) {
      await this[Symbol.asyncDispose]()
      throw error
    }
  }

  async address(port: number): Promise<PortAddress> {
    checkPort(port)
    await this.#keeper.listen(port)
    return { origin: `http://127.0.0.1:${port}`, unix: `${this.#options.socketDir}/run/p${port}` }
  }

  async listening(port: number): Promise<boolean> {
    checkPort(port)
    return this.#keeper.probe(port)
  }

  async stats(): Promise<InstanceStats> {
    const { state, dir } = this.#options
    const counted = this.group.stats()
    const tree = Object.values(counted).includes(null) ? treeStats(state.guest.pid) : null
    return {
      memoryBytes: counted.memoryBytes ?? tree?.memoryBytes ?? 0,
      cpuMs: counted.cpuMs ?? tree?.cpuMs ?? 0,
      processes: counted.processes ?? tree?.processes ?? 0,
      diskBytes: state.disk === 'loop' ? allocatedBytes(`${dir}/disk.img`) : null,
    }
  }

  stop(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  /** Ends it at once. Resolves when process 1 is gone, and its groups are. */
  async kill(): Promise<void> {
    this.#ending ??= 'killed'
    if (this.group.parts.length > 0) await this.group.kill()
    if (!this.#ended) {
      await this.#keeper.kill().catch((error) => {
        this.#options.log.debug('keeper cannot be reached', { instance: this.id, error: String(error) })
        this.#onEnd(null)
      })
    }
    await this.exited
    await this.group.remove()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const error = new PlatformError('unavailable', 'The sandbox was let go of')
    this.guest.close(error)
    this.#keeper.close(error)
  }

  async #freeze(): Promise<void> {
    if (this.#frozen) return
    this.guest.suspend()
    try {
      await this.group.freeze()
      this.#frozen = true
    } catch (error) {
      this.guest.resume()
      throw error
    }
  }

  async #thaw(): Promise<void> {
    // Also when it was frozen by a process before us.
    await this.group.thaw()
    this.#frozen = false
    this.guest.resume()
  }

  async #stop(): Promise<void> {
    if (!this.#ended) {
      this.#ending ??= 'stopped'
      if (this.#frozen) await this.#thaw()
      try {
        await this.guest.processes.shutdown(stopGraceMs)
        const late = new AbortController()
        const timeout = this.#options.clock.sleep(stopGraceMs + stopExtraMs, late.signal).catch(() => {})
        await Promise.race([this.exited, timeout])
        late.abort()
      } catch (error) {
        this.#options.log.debug('guest cannot be asked to stop', { instance: this.id, error: String(error) })
      }
    }
    await this.kill()
  }

  #onEnd(state: GuestState | null) {
    if (this.#ended) return
    this.#ended = true
    this.#exit.resolve(this.#reason(state))
    const error = new PlatformError('unavailable', 'The sandbox ended')
    this.guest.close(error)
    this.#keeper.close(error)
    this.#options.onExit(this)
  }

  #reason(state: GuestState | null): InstanceExit {
    const exitCode = state?.state === 'exited' ? state.code : null
    const signal = state?.state === 'signaled' ? state.code : null
    if (this.#ending !== null) return { reason: this.#ending, exitCode, signal }
    if (state === null) return { reason: 'lost', exitCode, signal }
    if (signal === null) return { reason: 'exited', exitCode, signal }
    return { reason: this.group.oomKills() > 0 ? 'out_of_memory' : 'killed', exitCode, signal }
  }
}

function checkPort(port: number) {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new PlatformError('bad_request', `port ${port} is not between 1 and 65535`)
  }
}
