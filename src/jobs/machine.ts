/** One attempt at a task: an instance of its own, the program in it run to its end, and nothing of both afterwards. */
import { constants } from 'node:os'
import { isRoot, ProgramOutput } from '../deployments/fleet/index.ts'
import { PlatformError } from '../errors.ts'
import { ExecutionStopped } from '../executions/index.ts'
import type { ResolvedImage } from '../images/index.ts'
import type { Instances, NewInstance } from '../instances/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { becomeUser, userEnv } from '../sandboxes/index.ts'
import type { GuestProcess } from '../spec/guest.ts'
import type { Instance } from '../spec/runtime.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import type { Logs } from '../telemetry/index.ts'
import { type Task, taskEnvironment } from './environment.ts'

/** A program that is to end has so long after SIGTERM. */
const stopGraceMs = 5_000
/** For the last words of one that ended. */
const lastWordsMs = 5_000
const pidsMax = 4096
const storageMbMin = 512
/** Of what a program writes, on the host's disk; the logs keep more. */
const outputBytesMax = 8 * 1024 * 1024
const programId = 1
/** Whatever user the program is. */
const volumeMode = 0o1777

export const taskOwnerKind = 'task'

/** What tasks need of those who keep instances. */
export interface MachineHost {
  readonly store: Pick<Store, 'batch'>
  readonly instances: Instances
  readonly images: { resolve(workspace: string, reference: string): Promise<ResolvedImage> }
  readonly logs: Pick<Logs, 'append'>
  readonly clock: Clock
  readonly log: Logger
  readonly region?: string | undefined
}

/** How a program came to its end. */
export type Ending =
  | { how: 'ended'; exitCode: number | null; signal: number | null; outOfMemory: boolean; lines: string[] }
  /** The machine, and the program with it. */
  | { how: 'lost'; outOfMemory: boolean; lines: string[] }
  | { how: 'unstartable'; reason: string }

/**
 * Runs a task's program to its end. When the signal aborts, the program is asked to end, and a little later it and all
 * that it started are ended; then it rejects with the signal's reason.
 * @throws what `images.resolve` and `instances.create` throw, and the signal's reason
 */
export async function runTask(task: Task, host: MachineHost, signal: AbortSignal): Promise<Ending> {
  const { instances, store, images, log } = host
  const resolving = images.resolve(task.workspace, task.order.image)
  let instance: Instance
  try {
    instance = await instances.create(
      { kind: taskOwnerKind, workspace: task.workspace, name: task.job, task: ownerOf(task) },
      resolving.then((image) => specOf(task, image, host.region)),
      (step) => store.batch([step]),
    )
  } finally {
    const image = await resolving.catch(() => null)
    image?.[Symbol.dispose]()
  }
  try {
    using _awake = instances.hold(instance.id, { quiet: true })
    return await runProgram(task, instance, host, signal)
  } finally {
    await removeInstance(instance.id, host).catch((error) =>
      log.warn('the instance of a task could not be ended', { instance: instance.id, error }),
    )
  }
}

/** Everything in it ends with it. */
export async function removeInstance(
  id: string,
  { instances, store, log }: Pick<MachineHost, 'instances' | 'store' | 'log'>,
): Promise<void> {
  if (instances.activity(id) === null) return
  const { gone } = await instances.destroy(id, (step: BatchStep) => store.batch([step]))
  gone.catch((error) => log.warn('an instance of a task was not removed', { instance: id, error }))
}

async function runProgram(
  task: Task,
  instance: Instance,
  host: MachineHost,
  signal: AbortSignal,
): Promise<Ending> {
  signal.throwIfAborted()
  const { instances, clock, log, logs } = host
  const { processes, files } = instance.guest
  const spec = instances.specOf(instance.id)
  if (spec === null) return { how: 'lost', outOfMemory: false, lines: [] }
  for (const { mountPath } of task.order.limits.volumes) {
    await files.makeDirectory(mountPath, { parents: true })
    await files.setMode(mountPath, volumeMode)
  }
  const env = spec.user ? { ...userEnv(await becomeUser(instance.guest, spec.user)), ...spec.env } : spec.env
  const argv = spec.program ?? []
  if (argv.length === 0) return { how: 'unstartable', reason: 'its image names none' }
  try {
    const { workingDir } = spec
    await processes.spawn({ id: programId, argv, env, workingDir, stdin: 'null', outputBytesMax })
  } catch (error) {
    if (!PlatformError.is(error) || error.code !== 'unprocessable') throw error
    return { how: 'unstartable', reason: error.message }
  }
  const { workspace, job: name, executionId: execution, order } = task
  const source = { workspace, kind: 'jobs', name, revision: order.revisionId, instance: instance.id } as const
  using output = new ProgramOutput({
    guest: instance.guest,
    processId: programId,
    after: Number.NEGATIVE_INFINITY,
    sink: (line, stream, at) =>
      logs.append({ ...source, execution, task: String(task.index), stream }, line, at),
    clock,
    log,
  })
  const read = () => atMost(lastWordsMs, output.read, clock)
  const lost = instance.exited.then(({ reason }) => ({ outOfMemory: reason === 'out_of_memory' }))
  const waiting = processes.wait(programId, signal)
  waiting.catch(() => {})
  try {
    const ended = await Promise.race([waiting, lost])
    if (!('exitCode' in ended)) {
      await read()
      return { how: 'lost', ...ended, lines: output.lastLines }
    }
    const outOfMemory = await wasOutOfMemory(ended, instance)
    await read()
    const { exitCode, signal: by } = ended
    return { how: 'ended', exitCode, signal: by, outOfMemory, lines: output.lastLines }
  } catch (error) {
    if (!signal.aborted) {
      // A guest that does not answer any more is as a rule about to be gone.
      const gone = await atMost(lastWordsMs, lost, clock)
      if (gone !== null) return { how: 'lost', ...gone, lines: output.lastLines }
      throw error
    }
    // A platform that stops takes the instances along anyway.
    if (!(signal.reason instanceof ExecutionStopped && signal.reason.why === 'closing')) {
      await terminate(instance, clock).catch(() => {})
      await read()
    }
    throw signal.reason
  }
}

/** Gently at first; what is left of it goes with its instance. */
async function terminate({ guest: { processes } }: Instance, clock: Clock): Promise<void> {
  await processes.signal(programId, constants.signals.SIGTERM, 'group')
  await atMost(stopGraceMs, processes.wait(programId), clock)
}

/** Null when it took longer, or came to nothing. */
async function atMost<Result>(ms: number, work: Promise<Result>, clock: Clock): Promise<Result | null> {
  const late = new AbortController()
  const result = await Promise.race([
    work.catch(() => null),
    clock.sleep(ms, late.signal).then(
      () => null,
      () => null,
    ),
  ])
  late.abort()
  return result
}

async function wasOutOfMemory({ signal }: GuestProcess, instance: Instance): Promise<boolean> {
  if (signal !== constants.signals.SIGKILL) return false
  const stats = await instance.stats().catch(() => null)
  return (stats?.oomKills ?? 0) > 0
}

function ownerOf({ order, executionId, index }: Task) {
  return { revisionId: order.revisionId, executionId, index, labels: order.labels }
}

function specOf(task: Task, image: ResolvedImage, region: string | undefined): NewInstance {
  const { memoryMb, limits } = task.order
  const volumesMb = limits.volumes.reduce((sum, { sizeMb }) => sum + sizeMb, 0)
  const diskMb = Math.floor((memoryMb * limits.diskPercent) / 100)
  return {
    hostname: task.job,
    image: image.root,
    memoryMb,
    storageMb: Math.max(storageMbMin, diskMb) + volumesMb,
    pidsMax,
    env: taskEnvironment(task, image.env, region),
    workingDir: image.workingDir,
    program: [...image.entrypoint, ...image.command],
    ...(isRoot(image.user) ? {} : { user: image.user }),
    ...(image.snapshotId === undefined ? {} : { snapshotId: image.snapshotId }),
    ephemeral: true,
    withoutApi: true,
  }
}
