import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { z } from 'zod'
import type { ProcessIdentity } from '../../../guest/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import { isAlive } from '../../helper-process.ts'
import { letGoOn, programsOf, signalAll } from './programs.ts'

/** In the directory of an instance whose programs are stopped: who they are. */
const stoppedName = 'stopped.json'
/** For what a platform that was killed had begun to keep, to be called off. */
const orphanMsMax = 10_000
const orphanStepMs = 20

const identity = z.object({ pid: z.number().int(), startTime: z.number() })
const stoppedRecord = z.object({
  programs: z.array(identity),
  /** Those that had been stopped before, and stay so. */
  before: z.array(identity),
  /** Who keeps their memory just now. */
  helper: identity.nullable(),
})
type Stopped = z.infer<typeof stoppedRecord>

/** As a whole or not at all. */
export function writeStopped(instanceDir: string, { programs, before, helper }: Stopped): void {
  const path = `${instanceDir}/${stoppedName}`
  const named = (all: Stopped['programs']) => all.map(({ pid, startTime }) => ({ pid, startTime }))
  writeFileSync(
    `${path}.new`,
    JSON.stringify({ programs: named(programs), before: named(before), helper } satisfies Stopped),
    { mode: 0o600 },
  )
  renameSync(`${path}.new`, path)
}

/**
 * Of an instance that this process did not stop itself: its programs go on, once nobody works on them any more. Whoever
 * does was told by the end of that platform to leave them as they were. Answers false where none was stopped.
 */
export async function releaseStopped(
  instanceDir: string,
  process1: ProcessIdentity,
  clock: Clock,
): Promise<boolean> {
  const path = `${instanceDir}/${stoppedName}`
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch {
    return false
  }
  const { programs, before, helper } = stoppedIn(text) ?? {
    ...{ programs: programsOf(process1), before: [], helper: null },
  }
  if (helper !== null) await awaitEnd(helper, clock)
  letGoOn(programs)
  signalAll(before, 'SIGSTOP')
  rmSync(path, { force: true })
  return true
}

/** Null where it is damaged, as a host without power leaves it. */
function stoppedIn(text: string): Stopped | null {
  try {
    return stoppedRecord.parse(JSON.parse(text))
  } catch {
    return null
  }
}

async function awaitEnd(helper: ProcessIdentity, clock: Clock): Promise<void> {
  const ended = async () => {
    const deadline = clock.monotonic() + orphanMsMax
    while (isAlive(helper) && clock.monotonic() < deadline) await clock.sleep(orphanStepMs)
    return !isAlive(helper)
  }
  if (await ended()) return
  // CRIU ends with it.
  signalAll([helper], 'SIGKILL')
  await ended()
}

export function forgetStopped(instanceDir: string): void {
  rmSync(`${instanceDir}/${stoppedName}`, { force: true })
}
