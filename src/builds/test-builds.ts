import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { BuildRequest, BuildResult } from '../builder/index.ts'
import { silentLogger } from '../lib/log.ts'
import { emptyProjectSettings } from '../lib/project-settings.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { Builds, type BuildsOptions, type BuildView } from './index.ts'

/** What a test opened, ended behind it, the last first. */
export const ends: (() => unknown)[] = []
export const agent = { workspace: 'main', kind: 'agent', name: 'greeter', tag: 'rev-1' }
export const zip = Buffer.from('PK\u0003\u0004 and the files')
export const type = 'application/zip'
export const streamOf = (bytes: Uint8Array) => new Blob([bytes as Uint8Array<ArrayBuffer>]).stream()

interface Job {
  request: BuildRequest
  end(error?: Error): void
}

/** What outlives a platform: its store, its directory, its clock. */
export class Host {
  readonly dir = mkdtempSync(join(tmpdir(), 'hutch-builds-'))
  readonly clock = new FakeClock()
  readonly said: string[] = []
  store!: Store

  static async open(): Promise<Host> {
    const host = new Host()
    host.store = await openSqliteStore({
      path: join(host.dir, 'hutch.db'),
      clock: host.clock,
      log: silentLogger,
      durability: 'process',
    })
    const users = new Users({ store: host.store, clock: host.clock })
    const { sub } = await users.create({ email: 'admin@example.com' })
    const workspaces = new Workspaces({ store: host.store, users, heldKinds: [] })
    for (const name of ['main', 'other']) await workspaces.create({ name, ownerSub: sub })
    ends.push(async () => {
      await host.store[Symbol.asyncDispose]()
      rmSync(host.dir, { recursive: true, force: true })
    })
    return host
  }

  /** A platform's life. `crash` instead of `close` leaves everything as it stands. */
  async live(options: Partial<BuildsOptions> = {}): Promise<Life> {
    const life = new Life(this, options)
    await life.builds.open()
    return life
  }
}

export class Life {
  readonly builds: Builds
  readonly jobs: Job[] = []
  readonly told: string[] = []
  readonly logged: string[] = []
  #changed = Promise.withResolvers<void>()
  /** Called before a handler; what it throws is thrown. */
  gate: (what: string, build: BuildView) => Promise<void> | void = () => {}

  constructor(host: Host, options: Partial<BuildsOptions>) {
    this.builds = new Builds({
      store: host.store,
      clock: host.clock,
      log: silentLogger,
      secrets: createSecretBox(new Uint8Array(32)),
      dir: join(host.dir, 'builds'),
      builder: { build: (request) => this.#build(request) },
      logs: { append: (source, line) => void this.logged.push(`${source.kind}/${source.name} ${line}`) },
      ...options,
    })
    for (const kind of ['agent', 'function', 'image'])
      this.builds.on(kind, {
        building: (build) => this.#tell('building', build),
        built: (build, { image }) => this.#tell(`built ${image}`, build),
        failed: (build, message) => this.#tell(`failed ${message}`, build),
        redact: async () => ['hunter2'],
      })
    ends.push(() => this.builds.close())
  }

  async #tell(what: string, build: BuildView): Promise<void> {
    await this.gate(what, build)
    this.told.push(`${build.owner.name}:${build.owner.tag} ${what}`)
    this.#change()
  }

  #build(request: BuildRequest): Promise<BuildResult> {
    const { promise, resolve, reject } = Promise.withResolvers<BuildResult>()
    const image = `${request.kind}/${request.name}:${request.tag}`
    const end = (error?: Error) =>
      error ? reject(error) : resolve({ image, language: 'typescript', settings: emptyProjectSettings() })
    request.signal.addEventListener('abort', () => reject(request.signal.reason))
    this.jobs.push({ request, end })
    this.#change()
    return promise
  }

  #change(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers()
  }

  async until(done: () => boolean): Promise<void> {
    while (!done()) await this.#changed.promise
  }

  job(tag: string): Job | undefined {
    return this.jobs.find(({ request }) => request.tag === tag)
  }

  async jobOf(tag: string): Promise<Job> {
    await this.until(() => this.job(tag) !== undefined)
    return this.job(tag)!
  }

  async begin(owner: Parameters<Builds['begin']>[0] = agent): Promise<{ id: string; token: string }> {
    const { id, uploadUrl } = await this.builds.begin(owner, 'http://localhost:4400')
    return { id, token: uploadUrl.split('/').at(-1)! }
  }

  put(token: string, bytes: Uint8Array = zip, more: { type?: string; length?: number | null } = {}) {
    const length = more.length === undefined ? bytes.length : more.length
    return this.builds.receive(token, streamOf(bytes), more.type ?? type, length)
  }

  async upload(owner: Parameters<Builds['begin']>[0] = agent): Promise<string> {
    const { id, token } = await this.begin(owner)
    await this.put(token)
    return id
  }
}

export const archivesIn = (host: Host) =>
  readdirSync(join(host.dir, 'builds')).filter((name) => name !== 'partial' || partialIn(host).length > 0)
export const partialIn = (host: Host) =>
  existsSync(join(host.dir, 'builds/partial')) ? readdirSync(join(host.dir, 'builds/partial')) : []
