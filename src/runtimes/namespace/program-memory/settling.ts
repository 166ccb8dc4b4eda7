import type { GuestClient, ProcessIdentity } from '../../../guest/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { InstanceCgroup } from '../cgroups.ts'
import type { Stream } from './criu.ts'
import type { MemoryRecord } from './index.ts'
import { allStopped, isAtRest, isWaiting, link, type Program, programsOf, signalAll } from './programs.ts'

const stepMsMin = 1
const stepMsMax = 50
export const streamNames = ['stdin', 'stdout', 'stderr'] as const

/** An instance, as far as its memory is concerned. */
export interface MemoryInstance {
  /** Its directory. */
  dir: string
  process1: ProcessIdentity
  guest: GuestClient
  group: InstanceCgroup
  uidBase: number
  /** Its limit; absent: not known. */
  memoryMb: number | undefined
}

/**
 * Frozen before and after. Who began a program and waits for that to be executed cannot be kept: programs are stopped,
 * but for those that are waited for, which go on until they are executed. Process 1 passes on what they said, and tells
 * what it knows of them. What undoes its stop by itself is no matter: all are frozen at once in the end.
 */
export async function settle(
  { process1, group, guest }: MemoryInstance,
  toStop: (found: Program[]) => Program[],
  { clock, msMax, signal }: { clock: Clock; msMax: number; signal?: AbortSignal | undefined },
): Promise<Known | { reason: string }> {
  const deadline = clock.monotonic() + msMax
  /** Once each: a second one would wait, and be heard in the middle of what CRIU has it do. */
  const told = new Set<number>()
  const stop = (programs: Program[]) => {
    signalAll(
      programs.filter(({ pid }) => !told.has(pid)),
      'SIGSTOP',
    )
    for (const { pid } of programs) told.add(pid)
  }
  stop(toStop(programsOf(process1)))
  await group.thaw()
  try {
    for (let stepMs = stepMsMin; ; stepMs = Math.min(stepMs * 2, stepMsMax)) {
      await clock.sleep(stepMs, signal)
      const programs = programsOf(process1)
      if (allStopped(programs)) break
      if (clock.monotonic() > deadline) return { reason: 'its programs did not stop' }
      const waiting = new Set(programs.filter(({ pid }) => isWaiting(pid)).map(({ pid }) => pid))
      const stopping = toStop(programs)
      stop(stopping.filter(({ parent }) => !waiting.has(parent)))
      const begun = stopping.filter(({ pid, parent }) => waiting.has(parent) && told.has(pid))
      signalAll(begun, 'SIGCONT')
      for (const { pid } of begun) told.delete(pid)
    }
    const known = await soon(
      clock,
      deadline,
      (async () => (await keptElsewhere(guest)) ?? (await knownOf(guest, process1)))(),
    )
    if (typeof known === 'string') return { reason: known }
    if (known === null) return { reason: 'it did not answer in time' }
    for (let stepMs = stepMsMin; ; stepMs = Math.min(stepMs * 2, stepMsMax)) {
      await group.freeze()
      // In the middle of something it has what is in no pipe any more, and in no file yet.
      if (isAtRest(process1)) return known
      if (clock.monotonic() > deadline) return { reason: 'what its programs say is on its way' }
      await group.thaw()
      await clock.sleep(stepMs, signal)
    }
  } finally {
    await group.freeze()
  }
}

/** Null: not before the deadline. */
export async function soon<Result>(
  clock: Clock,
  deadline: number,
  work: Promise<Result>,
): Promise<Result | null> {
  work.catch(() => {})
  const answered = new AbortController()
  try {
    const late = clock.sleep(Math.max(0, deadline - clock.monotonic()), answered.signal)
    return await Promise.race([work, late.then(() => null)])
  } finally {
    answered.abort()
  }
}

export type Known = Awaited<ReturnType<typeof knownOf>>

/** What process 1 knows of, but for what is on a terminal: who sat at that does not sit at that of a copy. */
async function knownOf(guest: GuestClient, process1: ProcessIdentity) {
  const processes: MemoryRecord['processes'] = []
  const terminals = new Set<number>()
  const streams: Stream[] = []
  let mark = 0
  for (const process of await guest.processes.list()) {
    const has = await guest.processes.adoptions.descriptors(process.id)
    mark = has.mark
    if (has.pty) {
      if (process.running) terminals.add(process.pid)
      continue
    }
    const [stdin = null, stdout = null, stderr = null] = streamNames.map((name) => {
      const descriptor = has[name]
      if (descriptor === null) return null
      const key = link(`${process1.pid}/fd/${descriptor}`)
      if (key !== null) streams.push({ descriptor, key })
      return key
    })
    processes.push({ process, streams: { stdin, stdout, stderr } })
  }
  return { processes, terminals, streams, mark }
}

/** What programs may have left in memory that is no program's; null: nothing. */
async function keptElsewhere({ files }: GuestClient): Promise<string | null> {
  for await (const entries of files.list('/dev/shm')) {
    if (entries.length > 0) return 'there are files in /dev/shm'
  }
  for (const kind of ['shm', 'sem', 'msg']) {
    const { body } = await files.read(`/proc/sysvipc/${kind}`)
    // The first line says what those behind it are.
    if ((await new Response(body).text()).trim().includes('\n')) return `there is System V ipc (${kind})`
  }
  return null
}

export function isText(value: string | null): value is string {
  return value !== null
}
