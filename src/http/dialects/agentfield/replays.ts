/** What a run takes over from the one that it repeats. */
import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import { runSource } from './sources.ts'
import { shownId } from './view.ts'

/** Of a run that is looked at. */
const executionsMax = 1000
const pageMax = 200

/** By which a run says what it may take over, and its agents hand that on. */
const replayHeaders = {
  replayRun: 'x-agentfield-replay-source-run-id',
  replayBefore: 'x-agentfield-replay-before-execution-id',
  replayMode: 'x-agentfield-replay-mode',
} as const
const headerCharactersMax = 256

/** What a call says of the run that it repeats, for its labels. @throws bad_request */
export function replayLabels(headers: Headers): Record<string, string> {
  const labels: Record<string, string> = {}
  for (const [label, header] of Object.entries(replayHeaders)) {
    const value = headers.get(header)?.trim()
    if (!value) continue
    if (value.length > headerCharactersMax)
      throw new PlatformError('bad_request', `${header}: must be at most ${headerCharactersMax} characters`)
    labels[label] = value
  }
  return labels
}

/** The same for its agent. */
export function replayContext(labels: Execution['labels']): Record<string, string> {
  return Object.fromEntries(
    Object.entries(replayHeaders).flatMap(([label, header]) => {
      const value = labels[label]
      return value === undefined ? [] : [[header, value]]
    }),
  )
}

/** What the run that is repeated answered to the same call; null: it is to be asked. */
export function answeredBefore(
  executions: Pick<Executions, 'get' | 'list' | 'input' | 'result'>,
  { workspace, id, labels, target }: Execution,
  input: Uint8Array,
): { from: string; result: Uint8Array } | null {
  const { replayRun, replayBefore, replayMode, parent, reasoner } = labels
  // What is begun anew is what somebody wants done again; what it calls is not.
  if (replayRun === undefined || parent === undefined || replayMode === 'none') return null
  const before = replayMode === 'all-succeeded' ? null : executions.get(workspace, replayBefore ?? '')
  for (const one of ofRun(executions, workspace, replayRun)) {
    const isSame = one.id !== id && one.target.name === target.name && one.labels.reasoner === reasoner
    if (!isSame || one.status !== 'succeeded' || one.labels.parent === undefined) continue
    if (!isIn(one, before)) continue
    const given = executions.input(workspace, one.id)
    const result = executions.result(workspace, one.id)
    if (given !== null && result !== null && Buffer.compare(given, input) === 0)
      return { from: shownId(one), result }
  }
  return null
}

/** What succeeded by when the one that broke was over. */
function isIn({ endedAt }: Execution, before: Execution | null): boolean {
  const until = before?.endedAt ?? null
  return until === null || (endedAt !== null && endedAt <= until)
}

/** From the first on. */
export function* ofRun(
  executions: Pick<Executions, 'list'>,
  workspace: string,
  run: string,
): Iterable<Execution> {
  let cursor = ''
  for (let count = 0; count < executionsMax; count += pageMax) {
    const page = executions.list(
      workspace,
      { source: runSource, labels: { run } },
      { limit: pageMax, sort: 'oldest', ...(cursor === '' ? {} : { cursor }) },
    )
    yield* page.data
    cursor = page.nextCursor
    if (cursor === '') return
  }
}
