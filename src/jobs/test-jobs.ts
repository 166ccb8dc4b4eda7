/** For the tests of this folder: jobs on a real store, whose programs are functions of the test. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { JobRun } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import { Executions } from '../executions/index.ts'
import type { ResolvedImage } from '../images/index.ts'
import { Instances } from '../instances/index.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { HurriedClock } from '../lib/test-clock.ts'
import { type FakeProgram, type FakeRuntime, fakeRuntime } from '../runtimes/fake/index.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Logs } from '../telemetry/index.ts'
import { Jobs } from './index.ts'

export class TestJobs implements AsyncDisposable {
  readonly clock = new HurriedClock()
  readonly dir = mkdtempSync(join(tmpdir(), 'hutch-jobs-'))
  readonly runtime: FakeRuntime
  /** What every task runs; told apart by its environment. */
  program: FakeProgram = () => 0
  /** What `instances.create` throws, as long as it is something. */
  noRoom: Error | null = null
  /** The job "work", as it is deployed; null: there is none. */
  run: JobRun | null = {
    revisionId: 'rev-one',
    labels: { team: 'a' },
    image: 'job/work:rev-one',
    env: { FROM_JOB: 'yes', BOTH: 'job' },
    memoryMb: 1024,
    limits: { timeoutSeconds: 600, maxRetries: 0, maxConcurrentTasks: null, diskPercent: 50, volumes: [] },
  }
  jobs!: Jobs
  executions!: Executions
  instances!: Instances
  logs!: Logs
  store!: Store & { queue: ConstructorParameters<typeof Executions>[0]['queue'] }
  readonly #tasksMax: number

  private constructor(tasksMax: number) {
    this.#tasksMax = tasksMax
    this.runtime = fakeRuntime({
      clock: this.clock,
      failCreate: () => this.noRoom,
      programs: { work: (context) => this.program(context) },
    })
  }

  static async open(options: { tasksMax?: number } = {}): Promise<TestJobs> {
    const test = new TestJobs(options.tasksMax ?? 4)
    await test.start()
    return test
  }

  async start(): Promise<void> {
    const { clock, runtime } = this
    const secrets = createSecretBox(new Uint8Array(32).fill(7))
    const log = silentLogger
    const store = await openSqliteStore({
      path: join(this.dir, 'hutch.db'),
      clock,
      log,
      durability: 'process',
    })
    this.store = store
    this.logs = new Logs({ dir: join(this.dir, 'telemetry'), clock, log })
    this.instances = new Instances({ store, runtime, secrets, clock, log })
    const { instances, logs } = this
    this.executions = new Executions({
      ...{ queue: store.queue, clock, log },
      ...{
        waitingMax: 100_000,
        bytesMax: 1024 ** 3,
        keptMs: 7 * 24 * 3600 * 1000,
        keptMax: 100_000,
        random: () => 0.5,
      },
    })
    this.jobs = new Jobs({
      ...{ store, instances, logs, clock, log, secrets, executions: this.executions },
      images: { resolve: async () => image() },
      deployments: {
        jobRun: async () => this.#required(),
        get: async () => this.#required() as never,
      },
      tasksMax: this.#tasksMax,
    })
    await instances.recover()
    await this.jobs.open()
    await this.executions.open()
  }

  /** Lets go of everything as an end without warning does: nothing is written any more, and what runs goes on. */
  async kill(): Promise<void> {
    await this.store[Symbol.asyncDispose]()
    await this.executions.close().catch(() => {})
  }

  /** Once nothing of it goes on. */
  async ended(executionId: string) {
    await this.executions.ended('main', this.idOf(executionId), { timeoutMs: 120_000_000 })
    return this.jobs.get('main', 'work', executionId)
  }

  idOf(executionId: string): string {
    return this.executions.get('main', executionId) === null ? `main.work.${executionId}` : executionId
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.executions.close()
    await this.instances.close({ keepInstances: false })
    await this.logs.close()
    await this.store[Symbol.asyncDispose]()
    rmSync(this.dir, { recursive: true, force: true })
  }

  #required(): JobRun {
    if (this.run !== null) return this.run
    throw new PlatformError('not_found', 'there is no job "work"')
  }
}

function image(): ResolvedImage {
  return {
    reference: 'job/work:rev-one',
    root: { digest: 'sha256:test', layers: ['/layer'], mounts: [] },
    env: { PATH: '/bin', FROM_IMAGE: 'yes', BL_WORKSPACE: 'not this' },
    workingDir: '/app',
    user: '',
    entrypoint: ['work'],
    command: ['--quick'],
    ports: [],
    [Symbol.dispose]() {},
  }
}
