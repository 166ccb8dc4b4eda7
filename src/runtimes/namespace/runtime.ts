import { existsSync, rmSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { PlatformError } from '../../errors.ts'
import { Launcher } from '../../guest/index.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type { Egress } from '../../spec/egress.ts'
import type {
  Instance,
  InstanceHandle,
  InstanceSpec,
  MemoryKept,
  Runtime,
  RuntimeCapabilities,
} from '../../spec/runtime.ts'
import { bootId, isAlive } from '../helper-process.ts'
import { removeTree } from '../remove-tree.ts'
import type { Archives } from './archive.ts'
import { type Cgroups, InstanceCgroup } from './cgroups.ts'
import { Dialler } from './dialler.ts'
import { hostFreeMbMin, hostFreeMbMinToRestart, InstanceDirectories } from './directories.ts'
import { type DiskImages, hasErrors } from './disk.ts'
import { DiskSettling } from './disk-settling.ts'
import { hostError, noSnapshots } from './failures.ts'
import { NamespaceInstance } from './instance.ts'
import { endKeeper } from './keeper.ts'
import { checkSpec, launch } from './launch.ts'
import { Leaving } from './leaving.ts'
import {
  type MemoryInstance,
  type MemoryRecord,
  type ProgramMemory,
  releaseStopped,
} from './program-memory/index.ts'
import {
  handleVersion,
  type InstanceRecord,
  type InstanceState,
  instanceIdPattern,
  parseState,
  recordFile,
} from './record.ts'
import { type DiskSnapshots, notStill } from './snapshots.ts'
import type { UidRanges } from './uid-ranges.ts'

export interface NamespaceRuntimeOptions {
  instancesDir: string
  helperPath: string
  log: Logger
  clock: Clock
  cgroups: Cgroups
  /** Null: not root, every instance is mapped to the one user. */
  uidRanges: UidRanges | null
  /** Null: the disk limit cannot be enforced here. */
  diskImages: DiskImages | null
  /** Null: this host cannot pack the files of instances. */
  archives: Archives | null
  /** Null: this host cannot copy the files of instances. */
  snapshots: DiskSnapshots | null
  /** Null: they have files only. */
  memory: ProgramMemory | null
  capabilities: RuntimeCapabilities
  /** One instance is tried out, which ends with this process, however it ends. */
  transient?: boolean
  /** Instances end with this process, however it ends: nobody looks for them afterwards. */
  temporary?: boolean
  /** Null: nothing leaves an instance. */
  egress: Egress | null
  onDispose: () => void
}

export class NamespaceRuntime implements Runtime {
  readonly name = 'namespace'
  readonly capabilities: RuntimeCapabilities
  /** Only where the host can. */
  readonly pack: Runtime['pack']
  readonly unpack: Runtime['unpack']
  readonly snapshots: Runtime['snapshots']
  #options: NamespaceRuntimeOptions
  #instances = new Map<string, NamespaceInstance>()
  #recovering = new Map<string, Promise<NamespaceInstance | null>>()
  #destroying = new Map<string, Promise<void>>()
  #bootId = bootId()
  readonly #launcher: Launcher
  readonly #dirs: InstanceDirectories
  #dialler: Dialler
  readonly #settling: DiskSettling
  /** What leaves the instance that was started last arrives at its keeper. */
  relaysEgress = false
  #disposed = false

  constructor(options: NamespaceRuntimeOptions) {
    this.#options = options
    this.capabilities = options.capabilities
    this.#launcher = new Launcher(options.helperPath, { stays: options.temporary ?? false })
    this.#settling = new DiskSettling(options.clock)
    this.#dirs = new InstanceDirectories(options.instancesDir)
    const { archives, snapshots, clock, helperPath, instancesDir, log } = options
    if (snapshots !== null) {
      this.snapshots = {
        capture: (id, snapshotId, signal) => this.#capture(snapshots, id, snapshotId, signal),
        complete: (snapshotId, signal) => snapshots.complete(snapshotId, signal),
        remove: (snapshotId) => snapshots.remove(snapshotId),
        list: () => snapshots.list(),
      }
    }
    if (archives !== null) {
      this.pack = (id, signal) => this.#pack(id, archives, signal)
      this.unpack = (id, signal) => this.#unpack(id, archives, signal)
    }
    this.#dialler = new Dialler({
      helperPath,
      instancesDir,
      socketDir: this.#dirs.socketsOf('.'),
      log,
      clock,
    })
  }

  async create(spec: InstanceSpec): Promise<Instance> {
    checkSpec(spec)
    this.#checkOpen()
    spec.signal?.throwIfAborted()
    const dir = this.#dirs.of(spec.id)
    this.#checkFreeSpace()
    try {
      // Off the request loop, as all that waits for the host's file system.
      await mkdir(dir, { mode: 0o700 })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw hostError(error)
      throw new PlatformError('already_exists', `instance ${spec.id} exists already`)
    }
    try {
      const { diskImages, snapshots } = this.#options
      const { snapshotId } = spec
      if (snapshotId !== undefined && snapshots === null) throw noSnapshots()
      const placed = snapshotId === undefined ? null : await snapshots?.diskOf(snapshotId)
      const disk = placed ?? (diskImages === null ? 'dir' : 'loop')
      const uidBase = this.#options.uidRanges?.claim(dir) ?? null
      const record = this.#record(spec, uidBase, disk)
      const template = placed ? null : (diskImages?.template(spec.storageMb) ?? null)
      template?.catch(() => {})
      await recordFile.create(dir, record)
      if (snapshotId !== undefined) await snapshots?.place(snapshotId, dir, spec.signal)
      if (snapshotId === undefined || snapshots === null || !spec.withMemory)
        return await this.#start(spec, record, await template)
      return await this.#startWithMemory(spec, record, snapshots, snapshotId)
    } catch (error) {
      await this.destroy(spec.id).catch((failure) => {
        // What is left is found by `list`; the caller hears of what went wrong first.
        this.#options.log.error('an instance that could not be made left something', {
          instance: spec.id,
          error: failure,
        })
      })
      spec.signal?.throwIfAborted()
      throw hostError(error)
    }
  }

  async restart(spec: InstanceSpec): Promise<Instance> {
    checkSpec(spec)
    this.#checkOpen()
    const dir = this.#dirs.of(spec.id)
    const before = recordFile.read(dir)
    const kept = before && existsSync(before.disk === 'loop' ? `${dir}/disk.img` : `${dir}/disk`)
    if (!before || !kept) throw new PlatformError('not_found', `instance ${spec.id} has left no files`)
    this.#checkFreeSpace(hostFreeMbMinToRestart)
    await this.#end(spec.id)
    // Nobody inside lives that could put a link in the way. Output of the processes that were is kept.
    rmSync(`${dir}/run`, { recursive: true, force: true })
    const { uidRanges } = this.#options
    let uidBase: number | null = null
    if (uidRanges) {
      // Ids on the disk count from 0, so a range may change between two lives.
      const mine = before.uidBase !== null && uidRanges.keep(before.uidBase, dir)
      uidBase = mine ? before.uidBase : uidRanges.claim(dir)
    }
    const { diskImages, log } = this.#options
    const disk = `${dir}/disk.img`
    const doubtful = before.disk === 'loop' && (before.bootId !== this.#bootId || (await hasErrors(disk)))
    if (doubtful && diskImages !== null) {
      const sound = await diskImages.repair(disk)
      if (!sound) log.warn('a disk image could not be repaired', { instance: spec.id })
    }
    const record = this.#record(spec, uidBase, before.disk)
    recordFile.write(dir, record)
    try {
      return await this.#start(spec, record, null)
    } catch (error) {
      await this.#end(spec.id)
      throw hostError(error)
    }
  }

  async #pack(id: string, archives: Archives, signal?: AbortSignal): Promise<number> {
    const record = this.#recordOf(id)
    await this.#end(id)
    try {
      return await archives.pack(this.#dirs.of(id), record.disk, signal)
    } catch (error) {
      throw hostError(error)
    }
  }

  async #unpack(id: string, archives: Archives, signal?: AbortSignal): Promise<void> {
    const record = this.#recordOf(id)
    this.#checkFreeSpace()
    // Of an earlier try, which got further than it could tell.
    await this.#end(id)
    try {
      await archives.unpack(this.#dirs.of(id), record.disk, signal)
    } catch (error) {
      throw hostError(error)
    }
  }

  async #capture(
    snapshots: DiskSnapshots,
    id: string,
    snapshotId: string,
    signal?: AbortSignal,
  ): Promise<MemoryKept | null> {
    if (!instanceIdPattern.test(snapshotId)) {
      throw new PlatformError('bad_request', `the id of a snapshot is 12 to 40 characters of a-z and 0-9`)
    }
    const record = this.#recordOf(id)
    this.#checkFreeSpace()
    const instance = this.#instances.get(id)
    if (instance && !instance.frozen) throw notStill()
    try {
      const { memory } = this.#options
      const machine = instance && this.#memoryInstance(instance, record)
      const kept = await snapshots.capture(
        snapshotId,
        {
          dir: this.#dirs.of(id),
          disk: record.disk,
          guest: instance?.process1 ?? null,
          ...(memory && machine
            ? {
                memory: (dir: string, copy: () => Promise<void>) =>
                  memory.capture(machine, dir, copy, signal),
              }
            : {}),
        },
        signal,
      )
      if (instance && !instance.frozen) {
        await snapshots.remove(snapshotId)
        throw notStill()
      }
      return kept
    } catch (error) {
      throw hostError(error)
    }
  }

  recover(handle: InstanceHandle): Promise<Instance | null> {
    if (handle.driver !== this.name || handle.version !== handleVersion) return Promise.resolve(null)
    const known = this.#instances.get(handle.id)
    if (known) return Promise.resolve(known)
    const recovering = this.#recovering.get(handle.id) ?? this.#recover(handle)
    this.#recovering.set(handle.id, recovering)
    return recovering.finally(() => this.#recovering.delete(handle.id))
  }

  destroy(instanceId: string): Promise<void> {
    if (!instanceIdPattern.test(instanceId)) return Promise.resolve()
    const running = this.#destroying.get(instanceId)
    if (running) return running
    const destroying = this.#destroy(instanceId).finally(() => this.#destroying.delete(instanceId))
    this.#destroying.set(instanceId, destroying)
    return destroying
  }

  async list(): Promise<string[]> {
    const ids = new Set(this.#dirs.ids())
    for (const id of this.#options.cgroups.list()) if (instanceIdPattern.test(id)) ids.add(id)
    return [...ids]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return
    this.#disposed = true
    for (const instance of this.#instances.values()) await instance[Symbol.asyncDispose]()
    this.#instances.clear()
    this.#dialler.close()
    await this.#launcher[Symbol.asyncDispose]()
    this.#dirs.close()
    this.#options.onDispose()
  }

  /** `diskTemplate`: what the disk image is made from; null when there is one, or none is wanted. */
  async #start(
    spec: InstanceSpec,
    record: InstanceRecord,
    diskTemplate: string | null,
    memory: MemoryRecord | null = null,
  ): Promise<NamespaceInstance> {
    const { cgroups } = this.#options
    const group = cgroups.create(spec.id, spec)
    spec.signal?.throwIfAborted()
    const { guest, keeper, relaysEgress } = await launch(spec, {
      launcher: this.#launcher,
      dir: this.#dirs.of(spec.id),
      uidBase: record.uidBase,
      disk: record.disk,
      diskTemplate,
      group,
      transient: this.#options.transient || this.#options.temporary || false,
      lastPid: memory?.lastPid ?? null,
      pidsLimited: cgroups.limit('pids') !== 'none',
    })
    this.relaysEgress = relaysEgress
    spec.signal?.throwIfAborted()
    const instance = this.#instance(spec.id, { ...record, guest, keeper }, group)
    await instance.open()
    spec.signal?.throwIfAborted()
    return instance
  }

  /** Where its programs cannot go on, it begins without them. */
  async #startWithMemory(
    spec: InstanceSpec,
    record: InstanceRecord,
    snapshots: DiskSnapshots,
    snapshotId: string,
  ): Promise<NamespaceInstance> {
    const { memory, log } = this.#options
    const anew = async (reason: string) => {
      const instance = await this.#start(spec, record, null)
      instance.memory = { kept: false, reason }
      return instance
    }
    if (memory === null || record.uidBase === null) return await anew('this host keeps no memory')
    const found = await snapshots.memoryOf(snapshotId, memory)
    if ('reason' in found) return await anew(found.reason)
    const dir = this.#dirs.of(spec.id)
    try {
      await memory.placeLogs(found.dir, dir)
      const instance = await this.#start(spec, record, null, found.record)
      await memory.restore(this.#memoryInstance(instance, record)!, found.dir, found.record, spec.signal)
      instance.memory = { kept: true }
      return instance
    } catch (error) {
      spec.signal?.throwIfAborted()
      log.warn('programs of a snapshot cannot go on', { instance: spec.id, error: String(error) })
      await this.#end(spec.id)
      for (const name of ['run', 'log']) rmSync(`${dir}/${name}`, { recursive: true, force: true })
      return await anew(error instanceof Error ? error.message : String(error))
    }
  }

  /** Null where ids are not apart, or mounts are its own. */
  #memoryInstance(instance: NamespaceInstance, { uidBase, memoryMb }: InstanceRecord): MemoryInstance | null {
    const { process1, guest, group } = instance
    return uidBase === null
      ? null
      : { dir: this.#dirs.of(instance.id), process1, guest, group, uidBase, memoryMb }
  }

  async #recover(handle: InstanceHandle): Promise<NamespaceInstance | null> {
    const state = parseState(handle.state)
    if (!state) return null
    if (state.bootId !== this.#bootId || !existsSync(this.#dirs.of(handle.id))) return null
    const group = this.#group(state)
    const released = await releaseStopped(this.#dirs.of(handle.id), state.guest, this.#options.clock)
    if (released && state.memoryMb !== undefined) await group.endSpare(state.memoryMb)
    if (!isAlive(state.guest) || !isAlive(state.keeper)) {
      // One without the other is of no use to anyone.
      await this.#end(handle.id)
      return null
    }
    if (state.uidBase !== null) this.#options.uidRanges?.keep(state.uidBase, this.#dirs.of(handle.id))
    const instance = this.#instance(handle.id, state, group)
    const { memoryMb } = state
    try {
      if (group.frozen) {
        await instance.openFrozen()
        return instance
      }
      // One whose programs are too busy for process 1 to answer in time would be ended, and they with it.
      if (memoryMb !== undefined) group.liftCpuLimit()
      await instance.open()
      if (memoryMb !== undefined) group.setCpuLimit(memoryMb)
      return instance
    } catch (error) {
      this.#options.log.warn('an instance runs but does not answer', {
        instance: handle.id,
        error: String(error),
      })
      this.#instances.delete(handle.id)
      await this.#end(handle.id)
      return null
    }
  }

  #instance(id: string, state: InstanceState, group: InstanceCgroup): NamespaceInstance {
    const { egress } = this.#options
    const instance: NamespaceInstance = new NamespaceInstance({
      id,
      dir: this.#dirs.of(id),
      socketDir: this.#dirs.socketsOf(id),
      state,
      group,
      reclaims: this.capabilities.reclaim,
      log: this.#options.log,
      clock: this.#options.clock,
      leaving: egress ? new Leaving(id, egress, this.#dialler) : null,
      onDetached: () => {
        if (this.#instances.get(id) === instance) this.#instances.delete(id)
      },
    })
    this.#instances.set(id, instance)
    if (state.disk === 'loop' && !this.#options.transient) this.#settling.begin(instance)
    return instance
  }

  /** Ends every process of an instance, whoever started it, and takes its groups away. */
  async #end(id: string): Promise<void> {
    const instance = this.#instances.get(id)
    this.#instances.delete(id)
    if (instance) await instance.kill()
    const record = recordFile.read(this.#dirs.of(id))
    const groups = [this.#options.cgroups.find(id)]
    if (record) groups.push(this.#group(record))
    for (const group of groups) await group.kill()
    if (!instance)
      await endKeeper({ dir: this.#dirs.of(id), socketDir: this.#dirs.socketsOf(id) }, this.#options)
    for (const group of groups) await group.remove()
  }

  async #destroy(id: string): Promise<void> {
    const dir = this.#dirs.of(id)
    const record = recordFile.read(dir)
    await this.#end(id)
    await removeTree(dir)
    // Without a record it was made half: whether it had come to have a range is not known.
    if (record === null) this.#options.uidRanges?.releaseAll(dir)
    else if (record.uidBase !== null) this.#options.uidRanges?.release(record.uidBase, dir)
  }

  #record(spec: InstanceSpec, uidBase: number | null, disk: 'loop' | 'dir'): InstanceRecord {
    const { parts } = this.#options.cgroups.find(spec.id)
    return {
      bootId: this.#bootId,
      uidBase,
      disk,
      groups: parts.map(({ hierarchy, dir }) => ({ ...hierarchy, dir })),
      memoryMb: spec.memoryMb,
    }
  }

  /** @throws not_found */
  #recordOf(id: string): InstanceRecord {
    const record = recordFile.read(this.#dirs.of(id))
    if (!record) throw new PlatformError('not_found', `instance ${id} has left no files`)
    return record
  }

  /** As recorded: a hutch started from elsewhere may have other groups for its new instances. */
  #group(record: InstanceRecord): InstanceCgroup {
    const parts = record.groups.map((group) => ({ hierarchy: group, dir: group.dir }))
    return new InstanceCgroup(parts, this.#options.clock)
  }

  #checkOpen() {
    if (this.#disposed) throw new PlatformError('unavailable', 'The runtime is closed')
  }

  #checkFreeSpace(freeMbMin = hostFreeMbMin) {
    // Tells what a host can do, whatever is left of its disk.
    if (!this.#options.transient) this.#dirs.checkFreeSpace(freeMbMin)
  }
}
