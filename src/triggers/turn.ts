import type { NewExecution } from '../executions/index.ts'
import { badRequest, checkRange, checkText, quoted } from '../lib/checks.ts'
import { parseDuration } from '../lib/duration.ts'

/** When a request that is answered later has its turn, as its client wants it. */
type Turn = Pick<NewExecution, 'runAt' | 'priority' | 'concurrency'>

const delayMsMax = 30 * 24 * 60 * 60 * 1000
const priorityMax = 1000
const keyCharactersMax = 255
const atOnceMax = 1000

/** What says so; none of it is passed on. */
export const turnHeaders = {
  delay: 'x-hutch-delay',
  priority: 'x-hutch-priority',
  key: 'x-hutch-concurrency-key',
  atOnce: 'x-hutch-concurrency',
} as const

/** @throws bad_request */
export function turnOf(headers: Headers, nowMs: number): Turn {
  const [delay, priority, key, atOnce] = (['delay', 'priority', 'key', 'atOnce'] as const).map((name) =>
    headers.get(turnHeaders[name]),
  )
  if (atOnce && !key) throw badRequest('X-Hutch-Concurrency: only together with X-Hutch-Concurrency-Key')
  return {
    ...(delay ? { runAt: nowMs + parseDuration('X-Hutch-Delay', delay, delayMsMax) } : {}),
    ...(priority ? { priority: whole('X-Hutch-Priority', priority, -priorityMax, priorityMax) } : {}),
    ...(key
      ? {
          concurrency: {
            key: checkText('X-Hutch-Concurrency-Key', key, keyCharactersMax),
            max: atOnce ? whole('X-Hutch-Concurrency', atOnce, 1, atOnceMax) : 1,
          },
        }
      : {}),
  }
}

function whole(header: string, text: string, min: number, max: number): number {
  if (!/^-?\d{1,9}$/.test(text)) throw badRequest(`${header}: ${quoted(text)} is not a whole number`)
  return checkRange(header, Number(text), min, max)
}
