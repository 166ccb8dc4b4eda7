import { z } from 'zod'
import type { Executions } from '../../executions/index.ts'
import { type Route, route } from '../route.ts'

const metric = z.lazy(() =>
  z.object({
    source: z.string(),
    waiting: z.number(),
    running: z.number(),
    reported: z.number(),
    oldestWaitingMs: z.number(),
    acceptedTotal: z.number(),
    startedTotal: z.number(),
    retriedTotal: z.number(),
    endedTotal: z.record(z.string(), z.number()),
    acceptedPerSecond: z.number(),
    startedPerSecond: z.number(),
    endedPerSecond: z.number(),
  }),
)
type Metric = ReturnType<Executions['metrics']>[number]

/** How much work waits and is done, for people and for Prometheus. */
export function metricsRoutes(executions: Executions): Route[] {
  const shared = { access: 'write', errors: 'control', tag: 'executions' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/executions/metrics',
      summary: 'How many executions wait and run, how long the oldest does, and how many there were',
      answer: z.object({ sources: z.array(metric) }),
      handle: ({ workspace }) => ({ sources: executions.metrics(workspace) }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/metrics',
      summary: 'The same in the text format of Prometheus',
      handle: ({ workspace }) =>
        new Response(exposition(executions.metrics(workspace), workspace), {
          headers: { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' },
        }),
    }),
  ]
}

const gauges: readonly [name: string, help: string, value: (metric: Metric) => number][] = [
  ['waiting', 'Executions that wait', ({ waiting }) => waiting],
  ['running', 'Executions that run', ({ running }) => running],
  ['reported', 'Executions that an agent took up and reports of later', ({ reported }) => reported],
  [
    'oldest_waiting_seconds',
    'How long the oldest one waits',
    ({ oldestWaitingMs }) => oldestWaitingMs / 1000,
  ],
]
const counters: readonly [name: string, help: string, value: (metric: Metric) => number][] = [
  ['accepted_total', 'Executions accepted', ({ acceptedTotal }) => acceptedTotal],
  ['started_total', 'Attempts begun', ({ startedTotal }) => startedTotal],
  ['retried_total', 'Attempts begun that were not the first', ({ retriedTotal }) => retriedTotal],
]

function exposition(metrics: Metric[], workspace: string): string {
  const lines: string[] = []
  const family = (name: string, type: string, help: string, samples: [labels: string, value: number][]) => {
    lines.push(`# HELP hutch_executions_${name} ${help}`, `# TYPE hutch_executions_${name} ${type}`)
    for (const [labels, value] of samples) lines.push(`hutch_executions_${name}{${labels}} ${value}`)
  }
  const labelsOf = ({ source }: Metric) => `workspace="${workspace}",source="${source}"`
  for (const [name, help, value] of gauges) {
    family(
      name,
      'gauge',
      help,
      metrics.map((one) => [labelsOf(one), value(one)]),
    )
  }
  for (const [name, help, value] of counters) {
    family(
      name,
      'counter',
      help,
      metrics.map((one) => [labelsOf(one), value(one)]),
    )
  }
  const ended = metrics.flatMap((one) =>
    Object.entries(one.endedTotal).map(([status, count]): [string, number] => [
      `${labelsOf(one)},status="${status}"`,
      count,
    ]),
  )
  family('ended_total', 'counter', 'Executions ended', ended)
  return `${lines.join('\n')}\n`
}
