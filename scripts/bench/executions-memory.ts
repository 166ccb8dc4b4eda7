import { readFileSync } from 'node:fs'
import { closedLoop, executionsBench } from './executions-client.ts'
import type { Row } from './measure.ts'

const waiting = Number(process.env.BENCH_EXECUTIONS ?? 100_000)
const warmUp = 5000
const atOnce = 64
const settleMs = 5000

/** Memory of the platform while executions wait, more than before. BENCH_EXECUTIONS=10000 makes fewer. */
export default async function main(): Promise<Row[]> {
  await using bench = await executionsBench()
  let ids = 0
  const later = () => bench.later('/hold', `m${ids++}`)
  // As many requests warm up what a process keeps of requests, whatever they are for.
  await closedLoop(warmUp, atOnce, later)
  const before = await settled(bench.agent.pid)
  await closedLoop(waiting, atOnce, later)
  const after = await settled(bench.agent.pid)
  const { waiting: count } = await bench.metrics()
  if (count < waiting) throw new Error(`${count} wait, ${waiting} were to`)
  return [
    {
      what: `memory of the platform while ${waiting} executions wait`,
      value: `${((after - before) / 1024).toFixed(1)} MiB more`,
      baseline: `${(before / 1024).toFixed(0)} MiB with ${warmUp} of them`,
      reach: '<= 64 MiB more',
    },
  ]
}

/** Memory of a process that is no file's, in KiB: the median of a second's readings, once things have come to rest. */
async function settled(pid: number): Promise<number> {
  await Bun.sleep(settleMs)
  const readings: number[] = []
  for (let index = 0; index < 31; index++) {
    const line = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
    if (!line) throw new Error(`/proc/${pid}/status has no RssAnon`)
    readings.push(Number(line[1]))
    await Bun.sleep(33)
  }
  return readings.toSorted((a, b) => a - b)[15]!
}
