import { PlatformError } from '../errors.ts'
import type { Work } from '../spec/queue.ts'
import type { NewExecution } from './execution.ts'
import { bodyOf, isEnded } from './records.ts'

/** What doing it once more asks for. @throws conflict for one that goes on, or is a part */
export function replayOf(work: Work, input: Uint8Array | null): NewExecution {
  const { id, workspace, group } = work
  if (!isEnded(work)) {
    throw new PlatformError('conflict', `the execution "${id}" goes on: it can be replayed once it has ended`)
  }
  if (group !== null) {
    throw new PlatformError('conflict', `the execution "${id}" is a part of "${group}": replay that`)
  }
  const body = bodyOf(work)
  return {
    workspace,
    source: work.queue,
    target: body.target,
    input: input ?? new Uint8Array(),
    labels: { ...work.labels, replayOf: id },
    note: body.given ?? {},
    priority: work.priority,
    timeoutMs: body.timeoutMs,
    retry: { attemptsMax: body.attemptsMax, delayMs: body.delayMs, delayMsMax: body.delayMsMax },
    ...(body.targetMax === undefined ? {} : { targetRunningMax: body.targetMax }),
    ...(body.concurrency ? { concurrency: body.concurrency } : {}),
    ...(body.callback ? { callback: body.callback } : {}),
  }
}
