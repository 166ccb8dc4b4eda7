import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
} from 'node:fs'
import { PlatformError } from '../../errors.ts'
import { GuestClient, HelperError } from '../../guest/index.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type {
  Instance,
  InstanceHandle,
  InstanceSpec,
  Runtime,
  RuntimeCapabilities,
  RuntimeProbe,
} from '../../spec/runtime.ts'
import { bootId, identify, isAlive, startGuest } from '../helper-process.ts'
import { removeTree } from '../remove-tree.ts'
import { endTree, ProcessInstance } from './instance.ts'
import { handleVersion, type ProcessRecord, recordFile, recordSchema } from './record.ts'

export interface ProcessRuntimeOptions {
  instancesDir: string
  helperPath: string
  log: Logger
  clock: Clock
}

const unrecordedEndTimeoutMs = 5_000
const instanceIdPattern = /^[a-z0-9]{12,40}$/

const capabilities: RuntimeCapabilities = {
  isolation: 'none',
  limits: { memory: 'none', cpu: 'none', pids: 'none', disk: 'none' },
  standby: 'none',
  reclaim: false,
  archive: false,
  snapshots: false,
  memory: false,
  ownMounts: false,
  network: 'host',
  survivesRestart: true,
  notes: [
    {
      subject: 'isolation',
      ok: false,
      detail: 'programs run as you, with your files, your network and without limits',
      remedy: 'Use the namespace runtime for anything that you would not run yourself.',
    },
  ],
}

export async function probeProcess(): Promise<RuntimeProbe> {
  const usable = process.platform === 'linux'
  const reason = usable ? 'programs run without any isolation' : 'the helper runs on Linux only'
  return { usable, reason, notes: capabilities.notes }
}

/** Instances that are only processes of this user, with the host's own paths. For development: it protects nothing. */
export async function openProcessRuntime(options: ProcessRuntimeOptions): Promise<Runtime> {
  mkdirSync(options.instancesDir, { recursive: true, mode: 0o700 })
  return new ProcessRuntime({ ...options, instancesDir: realpathSync(options.instancesDir) })
}

class ProcessRuntime implements Runtime {
  readonly name = 'process'
  readonly capabilities = capabilities
  #options: ProcessRuntimeOptions
  #instances = new Map<string, ProcessInstance>()
  #bootId = bootId()
  #dirFile: number
  #disposed = false

  constructor(options: ProcessRuntimeOptions) {
    this.#options = options
    this.#dirFile = openSync(options.instancesDir, 'r')
  }

  async create(spec: InstanceSpec): Promise<Instance> {
    this.#check(spec)
    try {
      mkdirSync(this.#dir(spec.id), { mode: 0o700 })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      throw new PlatformError('already_exists', `instance ${spec.id} exists already`)
    }
    try {
      return await this.#start(spec)
    } catch (error) {
      await this.destroy(spec.id)
      throw error
    }
  }

  async restart(spec: InstanceSpec): Promise<Instance> {
    this.#check(spec)
    if (!recordFile.read(this.#dir(spec.id))) {
      throw new PlatformError('not_found', `instance ${spec.id} has left no files`)
    }
    await this.#end(spec.id)
    return this.#start(spec)
  }

  async recover(handle: InstanceHandle): Promise<Instance | null> {
    if (handle.driver !== this.name || handle.version !== handleVersion) return null
    const known = this.#instances.get(handle.id)
    if (known) return known
    const state = recordSchema.safeParse(handle.state).data
    if (!state) return null
    if (state.bootId !== this.#bootId || !isAlive(state.guest)) return null
    const instance = this.#instance(handle.id, state)
    try {
      await instance.open()
      return instance
    } catch (error) {
      this.#options.log.warn('an instance runs but does not answer', {
        instance: handle.id,
        error: String(error),
      })
      await this.#end(handle.id)
      return null
    }
  }

  async destroy(instanceId: string): Promise<void> {
    if (!instanceIdPattern.test(instanceId)) return
    await this.#end(instanceId)
    await removeTree(this.#dir(instanceId))
  }

  async list(): Promise<string[]> {
    return readdirSync(this.#options.instancesDir).filter((name) => instanceIdPattern.test(name))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return
    this.#disposed = true
    for (const instance of this.#instances.values()) await instance[Symbol.asyncDispose]()
    this.#instances.clear()
    closeSync(this.#dirFile)
  }

  #check(spec: InstanceSpec) {
    if (this.#disposed) throw new PlatformError('unavailable', 'The runtime is closed')
    if (!instanceIdPattern.test(spec.id)) {
      throw new PlatformError('bad_request', `id "${spec.id}" is not 12 to 40 characters of a-z and 0-9`)
    }
    spec.signal?.throwIfAborted()
  }

  async #start(spec: InstanceSpec): Promise<ProcessInstance> {
    const dir = this.#dir(spec.id)
    const workingDir = ownWorkingDir(spec.workingDir, dir)
    const replaced = workingDir === spec.workingDir ? null : { from: spec.workingDir, to: workingDir }
    const entries = [['dir', dir] as const, ['workdir', workingDir] as const]
    const started = await startGuest(this.#options.helperPath, entries).catch((error) => {
      if (!(error instanceof HelperError)) throw error
      throw new PlatformError('unavailable', `The sandbox cannot be started (${error.stage})`, {
        cause: error,
      })
    })
    const guest = identify(started.guestPid)
    if (!guest) throw new PlatformError('unavailable', 'The sandbox ended while it started')
    const record: ProcessRecord = { bootId: this.#bootId, guest, workingDir: replaced }
    recordFile.write(dir, record)
    const instance = this.#instance(spec.id, record)
    await instance.open()
    spec.signal?.throwIfAborted()
    return instance
  }

  #instance(id: string, state: ProcessRecord): ProcessInstance {
    const instance: ProcessInstance = new ProcessInstance({
      id,
      dir: this.#dir(id),
      socketDir: this.#socketDir(id),
      state,
      log: this.#options.log,
      clock: this.#options.clock,
      onExit: () => {
        if (this.#instances.get(id) === instance) this.#instances.delete(id)
      },
    })
    this.#instances.set(id, instance)
    return instance
  }

  async #end(id: string): Promise<void> {
    const instance = this.#instances.get(id)
    if (instance) return instance.kill()
    const record = recordFile.read(this.#dir(id))
    if (record && record.bootId === this.#bootId) await endTree(record.guest, this.#options.clock)
    if (!record && existsSync(`${this.#dir(id)}/run/guest.sock`)) await this.#endUnrecorded(id)
  }

  /** We died between its start and its record, so that only its socket leads to it. */
  async #endUnrecorded(id: string): Promise<void> {
    const lost = Promise.withResolvers<void>()
    const guest = new GuestClient({
      socketPath: `${this.#socketDir(id)}/run/guest.sock`,
      logDir: `${this.#dir(id)}/log`,
      log: this.#options.log,
      onLost: lost.resolve,
    })
    const late = new AbortController()
    try {
      await guest.processes.shutdown(0)
      const timeout = this.#options.clock.sleep(unrecordedEndTimeoutMs, late.signal).catch(() => {})
      await Promise.race([lost.promise, timeout])
    } catch {
      // Nobody listens: it has ended.
    } finally {
      late.abort()
      guest.close(new PlatformError('unavailable', 'The instance is being removed'))
    }
  }

  #socketDir(id: string): string {
    return `/proc/self/fd/${this.#dirFile}/${id}`
  }

  #dir(id: string): string {
    return `${this.#options.instancesDir}/${id}`
  }
}

/** The wanted directory when this user can make it, else one of the instance's own. */
function ownWorkingDir(wanted: string, dir: string): string {
  try {
    mkdirSync(wanted, { recursive: true })
    // It may be there already, and another user's.
    accessSync(wanted, constants.W_OK | constants.X_OK)
    return wanted
  } catch {
    mkdirSync(`${dir}/work`, { recursive: true })
    return `${dir}/work`
  }
}
