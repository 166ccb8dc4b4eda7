/** For the tests of this folder: a fleet, builds and images that a test moves by hand, around a real store. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { emptyProjectSettings } from '../lib/project-settings.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { Instance } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import type { BuiltImage, DeploymentBuild } from './build-events.ts'
import type { RevisionLease, RevisionRun } from './fleet/index.ts'
import { type DeploymentBuilds, type DeploymentFleet, Deployments } from './index.ts'

type Handlers = Parameters<DeploymentBuilds['on']>[1]

/** Revisions that are ready at once, unless a test holds them back or lets them fail. */
class TestFleet implements DeploymentFleet {
  readonly runs = new Map<string, RevisionRun>()
  readonly retired: { id: string; now: boolean }[] = []
  /** Called before a revision is ready; what it throws is why it is not. */
  readiness: (run: RevisionRun, signal: AbortSignal | undefined) => Promise<void> | void = () => {}
  acquired = 0

  serve(run: RevisionRun): void {
    this.runs.set(run.id, run)
  }

  async ready(id: string, signal?: AbortSignal): Promise<void> {
    await this.readiness(this.runs.get(id)!, signal)
  }

  async acquire(
    id: string,
    _signal?: AbortSignal,
    options: { instanceId?: string } = {},
  ): Promise<RevisionLease> {
    const lease = this.acquireNow(id, options)
    if (lease === null) throw new PlatformError('workload_not_found', 'not served')
    return lease
  }

  acquireNow(id: string, options: { instanceId?: string } = {}): RevisionLease | null {
    const run = this.runs.get(id)
    if (!run || (options.instanceId !== undefined && options.instanceId !== `instance-of-${id}`)) return null
    this.acquired++
    return {
      instance: { id: `instance-of-${id}` } as unknown as Instance,
      port: run.port,
      program: { argv: [], env: {}, workingDir: '/' },
      asConnection: () => ({ touch() {} }),
      [Symbol.dispose]: () => {
        this.acquired--
      },
    }
  }

  revisionOf(instanceId: string): string | null {
    const id = instanceId.replace(/^instance-of-/, '')
    return this.runs.has(id) ? id : null
  }

  async retire(id: string, options: { now?: boolean } = {}): Promise<void> {
    this.runs.delete(id)
    this.retired.push({ id, now: options.now === true })
  }
}

class TestBuilds implements DeploymentBuilds {
  readonly handlers = new Map<string, Handlers>()
  readonly begun: DeploymentBuild['owner'][] = []
  readonly cancelled: string[] = []

  async begin(owner: DeploymentBuild['owner'], origin: string) {
    this.begun.push(owner)
    return { id: `build-${this.begun.length}`, uploadUrl: `${origin}/-/uploads/${this.begun.length}` }
  }

  async cancel({ kind, name }: { kind: string; name: string }): Promise<void> {
    this.cancelled.push(`${kind}/${name}`)
  }

  on(kind: string, handlers: Handlers): void {
    this.handlers.set(kind, handlers)
  }

  /** The archive of what was asked for last is here. */
  async uploaded(atMs: number): Promise<void> {
    const owner = this.begun.at(-1)!
    await this.handlers.get(owner.kind)!.building({ owner, uploadedAt: atMs })
  }

  async built(settings: Partial<BuiltImage['settings']> = {}): Promise<void> {
    const owner = this.begun.at(-1)!
    await this.handlers.get(owner.kind)!.built(
      { owner, uploadedAt: null },
      {
        image: `${owner.kind}/${owner.name}:${owner.tag}`,
        settings: { ...emptyProjectSettings(), ...settings },
      },
    )
  }

  async failed(message: string): Promise<void> {
    const owner = this.begun.at(-1)!
    await this.handlers.get(owner.kind)!.failed({ owner, uploadedAt: null }, message)
  }
}

class TestImages {
  readonly removed: string[] = []
  /** What is known, by reference. */
  readonly digests = new Map<string, string>([['sandbox/app:v1', 'sha256:1']])
  /** Called before an image is pinned. */
  pinning: (reference: string, dockerConfig: string | undefined) => Promise<void> | void = () => {}

  async look(_workspace: string, reference: string) {
    if (reference.startsWith('registry.example')) return { registry: true, digest: null }
    const digest = this.digests.get(reference)
    if (!digest) throw new PlatformError('bad_request', `${reference} is unknown here`)
    return { registry: false, digest }
  }

  async pin(
    _workspace: string,
    reference: string,
    target: { type: string; name: string; tag: string },
    options: { dockerConfig?: string },
  ) {
    await this.pinning(reference, options.dockerConfig)
    const own = `${target.type}/${target.name}:${target.tag}`
    const digest = this.digests.get(reference) ?? `sha256:${reference}`
    this.digests.set(own, digest)
    return { reference: own, digest, ports: [] as number[] }
  }

  async release(_workspace: string, reference: string): Promise<boolean> {
    this.removed.push(reference)
    this.digests.delete(reference)
    return true
  }
}

/** A platform's deployments, which can be killed and opened again over the same store. */
export class TestDeployments implements AsyncDisposable {
  readonly clock = new FakeClock()
  fleet = new TestFleet()
  builds = new TestBuilds()
  readonly images = new TestImages()
  readonly forgotten: string[] = []
  /** Every address is good, and every secret another. */
  readonly callbacks = {
    checked: [] as string[],
    made: 0,
    async checkAddress(field: string, url: string) {
      this.checked.push(`${field} ${url}`)
    },
    newSecret() {
      return `secret-${++this.made}`
    },
  }
  chance = 0.99
  deployments: Deployments
  readonly store: Store
  readonly #secrets = createSecretBox(new Uint8Array(32).fill(7))
  readonly #directory: string

  private constructor(store: Store, directory: string) {
    this.store = store
    this.#directory = directory
    this.deployments = this.#open()
  }

  static async open(): Promise<TestDeployments> {
    const directory = await mkdtemp(join(tmpdir(), 'hutch-deployments-'))
    const clock = new FakeClock()
    const store = await openSqliteStore({
      path: join(directory, 'hutch.db'),
      clock,
      log: silentLogger,
      durability: 'process',
    })
    const users = new Users({ store, clock })
    const workspaces = new Workspaces({ store, users, heldKinds: [] })
    const { sub } = await users.create({ email: 'a@example.com' })
    await workspaces.create({ name: 'main', ownerSub: sub })
    return new TestDeployments(store, directory)
  }

  #open(): Deployments {
    return new Deployments({
      store: this.store,
      fleet: this.fleet,
      builds: this.builds,
      images: this.images,
      logs: { remove: (workspace, kind, name) => void this.forgotten.push(`${workspace}/${kind}/${name}`) },
      secrets: this.#secrets,
      clock: this.clock,
      log: silentLogger,
      callbacks: this.callbacks,
      random: () => this.chance,
    })
  }

  /** As after kill -9: what is in the store is all there is. */
  async restart(): Promise<void> {
    this.fleet = new TestFleet()
    this.builds = new TestBuilds()
    this.deployments = this.#open()
    await this.deployments.load()
    await this.deployments.open()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.deployments.close()
    await this.store[Symbol.asyncDispose]()
    await rm(this.#directory, { recursive: true, force: true })
  }
}
