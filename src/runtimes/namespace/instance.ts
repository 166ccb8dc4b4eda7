import { closeSync, constants, openSync, readSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import { GuestClient, type GuestState, KeeperChannel, type ProcessIdentity } from '../../guest/index.ts'
import { originOf } from '../../lib/addresses.ts'
import { BoundedMap } from '../../lib/bounded-map.ts'
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
import { treeStats } from '../process-tree.ts'
import type { InstanceCgroup } from './cgroups.ts'
import { allocatedBytes, DiskInUse } from './disk.ts'
import type { Leaving } from './leaving.ts'
import { reclaimMemory } from './reclaim.ts'
import { handleVersion, type InstanceState } from './record.ts'
import { InstanceStandby } from './standby.ts'

/** Programs get this long after SIGTERM. */
const stopGraceMs = 5_000
/** Beyond the grace, until the machine is ended from outside. */
const stopExtraMs = 3_000
/** From the end of process 1 to the keeper's. */
const keeperEndTimeoutMs = 5_000
const exitBytesMax = 64
const rememberedPortsMax = 256

export interface NamespaceInstanceOptions {
  id: string
  /** The instance's directory, for files. */
  dir: string
  /** A short path of the same directory, for unix sockets; valid in this process only. */
  socketDir: string
  state: InstanceState
  group: InstanceCgroup
  /** Memory of its group can be given back while it is frozen. */
  reclaims: boolean
  log: Logger
  clock: Clock
  /** Absent: nobody decides on what leaves, so nothing does. */
  leaving: Leaving | null
  /** Called when this object can no longer tell what happens to the machine: process 1 ended, or it was let go of. */
  onDetached: (instance: NamespaceInstance) => void
}

export class NamespaceInstance implements Instance {
  readonly id: string
  readonly handle: InstanceHandle
  readonly guest: GuestClient
  readonly exited: Promise<InstanceExit>
  /** Only where the host can. */
  readonly freeze: ((signal?: AbortSignal) => Promise<void>) | undefined
  readonly thaw: (() => Promise<void>) | undefined
  readonly reclaim: Instance['reclaim']
  memory: Instance['memory']
  readonly group: InstanceCgroup
  #keeper: KeeperChannel
  #options: NamespaceInstanceOptions
  #exit = Promise.withResolvers<InstanceExit>()
  #ended = false
  #ending: 'stopped' | 'killed' | null = null
  #stopping: Promise<void> | null = null
  readonly #standby: InstanceStandby
  readonly #disk: DiskInUse | null
  readonly #over = new AbortController()
  readonly #addresses = new BoundedMap<number, PortAddress>(rememberedPortsMax)

  constructor(options: NamespaceInstanceOptions) {
    this.#options = options
    this.id = options.id
    this.group = options.group
    this.handle = { driver: 'namespace', version: handleVersion, id: options.id, state: options.state }
    this.exited = this.#exit.promise
    this.#disk = options.state.disk === 'loop' ? new DiskInUse(`${options.dir}/disk.img`) : null
    const run = `${options.socketDir}/run`
    this.guest = new GuestClient({
      socketPath: `${run}/guest.sock`,
      logDir: `${options.dir}/log`,
      log: options.log,
    })
    const standby = new InstanceStandby(options.group, this.guest)
    this.#standby = standby
    if (options.group.freezes) {
      this.freeze = (signal) => standby.freeze(signal)
      this.thaw = () => standby.thaw()
      if (options.reclaims) this.reclaim = (signal) => reclaimMemory(options.group.parts, signal)
    }
    this.#keeper = new KeeperChannel({
      socketPath: `${run}/keeper.sock`,
      log: options.log,
      egress: options.leaving ?? undefined,
      onEnd: (state) => this.#onEnd(state),
    })
    options.leaving?.attach(this.#keeper)
  }

  /** Connects to both; when it rejects, the instance is let go of. */
  async open(): Promise<void> {
    try {
      const [state] = await Promise.all([this.#keeper.open(), this.guest.open()])
      if (state.state !== 'running')
        throw new PlatformError('unavailable', 'The sandbox ended while it started')
    } catch (error) {
      await this[Symbol.asyncDispose]()
      throw error
    }
  }

  /** As `open`, for one that is frozen: its guest is connected to once it is thawed and needed. */
  async openFrozen(): Promise<void> {
    this.#standby.adopt()
    try {
      const state = await this.#keeper.open()
      if (state.state !== 'running') throw new PlatformError('unavailable', 'The sandbox ended')
    } catch (error) {
      await this[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Aborted when this object can no longer tell what happens to the machine. */
  get over(): AbortSignal {
    return this.#over.signal
  }

  settleDisk(): Promise<void> {
    return this.#keeper.settleDisk()
  }

  get process1(): ProcessIdentity {
    return this.#options.state.guest
  }

  get frozen(): boolean {
    return this.#standby.frozen
  }

  address(port: number): PortAddress | Promise<PortAddress> {
    checkPort(port)
    const opening = this.#keeper.listen(port)
    const address = this.#addressOf(port)
    return opening === null ? address : opening.then(() => address)
  }

  #addressOf(port: number): PortAddress {
    let address = this.#addresses.get(port)
    if (address === undefined) {
      address = {
        origin: `http://127.0.0.1:${port}`,
        unix: `${this.#options.socketDir}/run/p${port}`,
        connect: () => this.#keeper.reach(port),
      }
      this.#addresses.set(port, address)
    }
    return address
  }

  async listening(port: number): Promise<boolean> {
    checkPort(port)
    return this.#keeper.probe(port)
  }

  wayOut(address: Uint8Array, port: number): PortAddress {
    checkPort(port)
    return { origin: originOf(address, port), connect: () => this.#keeper.depart(address, port) }
  }

  async stats(): Promise<InstanceStats> {
    const { state, dir } = this.#options
    const counted = this.group.stats()
    const tree = Object.values(counted).includes(null) ? treeStats(state.guest.pid) : null
    return {
      memoryBytes: counted.memoryBytes ?? tree?.memoryBytes ?? 0,
      cpuMs: counted.cpuMs ?? tree?.cpuMs ?? 0,
      processes: counted.processes ?? tree?.processes ?? 0,
      oomKills: this.group.oomKills(),
      diskBytes: state.disk === 'loop' ? allocatedBytes(`${dir}/disk.img`) : null,
      diskClosed: this.#disk?.closed ?? false,
    }
  }

  stop(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  /** Ends it at once. Resolves when process 1 is gone, and its groups are. */
  async kill(): Promise<void> {
    this.#ending ??= 'killed'
    // One way or the other, not both: a keeper that has ended would not read the request, and its farewell be lost.
    if (this.group.parts.length > 0) await this.group.kill()
    else if (!this.#ended) await this.#keeper.kill().catch((error) => this.#debug('no keeper', error))
    await this.#endedInTime(keeperEndTimeoutMs)
    if (!this.#ended) {
      const { keeper } = this.#options.state
      this.#options.log.warn('a keeper does not end by itself', { instance: this.id, pid: keeper.pid })
      if (isAlive(keeper)) process.kill(keeper.pid, 'SIGKILL')
      this.#onEnd(null)
    }
    await this.group.remove()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const error = new PlatformError('unavailable', 'The sandbox was let go of')
    this.guest.close(error)
    this.#keeper.close(error)
    this.#detached()
  }

  #detached() {
    this.#over.abort()
    this.#options.leaving?.ended()
    this.#options.onDetached(this)
  }

  async #stop(): Promise<void> {
    if (!this.#ended) {
      this.#ending ??= 'stopped'
      if (this.#standby.frozen) await this.#standby.thaw()
      try {
        await this.guest.processes.shutdown(stopGraceMs)
        await this.#endedInTime(stopGraceMs + stopExtraMs)
      } catch (error) {
        this.#debug('guest cannot be asked to stop', error)
      }
    }
    await this.kill()
  }

  async #endedInTime(timeoutMs: number): Promise<void> {
    const late = new AbortController()
    await Promise.race([this.exited, this.#options.clock.sleep(timeoutMs, late.signal).catch(() => {})])
    late.abort()
  }

  #debug(message: string, error: unknown) {
    this.#options.log.debug(message, { instance: this.id, error: String(error) })
  }

  #onEnd(told: GuestState | null) {
    if (this.#ended) return
    // The keeper's word may get lost with its connection; it leaves it in writing as well.
    const state = told ?? readExit(`${this.#options.dir}/run/exit`)
    this.#ended = true
    this.#exit.resolve(this.#reason(state))
    const error = new PlatformError('unavailable', 'The sandbox ended')
    this.guest.close(error)
    this.#keeper.close(error)
    this.#detached()
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

/** What a keeper wrote down last; null when it did not get to that. */
function readExit(path: string): GuestState | null {
  let file = -1
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const bytes = Buffer.alloc(exitBytesMax)
    const text = bytes.toString('utf8', 0, readSync(file, bytes, 0, bytes.length, 0))
    const found = /^(exited|signaled) (\d{1,3})\n$/.exec(text)
    return found ? { state: found[1] as 'exited' | 'signaled', code: Number(found[2]) } : null
  } catch {
    return null
  } finally {
    if (file >= 0) closeSync(file)
  }
}

function checkPort(port: number) {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new PlatformError('bad_request', `port ${port} is not between 1 and 65535`)
  }
}
