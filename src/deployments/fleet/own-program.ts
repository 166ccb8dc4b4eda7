/** What instances have in common that are there for one program: those of revisions, and those of tasks. */
import { constants } from 'node:os'
import { PlatformError } from '../../errors.ts'
import type { ResolvedImage } from '../../images/index.ts'
import type { InstanceOwner, Instances, NewInstance } from '../../instances/index.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import { becomeUser, userEnv } from '../../sandboxes/index.ts'
import type { GuestProcess } from '../../spec/guest.ts'
import type { Instance } from '../../spec/runtime.ts'
import type { BatchStep, Store } from '../../spec/store.ts'

/** Its process id, as the guest counts. */
export const programId = 1
/** One that is to end has so long after SIGTERM. */
export const stopGraceMs = 5_000
/** For the last words of one that ended. */
const lastWordsMs = 5_000
const pidsMax = 4096
const storageMbMin = 512
/** Of what a program writes, on the host's disk; the logs keep more. */
const outputBytesMax = 8 * 1024 * 1024
/** Of a command, in a message. */
const shownCharactersMax = 200
const rootUsers = new Set(['', 'root', '0', 'root:root', '0:0'])

/** Whether whom an image names is whom programs are run as anyway. */
export function isRoot(user: string): boolean {
  return rootUsers.has(user)
}

/** What such instances need of those who keep them. */
export interface ProgramHost {
  readonly store: Pick<Store, 'batch'>
  readonly instances: Instances
  readonly images: { resolve(workspace: string, reference: string): Promise<ResolvedImage> }
  readonly clock: Clock
  readonly log: Logger
}

/** Made while its image is looked up. @throws what `images.resolve` and `instances.create` throw */
export async function createInstance(
  owner: InstanceOwner,
  image: string,
  spec: (image: ResolvedImage) => NewInstance,
  { instances, store, images }: Pick<ProgramHost, 'instances' | 'store' | 'images'>,
): Promise<Instance> {
  const resolving = images.resolve(owner.workspace, image)
  try {
    return await instances.create(owner, resolving.then(spec), (step) => store.batch([step]))
  } finally {
    const resolved = await resolving.catch(() => null)
    resolved?.[Symbol.dispose]()
  }
}

/** With the image's own program. `diskMb` is raised to the least that there is, `volumesMb` come on top. */
export function instanceSpec(
  image: ResolvedImage,
  {
    diskMb,
    volumesMb = 0,
    ...own
  }: Pick<NewInstance, 'hostname' | 'memoryMb' | 'env'> & { diskMb: number; volumesMb?: number },
): NewInstance {
  return {
    ...own,
    image: image.root,
    storageMb: Math.max(storageMbMin, Math.floor(diskMb)) + volumesMb,
    pidsMax,
    workingDir: image.workingDir,
    program: [...image.entrypoint, ...image.command],
    ...(isRoot(image.user) ? {} : { user: image.user }),
    ...(image.snapshotId === undefined ? {} : { snapshotId: image.snapshotId }),
    ephemeral: true,
    withoutApi: true,
  }
}

/** From here on what is done inside is done as the user that the spec names, whose own variables stand below the spec's. */
export async function environmentIn(
  { guest }: Pick<Instance, 'guest'>,
  { user, env }: Pick<NewInstance, 'user' | 'env'>,
): Promise<Record<string, string>> {
  return user ? { ...userEnv(await becomeUser(guest, user)), ...env } : env
}

/** Null once it runs, else why it cannot be started. */
export async function spawnProgram(
  { guest }: Pick<Instance, 'guest'>,
  program: { argv: string[]; env: Record<string, string>; workingDir: string },
): Promise<string | null> {
  if (program.argv.length === 0) return 'its image names none'
  try {
    await guest.processes.spawn({ id: programId, ...program, stdin: 'null', outputBytesMax })
    return null
  } catch (error) {
    if (!PlatformError.is(error) || error.code !== 'unprocessable') throw error
    return `${error.message} (${program.argv.join(' ').slice(0, shownCharactersMax)})`
  }
}

/** Gently; what is left of it goes with its instance. */
export async function terminateProgram(
  { guest: { processes } }: Pick<Instance, 'guest'>,
  clock: Clock,
): Promise<void> {
  await processes.signal(programId, constants.signals.SIGTERM, 'group')
  await atMost(stopGraceMs, (late) => processes.wait(programId, late), clock)
}

/** What a program that ended said last, and is still on its way. */
export function lastWords<Word>(words: Promise<Word>, clock: Clock): Promise<Word | null> {
  return atMost(lastWordsMs, () => words, clock)
}

/** Null when it took longer, or came to nothing. */
async function atMost<Result>(
  ms: number,
  work: (late: AbortSignal) => Promise<Result>,
  clock: Clock,
): Promise<Result | null> {
  const late = new AbortController()
  const nothing = () => null
  const result = await Promise.race([
    work(late.signal).catch(nothing),
    clock.sleep(ms, late.signal).then(nothing, nothing),
  ])
  late.abort()
  return result
}

export async function wasOutOfMemory(
  { signal }: Pick<GuestProcess, 'signal'>,
  instance: Pick<Instance, 'stats'> | null,
): Promise<boolean> {
  if (signal !== constants.signals.SIGKILL || instance === null) return false
  const stats = await instance.stats().catch(() => null)
  return (stats?.oomKills ?? 0) > 0
}

/** With everything in it; resolves once that is sure. Idempotent; what fails is logged, and is made up for by the next start. */
export async function destroyInstance(
  id: string,
  { instances, store, log }: Pick<ProgramHost, 'instances' | 'store' | 'log'>,
): Promise<void> {
  if (instances.activity(id) === null) return
  try {
    const { gone } = await instances.destroy(id, (step: BatchStep) => store.batch([step]))
    gone.catch((error) => log.warn('an instance was not removed', { instance: id, error }))
  } catch (error) {
    log.warn('an instance could not be ended', { instance: id, error })
  }
}
