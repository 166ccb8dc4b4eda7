import { PlatformError } from '../../errors.ts'
import type { InstanceLease, NewInstance } from '../../instances/index.ts'
import type { Instance } from '../../spec/runtime.ts'
import type { Logs } from '../../telemetry/index.ts'
import { environmentOf } from './environment.ts'
import { type Ending, failureOf } from './failures.ts'
import { ProgramOutput } from './output.ts'
import {
  createInstance,
  destroyInstance,
  environmentIn,
  instanceSpec,
  lastWords,
  type ProgramHost,
  programId,
  spawnProgram,
  stopGraceMs,
  terminateProgram,
  wasOutOfMemory,
} from './own-program.ts'
import type { RevisionProgram, RevisionRun } from './run.ts'

/** Of a start, until the program listens. */
const listenMsMax = 120_000
const listenPollMsMin = 2
const listenPollMsMax = 50
export const revisionOwnerKind = 'revision'

/** What instances of revisions need of those who keep them. */
export interface MemberHost extends ProgramHost {
  readonly logs: Pick<Logs, 'append' | 'query'>
  readonly region?: string | undefined
  /** Told, now and then, of a revision that crashes over and over. */
  crashed?(run: RevisionRun, message: string): void
  /** Says whether a program that speaks over its standard streams can be used; absent: it is not asked. @throws unprocessable */
  probeStdio?(
    run: RevisionRun,
    instance: Instance,
    program: RevisionProgram,
    signal: AbortSignal,
  ): Promise<void>
}

/** One instance of a revision, and the program in it, from its start to its end. */
export class Member {
  /** Who use it now. */
  load = 0
  state: 'starting' | 'ready' | 'leaving' = 'starting'
  /** By the monotonic clock. */
  readyAt = 0
  /** Keeps it from resting. */
  awake: Disposable | null = null
  readonly run: RevisionRun
  readonly #host: MemberHost
  readonly #ended = Promise.withResolvers<PlatformError>()
  readonly #leaving = new AbortController()
  #instanceId: string | null = null
  #instance: Instance | null = null
  #program: RevisionProgram | null = null
  #output: ProgramOutput | null = null
  /** Its program was begun here, not by an earlier life. */
  #spawned = false
  #ending = false
  #beginning: Promise<void> = Promise.resolve()
  #removeListener = () => {}
  #gone: Promise<void> | null = null

  constructor(run: RevisionRun, host: MemberHost) {
    this.run = run
    this.#host = host
    this.#ended.promise.catch(() => {})
  }

  /** Null until there is one. */
  get instanceId(): string | null {
    return this.#instanceId
  }

  /** Resolves, with why, when it ended by itself. */
  get ended(): Promise<PlatformError> {
    return this.#ended.promise
  }

  get program(): RevisionProgram {
    if (this.#program === null) throw new Error('an instance that did not start has no program')
    return this.#program
  }

  /** Rests now. */
  get resting(): boolean {
    return this.#instanceId !== null && this.#host.instances.activity(this.#instanceId)?.standby === true
  }

  /**
   * Resolves when it can be used. When it rejects nothing is left of it.
   * @throws unprocessable when the program is to blame, and what `instances.create` and `images.resolve` throw
   */
  start(): Promise<void> {
    this.#beginning = this.#start()
    return this.#beginning
  }

  async #start(): Promise<void> {
    const { run } = this
    const { instances, region } = this.#host
    try {
      const instance = await createInstance(
        ownerOf(run),
        run.image,
        (image) =>
          instanceSpec(image, {
            hostname: run.name,
            memoryMb: run.memoryMb,
            diskMb: run.memoryMb / 2,
            env: environmentOf(run, image.env, region),
          }),
        this.#host,
      )
      this.#instanceId = instance.id
      using _awake = instances.hold(instance.id, { quiet: true })
      await this.#untilEnded(this.#begin(instance))
      this.#becomeReady()
    } catch (error) {
      await this.#destroy()
      throw error
    }
  }

  async #begin(instance: Instance): Promise<void> {
    this.#leaving.signal.throwIfAborted()
    const spec = this.#host.instances.specOf(instance.id)
    if (spec === null) throw new PlatformError('workload_not_found', 'the instance is gone')
    this.#takeUp(instance, spec, await environmentIn(instance, spec))
    if (this.run.transport === 'stdio') {
      await this.#host.probeStdio?.(this.run, instance, this.program, this.#leaving.signal)
      return
    }
    this.#spawned = true
    const reason = await spawnProgram(instance, this.program)
    if (reason !== null) throw this.#failure({ how: 'unstartable', reason })
    // It may have ended already, heard of together with its beginning.
    if (this.#output === null) this.#follow(instance, Number.NEGATIVE_INFINITY)
    await Promise.all([instance.address(this.run.port), this.#listens(instance)])
  }

  /**
   * Takes up an instance that an earlier life of the platform started. When it rejects nothing is left of it.
   * @throws workload_unavailable when it does not run any more
   */
  adopt(instanceId: string): Promise<void> {
    this.#instanceId = instanceId
    this.#beginning = this.#untilEnded(this.#adopt(instanceId)).then(
      () => this.#becomeReady(),
      async (error) => {
        await this.#destroy()
        throw error
      },
    )
    return this.#beginning
  }

  async #adopt(instanceId: string): Promise<void> {
    const { instances } = this.#host
    using lease = await instances.acquireAsIs(instanceId)
    const { instance, spec } = lease
    const stdio = this.run.transport === 'stdio'
    const gone = new PlatformError('workload_unavailable', 'the program does not run any more')
    // Whoever asks a guest that stands still waits. What ran in it does so still, but not as somebody else.
    if (instance.frozen && spec.user) throw gone
    if (instance.frozen) {
      this.#takeUp(instance, spec, spec.env)
      if (!stdio) this.#follow(instance, await this.#toldUntil(instanceId))
      return
    }
    using _awake = instances.hold(instanceId, { quiet: true })
    this.#takeUp(instance, spec, await environmentIn(instance, spec))
    if (stdio) return
    const running = (await instance.guest.processes.list()).find(({ id }) => id === programId)
    if (!running?.running) throw gone
    this.#follow(instance, await this.#toldUntil(instanceId))
    await this.#listens(instance)
  }

  /** When the newest line was written that is in the logs, in milliseconds since the epoch. */
  async #toldUntil(instance: string): Promise<number> {
    const { workspace, name, kind } = this.run
    const filter = { instance, streams: new Set(['stdout', 'stderr'] as const), limit: 1 }
    const { lines } = await this.#host.logs.query({ workspace, name, kind: `${kind}s` }, filter)
    return lines[0] === undefined ? Number.NEGATIVE_INFINITY : Math.floor(lines[0].atUs / 1000)
  }

  /** Awake, for as long as the lease is held. @throws as `instances.acquire` */
  async wake(signal: AbortSignal | undefined): Promise<InstanceLease> {
    return await this.#host.instances.acquire(this.#instanceId ?? '', signal)
  }

  /** As `wake`, where it is awake; else null. */
  awakeNow(): InstanceLease | null {
    return this.#host.instances.acquireNow(this.#instanceId ?? '')
  }

  /** Ends the program, gently at first, and removes the instance. Idempotent; never rejects. */
  leave(): Promise<void> {
    this.#gone ??= this.#leave()
    return this.#gone
  }

  /** Lets go of it; it goes on running. */
  release(): void {
    this.state = 'leaving'
    this.#ending = true
    this.#leaving.abort(new PlatformError('unavailable', 'the platform is stopping'))
    this.#letGo()
  }

  async #leave(): Promise<void> {
    const wasReady = this.state === 'ready'
    this.state = 'leaving'
    this.#ending = true
    this.#leaving.abort(new PlatformError('workload_unavailable', 'the instance is being ended'))
    await this.#beginning.catch(() => {})
    if (wasReady && this.run.transport !== 'stdio') await this.#terminate().catch(() => {})
    await this.#destroy()
  }

  async #terminate(): Promise<void> {
    const { clock } = this.#host
    using lease = await this.wake(AbortSignal.timeout(stopGraceMs))
    await terminateProgram(lease.instance, clock)
    // What it said last is read before its machine goes.
    await this.#lastWords()
  }

  async #destroy(): Promise<void> {
    this.#ending = true
    this.state = 'leaving'
    this.#leaving.abort(new PlatformError('workload_unavailable', 'the instance is gone'))
    this.#letGo()
    if (this.#instanceId !== null) await destroyInstance(this.#instanceId, this.#host)
  }

  #letGo(): void {
    this.awake?.[Symbol.dispose]()
    this.awake = null
    this.#removeListener()
    this.#output?.[Symbol.dispose]()
  }

  #becomeReady(): void {
    this.#leaving.signal.throwIfAborted()
    this.readyAt = this.#host.clock.monotonic()
    this.state = 'ready'
  }

  #takeUp(instance: Instance, spec: NewInstance, env: Record<string, string>): void {
    this.#instanceId = instance.id
    this.#instance = instance
    this.#program = { argv: spec.program ?? [], env, workingDir: spec.workingDir }
    this.#removeListener = instance.guest.processes.onExit((process) => {
      if (process.id === programId && !process.running) void this.#end(process)
    })
    void instance.exited.then(({ reason }) => this.#lose(reason === 'out_of_memory'))
  }

  #follow(instance: Instance, after: number): void {
    const { run } = this
    const source = {
      workspace: run.workspace,
      kind: `${run.kind}s` as const,
      name: run.name,
      revision: run.id,
      instance: instance.id,
    }
    this.#output = new ProgramOutput({
      guest: instance.guest,
      processId: programId,
      after,
      sink: (line, stream, at) => this.#host.logs.append({ ...source, stream }, line, at),
      clock: this.#host.clock,
      log: this.#host.log,
    })
  }

  async #listens(instance: Instance): Promise<void> {
    const { clock } = this.#host
    const startedAt = clock.monotonic()
    for (;;) {
      if (await instance.listening(this.run.port)) return
      const waitedMs = clock.monotonic() - startedAt
      if (waitedMs >= listenMsMax) throw this.#failure({ how: 'silent', waitedMs })
      const pollMs = Math.min(Math.max(listenPollMsMin, waitedMs / 20), listenPollMsMax)
      await clock.sleep(pollMs, this.#leaving.signal)
    }
  }

  /** What `work` comes to, unless the program ends before that. */
  async #untilEnded(work: Promise<void>): Promise<void> {
    work.catch(() => {})
    await Promise.race([
      work,
      this.#ended.promise.then((error) => {
        throw error
      }),
    ])
  }

  async #end(process: { exitCode: number | null; signal: number | null }): Promise<void> {
    if (this.#ending) return
    this.#ending = true
    const outOfMemory = await wasOutOfMemory(process, this.#instance)
    if (this.#spawned && this.#output === null && this.#instance !== null)
      this.#follow(this.#instance, Number.NEGATIVE_INFINITY)
    await this.#lastWords()
    this.#ended.resolve(this.#failure({ how: 'ended', process, outOfMemory }))
  }

  async #lose(outOfMemory: boolean): Promise<void> {
    if (this.#ending) return
    this.#ending = true
    this.#ended.resolve(this.#failure({ how: 'lost', outOfMemory }))
  }

  async #lastWords(): Promise<void> {
    if (this.#output !== null) await lastWords(this.#output.read, this.#host.clock)
  }

  #failure(ending: Ending): PlatformError {
    return failureOf(this.run, ending, this.readyAt > 0, this.#output?.lastLines ?? [])
  }
}

function ownerOf(run: RevisionRun) {
  const { workspace, name, id, kind } = run
  return { kind: revisionOwnerKind, workspace, name, revision: { id, kind } }
}
