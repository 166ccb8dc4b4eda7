import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { InstanceLease, Instances, NewInstance } from '../instances/index.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableIdMs } from '../lib/ids.ts'
import type { Logger } from '../lib/log.ts'
import type { Instance } from '../spec/runtime.ts'
import { becomeUser, envOf, findUser, rootEnv } from './identity.ts'
import { type ProcessRecord, ProcessRecords } from './processes/records.ts'
import { SandboxProcesses } from './processes.ts'
import type { StoredSandbox } from './record.ts'
import type { SandboxUpgrades, Upgrades } from './upgrades.ts'

/** A sandbox in use: awake, and counted as active, until disposed. */
export interface SandboxLease extends Disposable {
  readonly workspace: string
  readonly name: string
  readonly instance: Instance
  readonly processes: SandboxProcesses
  readonly workingDir: string
  readonly env: Record<string, string>
  /** Names of those that a user gave it: not its image, and no workload. */
  readonly userVariables: ReadonlySet<string>
  readonly upgrades: SandboxLeaseUpgrades
  /** From now on it stands for a connection that stays open, and counts while something is said on it. */
  asConnection(): { touch(): void }
}

/** Requests to upgrade this sandbox's API. */
export interface SandboxLeaseUpgrades {
  read(): Promise<Upgrades>
  note(version: string, error?: string): Promise<void>
}

interface Live {
  readonly instanceId: string
  readonly enabled: boolean
  readonly userVariables: ReadonlySet<string>
  /** Of the machine as it runs now: a restart makes a new one. */
  opened: { instance: Instance; processes: Promise<SandboxProcesses> } | null
}

/**
 * From a sandbox's name to its running machine, without a look at the store for each request. What is held here is a
 * hint: the instance itself says when it is gone, then the record is read again.
 */
export class SandboxLeases {
  readonly #instances: Instances
  readonly #filesDir: string
  readonly #clock: Clock
  readonly #log: Logger
  readonly #read: (workspace: string, name: string) => Promise<StoredSandbox | null>
  readonly #upgrades: SandboxUpgrades
  readonly #programFailed: (instanceId: string, reason: string) => void
  readonly #endedForMemory: (instanceId: string, processName: string) => void
  readonly #background: Background
  readonly #live = new Map<string, Live>()
  readonly #openedAt: number
  readonly #closing = new Set<Promise<void>>()

  constructor(options: {
    instances: Instances
    /** Process records go to `<filesDir>/<instance id>.processes`. */
    filesDir: string
    clock: Clock
    log: Logger
    read: (workspace: string, name: string) => Promise<StoredSandbox | null>
    upgrades: SandboxUpgrades
    /** What the image says to start could not be started. */
    programFailed: (instanceId: string, reason: string) => void
    /** The kernel ended a program for want of memory. */
    endedForMemory: (instanceId: string, processName: string) => void
    background: Background
  }) {
    this.#instances = options.instances
    this.#filesDir = options.filesDir
    this.#clock = options.clock
    this.#openedAt = options.clock.now()
    this.#log = options.log
    this.#read = options.read
    this.#upgrades = options.upgrades
    this.#programFailed = options.programFailed
    this.#endedForMemory = options.endedForMemory
    this.#background = options.background
  }

  /** @throws workload_not_found when there is none, workload_unavailable when it does not run (now) */
  acquire(workspace: string, name: string, signal?: AbortSignal): Promise<SandboxLease> {
    return this.#acquire(workspace, name, (id) => this.#instances.acquire(id, signal))
  }

  /** The sandbox as it is, frozen or not, and no use of it. @throws as `acquire` */
  acquireAsIs(workspace: string, name: string, signal?: AbortSignal): Promise<SandboxLease> {
    return this.#acquire(workspace, name, (id) => this.#instances.acquireAsIs(id, signal))
  }

  async #acquire(
    workspace: string,
    name: string,
    take: (instanceId: string) => Promise<InstanceLease>,
  ): Promise<SandboxLease> {
    const key = keyOf(workspace, name)
    for (let attempt = 1; ; attempt++) {
      const live = this.#live.get(key) ?? (await this.#find(workspace, name))
      if (!live.enabled) {
        throw new PlatformError(
          'workload_unavailable',
          `the sandbox "${name}" is disabled (spec.enabled is false)`,
          {
            advice: {
              action: 'Enable it: update the sandbox with spec.enabled: true.',
              doNot: 'Retry before it is enabled.',
            },
          },
        )
      }
      try {
        return await this.#lease(workspace, name, live, take)
      } catch (error) {
        // Replaced or removed since: the record knows.
        if (!PlatformError.is(error) || error.code !== 'workload_not_found' || attempt > 1) throw error
        if (this.#live.get(key) === live) this.forget(workspace, name)
      }
    }
  }

  /** This sandbox runs on that instance from now on. */
  set(sandbox: StoredSandbox, instanceId: string): Live {
    const key = keyOf(sandbox.workspace, sandbox.name)
    const before = this.#live.get(key)
    const sameInstance = before?.instanceId === instanceId
    if (!sameInstance) this.#letGo(before)
    const live: Live = {
      instanceId,
      enabled: sandbox.body.spec.enabled !== false,
      userVariables: userVariablesOf(sandbox),
      opened: sameInstance ? before.opened : null,
    }
    this.#live.set(key, live)
    return live
  }

  forget(workspace: string, name: string): void {
    const key = keyOf(workspace, name)
    this.#letGo(this.#live.get(key))
    this.#live.delete(key)
  }

  /**
   * Takes up, in the background, the processes of a sandbox that nobody asks for yet: they have deadlines and restarts
   * to be kept. One that rests has none: what keeps a sandbox awake has a deadline, and what stands still does not end.
   */
  warm(workspace: string, name: string): void {
    this.#background.run(this.#warm(workspace, name))
  }

  async #warm(workspace: string, name: string): Promise<void> {
    const live = this.#live.get(keyOf(workspace, name)) ?? (await this.#find(workspace, name))
    if (this.#instances.activity(live.instanceId)?.standby) return
    using _awake = this.#instances.hold(live.instanceId, { quiet: true })
    const lease = await this.acquireAsIs(workspace, name)
    lease[Symbol.dispose]()
  }

  /** It is known to be frozen: nothing goes on in it. */
  isResting(workspace: string, name: string): boolean {
    const live = this.#live.get(keyOf(workspace, name))
    return live !== undefined && this.#instances.activity(live.instanceId)?.standby === true
  }

  /** What is known of processes that go on in an instance, or went on in another before. */
  async placeRecords(instanceId: string, records: readonly ProcessRecord[]): Promise<void> {
    const files = new ProcessRecords(this.#recordsFile(instanceId), this.#clock, this.#log)
    files.load()
    for (const record of records) files.save(record)
  }

  async removeFiles(instanceId: string): Promise<void> {
    for (const suffix of ['', '.new', '.terminals', '.terminals.new'])
      await rm(`${this.#recordsFile(instanceId)}${suffix}`, { force: true })
  }

  async removeFilesExcept(instanceIds: ReadonlySet<string>): Promise<void> {
    const present = await readdir(this.#filesDir).catch(() => [] as string[])
    for (const name of present) {
      const [id = ''] = name.split('.')
      if (!instanceIds.has(id)) await this.removeFiles(id)
    }
  }

  #recordsFile(instanceId: string): string {
    return join(this.#filesDir, `${instanceId}.processes`)
  }

  async close(): Promise<void> {
    for (const live of this.#live.values()) this.#letGo(live)
    this.#live.clear()
    await Promise.all(this.#closing)
  }

  async #lease(
    workspace: string,
    name: string,
    live: Live,
    take: (instanceId: string) => Promise<InstanceLease>,
  ): Promise<SandboxLease> {
    const lease = await take(live.instanceId)
    try {
      const { instance, spec } = lease
      if (live.opened?.instance !== instance) this.#open(live, instance, spec)
      const processes = await live.opened!.processes
      return {
        workspace,
        name,
        instance,
        processes,
        workingDir: spec.workingDir,
        env: processes.env,
        userVariables: live.userVariables,
        upgrades: {
          read: () => this.#upgrades.of(workspace, name),
          note: (version, error) => this.#upgrades.note(workspace, name, version, error),
        },
        asConnection: () => lease.asConnection(),
        [Symbol.dispose]: () => lease[Symbol.dispose](),
      }
    } catch (error) {
      lease[Symbol.dispose]()
      throw error
    }
  }

  #open(live: Live, instance: Instance, spec: NewInstance): void {
    const opened = {
      instance,
      processes: this.#openProcesses(live.instanceId, instance, spec, live.opened?.processes),
    }
    live.opened = opened
    opened.processes.catch(() => {
      if (live.opened === opened) live.opened = null
    })
  }

  /** `previous` is of the machine before a restart and shares the records with its successor. */
  async #openProcesses(
    instanceId: string,
    instance: Instance,
    spec: NewInstance,
    previous: Promise<SandboxProcesses> | undefined,
  ): Promise<SandboxProcesses> {
    await previous?.then((processes) => processes[Symbol.asyncDispose]()).catch(() => {})
    const { guest } = instance
    const asRoot = spec.programAsRoot === true
    const user = spec.user ? await (asRoot ? findUser : becomeUser)(guest, spec.user) : null
    const env = user === null ? spec.env : envOf(user, spec.env, asRoot)
    const startedAt = sortableIdMs(instanceId)
    const madeHere = startedAt !== null && startedAt >= this.#openedAt
    const processes = new SandboxProcesses({
      guest: instance.guest,
      ...(startedAt === null ? {} : { startedAt, madeHere }),
      recordsFile: this.#recordsFile(instanceId),
      clock: this.#clock,
      log: this.#log,
      defaults: { env, workingDir: spec.workingDir },
      listening: (port) => instance.listening(port),
      frozen: () => instance.frozen === true,
      exited: instance.exited,
      keepAwake: () => this.#instances.hold(instanceId),
      endedForMemory: await this.#memoryEnds(instanceId, instance, madeHere),
    })
    await processes.open()
    if (spec.program) {
      const own = asRoot ? { env: { ...rootEnv, ...spec.env } } : {}
      await processes.startProgram(spec.program, { port: spec.programPort, ...own }).catch((error) => {
        const reason = PlatformError.is(error) ? error.message : 'the platform could not start it'
        const cause = PlatformError.is(error) ? { reason } : { error }
        this.#log.warn('the program of an image could not be started', { instance: instanceId, ...cause })
        this.#programFailed(instanceId, reason)
      })
    }
    if (asRoot && user) guest.actAs?.(user)
    return processes
  }

  /** Tells whether the kernel ended more programs for want of memory than at the last look, and notes it. */
  async #memoryEnds(
    instanceId: string,
    instance: Instance,
    isNew: boolean,
  ): Promise<(processName: string) => Promise<boolean>> {
    const count = async () => (await instance.stats().catch(() => null))?.oomKills ?? 0
    let known = isNew ? 0 : await count()
    return async (processName) => {
      const now = await count()
      const more = now > known
      known = now
      if (more) this.#endedForMemory(instanceId, processName)
      return more
    }
  }

  async #find(workspace: string, name: string): Promise<Live> {
    const found = await this.#read(workspace, name)
    if (!found || found.body.status === 'TERMINATED' || found.body.status === 'DELETING') {
      throw new PlatformError(
        'workload_not_found',
        `the sandbox "${name.slice(0, 64)}" does not exist in this workspace`,
      )
    }
    const { instanceId, status } = found.body
    if (instanceId === null || status !== 'DEPLOYED') {
      throw new PlatformError(
        'workload_unavailable',
        `the sandbox "${name}" does not run, its status is ${status}${status === 'ARCHIVED' ? ': unarchive it first' : ''}`,
        status === 'ARCHIVED'
          ? { advice: { action: 'Unarchive the sandbox.', doNot: 'Retry before it is unarchived.' } }
          : {},
      )
    }
    return this.set(found, instanceId)
  }

  #letGo(live: Live | undefined): void {
    const processes = live?.opened?.processes
    if (!processes) return
    const closed = processes.then((opened) => opened[Symbol.asyncDispose]()).catch(() => {})
    this.#closing.add(closed)
    void closed.finally(() => this.#closing.delete(closed))
  }
}

function keyOf(workspace: string, name: string): string {
  return `${workspace}/${name}`
}

/** Workloads are noted as `agent:name`, and change only sandboxes that they made. */
function userVariablesOf({ body }: StoredSandbox): ReadonlySet<string> {
  return new Set(body.createdBy.includes(':') ? [] : body.spec.envs.map(({ name }) => name))
}
