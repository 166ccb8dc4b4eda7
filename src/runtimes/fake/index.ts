import { PlatformError } from '../../errors.ts'
import { formatAddress, originOf } from '../../lib/addresses.ts'
import { type Clock, systemClock } from '../../lib/clock.ts'
import { isLoopbackAddress } from '../../lib/loopback.ts'
import type { Guest } from '../../spec/guest.ts'
import type {
  Instance,
  InstanceExit,
  InstanceHandle,
  InstanceSpec,
  InstanceStats,
  PortAddress,
  Runtime,
  RuntimeCapabilities,
  RuntimeSnapshots,
} from '../../spec/runtime.ts'
import { FakeFiles } from './files.ts'
import { FakeProcesses } from './processes.ts'
import { builtInPrograms, type FakeProgram } from './programs.ts'

export type { FakeProgram, FakeProgramContext } from './programs.ts'

export interface FakeRuntimeOptions {
  clock?: Clock
  /** `create` and `restart` reject with this, as long as it answers something. */
  failCreate?: (spec: InstanceSpec) => Error | null
  /** Programs by name that end at once with this code. */
  exitCodes?: Record<string, number>
  /** More programs, or other ones, by name. */
  programs?: Record<string, FakeProgram>
}

/** A runtime in memory, for tests: its instances have files and programs that are functions. */
export interface FakeRuntime extends Runtime {
  /** Makes process 1 of an instance end, as if by itself. */
  end(instanceId: string, exit: InstanceExit): Promise<void>
}

export function fakeRuntime(options: FakeRuntimeOptions = {}): FakeRuntime {
  return new MemoryRuntime(options)
}

const handleVersion = 1

interface Machine {
  spec: InstanceSpec
  files: FakeFiles
  instance: FakeInstance | null
  packed: boolean
}

class MemoryRuntime implements FakeRuntime {
  readonly name = 'fake'
  readonly capabilities: RuntimeCapabilities = {
    isolation: 'none',
    limits: { memory: 'none', cpu: 'none', pids: 'none', disk: 'counted' },
    standby: 'freeze',
    reclaim: false,
    archive: true,
    snapshots: true,
    memory: false,
    ownMounts: false,
    network: 'none',
    survivesRestart: false,
    notes: [],
  }
  readonly snapshots: RuntimeSnapshots
  #machines = new Map<string, Machine>()
  readonly #snapshots = new Map<string, { files: FakeFiles; complete: boolean }>()
  #options: FakeRuntimeOptions
  #clock: Clock

  constructor(options: FakeRuntimeOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.snapshots = {
      capture: async (instanceId, snapshotId, signal) => {
        const machine = this.#machines.get(instanceId)
        if (!machine) throw new PlatformError('not_found', `instance ${instanceId} has left no files`)
        if (machine.instance !== null && !machine.instance.frozen)
          throw new PlatformError('conflict', `instance ${instanceId} is not frozen`)
        signal?.throwIfAborted()
        this.#snapshots.set(snapshotId, { files: machine.files.duplicate(), complete: false })
        return { kept: false, reason: 'this host keeps no memory' }
      },
      complete: async (snapshotId) => {
        const snapshot = this.#snapshots.get(snapshotId)
        if (!snapshot) throw new PlatformError('not_found', `there is no snapshot ${snapshotId}`)
        snapshot.complete = true
        return snapshot.files.usedBytes()
      },
      remove: async (snapshotId) => void this.#snapshots.delete(snapshotId),
      list: async () => [...this.#snapshots.keys()],
    }
  }

  async create(spec: InstanceSpec): Promise<Instance> {
    if (!/^[a-z0-9]{12,40}$/.test(spec.id)) {
      throw new PlatformError('bad_request', `id "${spec.id}" is not 12 to 40 characters of a-z and 0-9`)
    }
    await this.#admit(spec)
    if (this.#machines.has(spec.id))
      throw new PlatformError('already_exists', `instance ${spec.id} exists already`)
    const files = this.#filesOf(spec)
    for (const path of ['/tmp', '/root', spec.workingDir]) await files.makeDirectory(path, { parents: true })
    const machine: Machine = { spec, files, instance: null, packed: false }
    this.#machines.set(spec.id, machine)
    return this.#start(machine)
  }

  async restart(spec: InstanceSpec): Promise<Instance> {
    const machine = this.#machines.get(spec.id)
    if (!machine || machine.packed)
      throw new PlatformError('not_found', `instance ${spec.id} has left no files`)
    await this.#admit(spec)
    await machine.instance?.end({ reason: 'killed', exitCode: null, signal: 9 })
    return this.#start(machine)
  }

  async recover(handle: InstanceHandle): Promise<Instance | null> {
    if (handle.driver !== this.name) return null
    return this.#machines.get(handle.id)?.instance ?? null
  }

  async destroy(instanceId: string): Promise<void> {
    const machine = this.#machines.get(instanceId)
    this.#machines.delete(instanceId)
    await machine?.instance?.end({ reason: 'killed', exitCode: null, signal: 9 })
  }

  async pack(instanceId: string, signal?: AbortSignal): Promise<number> {
    const machine = this.#machines.get(instanceId)
    if (!machine) throw new PlatformError('not_found', `instance ${instanceId} has left no files`)
    await machine.instance?.end({ reason: 'killed', exitCode: null, signal: 9 })
    signal?.throwIfAborted()
    machine.packed = true
    return machine.files.usedBytes()
  }

  async unpack(instanceId: string, signal?: AbortSignal): Promise<void> {
    const machine = this.#machines.get(instanceId)
    if (!machine) throw new PlatformError('not_found', `instance ${instanceId} has left no files`)
    signal?.throwIfAborted()
    machine.packed = false
  }

  async list(): Promise<string[]> {
    return [...this.#machines.keys()]
  }

  async end(instanceId: string, exit: InstanceExit): Promise<void> {
    await this.#machines.get(instanceId)?.instance?.end(exit)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const id of [...this.#machines.keys()]) await this.destroy(id)
  }

  #filesOf({ snapshotId, storageMb }: InstanceSpec): FakeFiles {
    if (snapshotId === undefined) return new FakeFiles(() => this.#clock.now(), storageMb * 1024 * 1024)
    const snapshot = this.#snapshots.get(snapshotId)
    if (!snapshot?.complete) throw new PlatformError('not_found', `there is no snapshot ${snapshotId}`)
    return snapshot.files.duplicate()
  }

  #start(machine: Machine): FakeInstance {
    const { spec } = machine
    const exits = Object.entries(this.#options.exitCodes ?? {}).map(
      ([name, code]) => [name, () => code] as const,
    )
    const processes = new FakeProcesses({
      programs: { ...builtInPrograms, ...Object.fromEntries(exits), ...this.#options.programs },
      files: machine.files,
      clock: this.#clock,
    })
    const instance = new FakeInstance(spec.id, processes, machine.files, () => {
      if (machine.instance === instance) machine.instance = null
    })
    machine.instance = instance
    return instance
  }

  async #admit(spec: InstanceSpec): Promise<void> {
    spec.signal?.throwIfAborted()
    const failure = this.#options.failCreate?.(spec)
    if (failure) throw failure
  }
}

class FakeInstance implements Instance {
  readonly handle: InstanceHandle
  readonly guest: Guest
  readonly exited: Promise<InstanceExit>
  #exit = Promise.withResolvers<InstanceExit>()
  #ended = false

  constructor(
    readonly id: string,
    private readonly processes: FakeProcesses,
    private readonly files: FakeFiles,
    private readonly onEnd: () => void,
  ) {
    this.handle = { driver: 'fake', version: handleVersion, id, state: {} }
    this.guest = { processes, files }
    this.exited = this.#exit.promise
  }

  async address(port: number): Promise<PortAddress> {
    return { origin: `http://127.0.0.1:${this.processes.portOf(port) ?? port}` }
  }

  wayOut(address: Uint8Array, port: number): PortAddress {
    const inside = isLoopbackAddress(formatAddress(address)) ? this.processes.portOf(port) : null
    return { origin: originOf(address, inside ?? port) }
  }

  async listening(port: number): Promise<boolean> {
    return this.processes.portOf(port) !== null
  }

  async freeze(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    this.processes.freeze()
  }

  get frozen(): boolean {
    return this.processes.frozen
  }

  async thaw(): Promise<void> {
    this.processes.thaw()
  }

  async stats(): Promise<InstanceStats> {
    return { memoryBytes: 0, cpuMs: 0, processes: this.processes.running, diskBytes: this.files.usedBytes() }
  }

  async stop(): Promise<void> {
    await this.end({ reason: 'stopped', exitCode: 0, signal: null })
  }

  async end(exit: InstanceExit): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    await this.processes.endAll(new PlatformError('unavailable', 'The sandbox ended'))
    this.onEnd()
    this.#exit.resolve(exit)
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
