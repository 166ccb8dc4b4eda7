/** One attempt at a task: an instance of its own, the program in it run to its end, and nothing of both afterwards. */
import {
  createInstance,
  destroyInstance,
  environmentIn,
  instanceSpec,
  lastWords,
  type ProgramHost,
  ProgramOutput,
  programId,
  spawnProgram,
  terminateProgram,
  wasOutOfMemory,
} from '../deployments/fleet/index.ts'
import { ExecutionStopped } from '../executions/index.ts'
import type { ResolvedImage } from '../images/index.ts'
import type { NewInstance } from '../instances/index.ts'
import type { Instance } from '../spec/runtime.ts'
import type { Logs } from '../telemetry/index.ts'
import { type Task, taskEnvironment } from './environment.ts'

/** Whatever user the program is. */
const volumeMode = 0o1777

export const taskOwnerKind = 'task'

/** What tasks need of those who keep instances. */
export interface MachineHost extends ProgramHost {
  readonly logs: Pick<Logs, 'append'>
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
  const { workspace, job: name, order } = task
  const owner = { kind: taskOwnerKind, workspace, name, task: ownerOf(task) }
  const instance = await createInstance(owner, order.image, (image) => specOf(task, image, host.region), host)
  try {
    using _awake = host.instances.hold(instance.id, { quiet: true })
    return await runProgram(task, instance, host, signal)
  } finally {
    await destroyInstance(instance.id, host)
  }
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
  const env = await environmentIn(instance, spec)
  const reason = await spawnProgram(instance, { argv: spec.program ?? [], env, workingDir: spec.workingDir })
  if (reason !== null) return { how: 'unstartable', reason }
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
  const read = () => lastWords(output.read, clock)
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
      const gone = await lastWords(lost, clock)
      if (gone !== null) return { how: 'lost', ...gone, lines: output.lastLines }
      throw error
    }
    // A platform that stops takes the instances along anyway.
    if (!(signal.reason instanceof ExecutionStopped && signal.reason.why === 'closing')) {
      await terminateProgram(instance, clock).catch(() => {})
      await read()
    }
    throw signal.reason
  }
}

function ownerOf({ order, executionId, index }: Task) {
  return { revisionId: order.revisionId, executionId, index, labels: order.labels }
}

function specOf(task: Task, image: ResolvedImage, region: string | undefined): NewInstance {
  const { memoryMb, limits } = task.order
  const volumesMb = limits.volumes.reduce((sum, { sizeMb }) => sum + sizeMb, 0)
  return instanceSpec(image, {
    hostname: task.job,
    memoryMb,
    diskMb: (memoryMb * limits.diskPercent) / 100,
    volumesMb,
    env: taskEnvironment(task, image.env, region),
  })
}
