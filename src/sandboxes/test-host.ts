/** For the tests of this folder: a host whose machines are entries of a map, and a clock that is turned by hand. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { BuildRequest, BuildResult } from '../builder/index.ts'
import { Builds } from '../builds/index.ts'
import { PlatformError } from '../errors.ts'
import type { ResolvedImage } from '../images/index.ts'
import { Instances } from '../instances/index.ts'
import type { StandbyTimes } from '../instances/standby.ts'
import { type Logger, silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { TreeSummary } from '../spec/guest.ts'
import type { Instance, InstanceExit, InstanceHandle, InstanceSpec, Runtime } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { Previews, Sandboxes, Snapshots } from './index.ts'

interface Machine {
  spec: InstanceSpec
  running: boolean
  frozen: boolean
  packed: boolean
  /** Stands for its files. */
  content: string
  starts: number
  /** Of this boot. */
  exit: PromiseWithResolvers<InstanceExit>
}

type Fault = (id: string, signal?: AbortSignal) => Promise<void> | void

/** What outlives the platform: machines by id. */
export class TestHost {
  readonly machines = new Map<string, Machine>()
  readonly snapshots = new Map<string, { content: string; complete: boolean }>()
  readonly destroyed: string[] = []
  /** Called before the operation of that name; what it throws is what the operation throws. */
  readonly faults: Partial<
    Record<
      'create' | 'created' | 'restart' | 'destroy' | 'recover' | 'pack' | 'unpack' | 'capture' | 'complete',
      Fault
    >
  > = {}
  concurrentCreates = 0
  concurrentCreatesMax = 0

  /** Ends process 1 of a machine, its files stay. */
  crash(id: string, reason: InstanceExit['reason'] = 'killed'): void {
    const machine = this.machines.get(id)!
    machine.running = false
    machine.exit.resolve({ reason, exitCode: null, signal: 9 })
  }

  reboot(): void {
    for (const id of this.machines.keys()) this.crash(id, 'lost')
  }

  runtime(): Runtime {
    const host = this
    const start = (spec: InstanceSpec): Instance => {
      const { signal: _, ...kept } = spec
      const before = host.machines.get(spec.id)
      const starts = (before?.starts ?? 0) + 1
      host.machines.set(spec.id, {
        spec: kept,
        content: before?.content ?? host.#contentOf(spec.snapshotId),
        running: true,
        frozen: false,
        packed: false,
        starts,
        exit: Promise.withResolvers(),
      })
      return host.#instance(spec.id)
    }
    return {
      name: 'fake',
      capabilities: {
        isolation: 'none',
        limits: { memory: 'none', cpu: 'none', pids: 'none', disk: 'none' },
        standby: 'freeze',
        reclaim: false,
        archive: true,
        snapshots: true,
        memory: false,
        ownMounts: false,
        network: 'none',
        survivesRestart: true,
        notes: [],
      },
      async create(spec) {
        host.concurrentCreates++
        host.concurrentCreatesMax = Math.max(host.concurrentCreatesMax, host.concurrentCreates)
        try {
          await host.faults.create?.(spec.id)
          const instance = start(spec)
          await host.faults.created?.(spec.id)
          return instance
        } finally {
          host.concurrentCreates--
        }
      },
      async recover(handle: InstanceHandle) {
        await host.faults.recover?.(handle.id)
        return host.machines.get(handle.id)?.running ? host.#instance(handle.id) : null
      },
      async restart(spec) {
        await host.faults.restart?.(spec.id)
        const { packed = true } = host.machines.get(spec.id) ?? {}
        if (packed) throw new PlatformError('not_found', 'its files are gone')
        return start(spec)
      },
      async destroy(id) {
        await host.faults.destroy?.(id)
        host.destroyed.push(id)
        host.machines.get(id)?.exit.resolve({ reason: 'killed', exitCode: null, signal: 9 })
        host.machines.delete(id)
      },
      async pack(id, signal) {
        await host.faults.pack?.(id, signal)
        signal?.throwIfAborted()
        const machine = host.#known(id)
        if (machine.running) host.crash(id)
        machine.packed = true
        return 1234
      },
      async unpack(id, signal) {
        await host.faults.unpack?.(id, signal)
        signal?.throwIfAborted()
        host.#known(id).packed = false
      },
      async list() {
        return [...host.machines.keys()]
      },
      snapshots: {
        async capture(instanceId, snapshotId) {
          await host.faults.capture?.(snapshotId)
          const { content, running, frozen } = host.#known(instanceId)
          if (running && !frozen) throw new PlatformError('conflict', 'it does not stand still')
          host.snapshots.set(snapshotId, { content, complete: false })
          return { kept: false, reason: 'this host keeps no memory' }
        },
        async complete(snapshotId) {
          await host.faults.complete?.(snapshotId)
          const snapshot = host.snapshots.get(snapshotId)
          if (!snapshot) throw new PlatformError('not_found', 'there is no such snapshot')
          snapshot.complete = true
          return snapshot.content.length
        },
        async remove(snapshotId) {
          host.snapshots.delete(snapshotId)
        },
        async list() {
          return [...host.snapshots.keys()]
        },
      },
      async [Symbol.asyncDispose]() {},
    }
  }

  #contentOf(snapshotId: string | undefined): string {
    if (snapshotId === undefined) return ''
    const snapshot = this.snapshots.get(snapshotId)
    if (!snapshot?.complete) throw new PlatformError('not_found', 'there is no such snapshot')
    return snapshot.content
  }

  #known(id: string): Machine {
    const machine = this.machines.get(id)
    if (!machine) throw new PlatformError('not_found', 'its files are gone')
    return machine
  }

  #instance(id: string): Instance {
    const machine = this.machines.get(id)!
    const refuse = () => Promise.reject(new PlatformError('unprocessable', 'this host runs no programs'))
    return {
      id,
      handle: { driver: 'fake', version: 1, id, state: null },
      guest: {
        processes: {
          spawn: refuse,
          signal: refuse,
          list: async () => [],
          forget: async () => {},
          wait: refuse,
          onExit: () => () => {},
          writeStdin: refuse,
          closeStdin: refuse,
          resize: refuse,
          descent: async () => ({ living: 0, sockets: [] }),
          async *output() {},
        },
        files: {
          stat: refuse,
          async *list() {},
          read: refuse,
          write: refuse,
          makeDirectory: refuse,
          remove: refuse,
          rename: refuse,
          setMode: refuse,
          realPath: refuse,
          concatenate: refuse,
          writeAll: refuse,
          walk: () => noTree(),
          search: () => noTree(),
          watch: refuse,
          copy: refuse,
          move: refuse,
          setOwner: refuse,
        },
      },
      wayOut: () => ({ origin: 'http://127.0.0.1:1' }),
      address: async (port) => ({ origin: `http://127.0.0.1:${port}` }),
      listening: async () => false,
      get frozen() {
        return machine.frozen
      },
      freeze: async (signal) => {
        signal?.throwIfAborted()
        machine.frozen = true
      },
      thaw: async () => {
        machine.frozen = false
      },
      stats: async () => ({ memoryBytes: 0, cpuMs: 0, processes: 0, diskBytes: 0 }),
      stop: async () => {
        machine.running = false
        machine.exit.resolve({ reason: 'stopped', exitCode: 0, signal: null })
      },
      exited: machine.exit.promise,
      [Symbol.asyncDispose]: async () => {},
    }
  }
}

const images = {
  async promote() {},
  async prepare() {
    return null
  },
  async resolve(_workspace: string, reference: string): Promise<ResolvedImage> {
    if (!reference.startsWith('blaxel/base-image') && !reference.startsWith('sandbox/')) {
      throw new PlatformError('bad_request', `spec.runtime.image "${reference}" is unknown here`)
    }
    return {
      reference,
      root: { digest: 'sha256:0', layers: [], mounts: [] },
      env: { PATH: '/bin', FROM_IMAGE: 'image', OVERRIDDEN: 'image' },
      workingDir: '/blaxel',
      user: '',
      entrypoint: [],
      command: [],
      ports: [],
      [Symbol.dispose]() {},
    }
  },
}

/** Dies like a process: at the chosen step nothing answers any more, before it took effect or after. */
export class Mortal {
  readonly died: Promise<void>
  readonly #die: () => void
  /** What had begun when it died takes effect or not, but not after the next one began. */
  readonly #begun = new Set<Promise<unknown>>()
  #steps = 0
  #at = Number.POSITIVE_INFINITY

  constructor() {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.died = promise
    this.#die = resolve
  }

  /** 0: before the next step, 1: after it, 2: before the one after that, ... */
  dieAt(point: number): void {
    this.#steps = 0
    this.#at = point
  }

  bind<Target extends object>(target: Target, methods: (keyof Target & string)[]): Target {
    return new Proxy(target, {
      get: (object, name) => {
        const value = Reflect.get(object, name, object)
        if (typeof value !== 'function') return value
        const method = value.bind(object)
        if (!methods.includes(name as keyof Target & string)) return method
        return async (...args: unknown[]) => {
          await this.#step()
          const begun: Promise<unknown> = Promise.resolve(method(...args))
          this.#begun.add(begun)
          const result = await begun.finally(() => this.#begun.delete(begun))
          await this.#step()
          return result
        }
      },
    })
  }

  async #step(): Promise<void> {
    if (this.#steps++ < this.#at) return
    void Promise.allSettled(this.#begun).then(this.#die)
    await new Promise(() => {})
  }
}

export interface TestPlatform {
  store: Store
  instances: Instances
  sandboxes: Sandboxes
  previews: Previews
  snapshots: Snapshots
  builds: Builds
  /** SIGTERM. */
  close(options?: { keepInstances?: boolean }): Promise<void>
}

/** One data directory on one host; `start` makes a platform over it, as often as one likes. */
export class TestSite implements AsyncDisposable {
  readonly host = new TestHost()
  readonly clock = new FakeClock()
  readonly secrets = createSecretBox(new Uint8Array(32).fill(7))
  readonly dataDir: string
  readonly store: Store

  private constructor(dataDir: string, store: Store) {
    this.dataDir = dataDir
    this.store = store
  }

  static async open(): Promise<TestSite> {
    const dataDir = await mkdtemp(join(tmpdir(), 'hutch-sandboxes-'))
    const path = join(dataDir, 'hutch.db')
    const clock = {
      now: () => Date.now(),
      monotonic: () => performance.now(),
      sleep: () => Promise.resolve(),
    }
    const store = await openSqliteStore({ path, clock, log: silentLogger, durability: 'process' })
    const workspaces = new Workspaces({ store, users: new Users({ store, clock }), heldKinds: ['sandbox'] })
    for (const name of ['main', 'other']) await workspaces.create({ name, ownerSub: 'usr_test' })
    return new TestSite(dataDir, store)
  }

  async start(
    options: {
      mortal?: Mortal
      standby?: StandbyTimes
      region?: string
      log?: Logger
      /** Default: never done. */
      build?: (request: BuildRequest) => Promise<BuildResult>
    } = {},
  ): Promise<TestPlatform> {
    const { clock, secrets, dataDir } = this
    const mortal = options.mortal ?? new Mortal()
    const store = mortal.bind(this.store, ['create', 'update', 'remove', 'batch'])
    const own = this.host.runtime()
    const mortalSnapshots = mortal.bind(own.snapshots!, ['capture', 'complete', 'remove'])
    const methods = ['create', 'restart', 'destroy', 'pack', 'unpack'] as const
    const runtime = mortal.bind({ ...own, snapshots: mortalSnapshots }, [...methods])
    const { standby, region, log = silentLogger } = options
    const shared = { store, secrets, clock, log }
    const instances = new Instances({ ...shared, runtime, ...(standby ? { standby } : {}) })
    const logs = { append() {}, remove: async () => {} }
    const builder = { build: options.build ?? (() => new Promise<never>(() => {})) }
    const builds = new Builds({ ...shared, builder, logs, dir: join(dataDir, 'builds') })
    const sandboxes = new Sandboxes({
      ...{ ...shared, instances, images, dataDir, builds, logs },
      ...(region === undefined ? {} : { region }),
    })
    const ownsHost = (host: string) => host === 'hutch.example' || host.endsWith('.hutch.example')
    const heldElsewhere = (workspace: string, host: string) =>
      workspace !== 'main' && host.endsWith('.held.example')
    const previews = new Previews({ ...shared, sandboxes, domain: 'localhost', ownsHost, heldElsewhere })
    const snapshots = new Snapshots({ ...shared, sandboxes, instances })
    await instances.recover()
    await snapshots.open()
    await sandboxes.open()
    await previews.open()
    await builds.open()
    return {
      store,
      instances,
      sandboxes,
      previews,
      snapshots,
      builds,
      async close(options = {}) {
        await builds.close()
        previews.close()
        await snapshots.close()
        await sandboxes.close()
        await instances.close({ keepInstances: options.keepInstances ?? false })
      },
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.store[Symbol.asyncDispose]()
    await rm(this.dataDir, { recursive: true, force: true })
  }
}

async function* noTree(): AsyncGenerator<never, TreeSummary> {
  yield* []
  return { entries: 0, bytes: 0, skipped: 0, truncated: false }
}
