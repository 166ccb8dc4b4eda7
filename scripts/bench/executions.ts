import {
  closedLoop,
  type ExecutionsBench,
  executionsBench,
  openLoop,
  plainAccepts,
} from './executions-client.ts'
import { milliseconds, type Row, sample, samplesMin } from './measure.ts'

const acceptsPerTurn = 1000
const acceptsAtOnce = 64
const pacedPerSecond = 200
const pacedWarmUp = 400
const paced = 6000
const starts = 1000
const startsPerSecond = 100
const burst = 10_000
const burstAtOnce = 256
const drainBaselineAtOnce = 64

/** Requests to an agent that are answered later, as their client sees it. */
export default async function main(): Promise<Row[]> {
  return [...(await accepts()), await startOf(), ...(await burstOf())]
}

/** While the agent holds what runs, so that nothing but accepting is measured. */
async function accepts(): Promise<Row[]> {
  await using bench = await executionsBench()
  using plain = await plainAccepts()
  let ids = 0
  const accept = () => bench.later('/hold', `a${ids++}`)
  const bare = () => plain.accept(`a${ids++}`)
  // First: the disk is still busy for a while with the gigabytes that the other one writes. What was written before is there then.
  Bun.spawnSync(['sync'])
  const side = (work: () => Promise<unknown>, count: number) => openLoop(count, pacedPerSecond, work)
  await Promise.all([side(accept, pacedWarmUp), side(bare, pacedWarmUp)])
  // Side by side: when the disk stands still, which it does for up to a second, it does so for both.
  const [times, bareTimes] = await Promise.all([side(accept, paced), side(bare, paced)])
  const [rates, bareRates]: [number[], number[]] = [[], []]
  for (let turn = -2; turn < samplesMin; turn++) {
    const one = await closedLoop(acceptsPerTurn, acceptsAtOnce, accept)
    const other = await closedLoop(acceptsPerTurn, acceptsAtOnce, bare)
    if (turn < 0) continue
    rates.push(one)
    bareRates.push(other)
  }
  const { waiting, running } = await bench.metrics()
  if (waiting + running !== (samplesMin + 2) * acceptsPerTurn + pacedWarmUp + paced) {
    throw new Error(`${waiting} wait and ${running} run: some were lost, or ended`)
  }
  const insert = 'a plain server that inserts a row, fsync as well'
  return [
    {
      what: `durable accepts a second, ${acceptsAtOnce} at a time`,
      value: `${sample(rates).median.toFixed(0)} (n ${samplesMin})`,
      baseline: `${sample(bareRates).median.toFixed(0)} by ${insert}`,
      reach: '>= 2000',
    },
    {
      what: `a durable accept, at ${pacedPerSecond} a second, for ${paced / pacedPerSecond} s`,
      value: milliseconds(sample(times)),
      baseline: `${milliseconds(sample(bareTimes))} in the same seconds by ${insert}`,
      reach: 'p99 <= 10 ms',
    },
  ]
}

/** From the sending of the request to its beginning in the agent, by the one clock of the host. */
async function startOf(): Promise<Row> {
  await using bench = await executionsBench()
  const sent = new Map<string, number>()
  const now = () => performance.timeOrigin + performance.now()
  const direct: number[] = []
  await openLoop(starts + 200, startsPerSecond, async (index) => {
    // The first two seconds warm up.
    const id = `s${index}`
    if (index >= 200) sent.set(id, now())
    await bench.later('/start', id)
  })
  await bench.ended(starts + 200)
  await openLoop(starts, startsPerSecond, async (index) => {
    sent.set(`d${index}`, now())
    const response = await fetch(`${bench.agent.url}/start`, {
      method: 'POST',
      headers: bench.agent.headers,
      body: `d${index}`,
    })
    await response.arrayBuffer()
  })
  const arrived = JSON.parse(await bench.agent.ask('/starts')) as Record<string, number>
  const later: number[] = []
  for (const [id, at] of sent) {
    const came = arrived[id]
    if (came === undefined) throw new Error(`${id} never came`)
    ;(id.startsWith('d') ? direct : later).push(came - at)
  }
  return {
    what: `from a request that is answered later to its beginning in the agent, at ${startsPerSecond} a second`,
    value: milliseconds(sample(later)),
    baseline: `${milliseconds(sample(direct))} of a request that is answered at once`,
    reach: 'p50 <= 5 ms, p99 <= 25 ms',
  }
}

async function burstOf(): Promise<Row[]> {
  await using bench = await executionsBench()
  await closedLoop(500, 16, (index) => bench.later('/echo', `w${index}`))
  await bench.ended(500)
  const before = Number(await bench.agent.ask('/seen'))
  let refused = 0
  const startedAt = performance.now()
  const accepted = closedLoop(burst, burstAtOnce, async (index) => {
    await bench.later('/echo', `b${index}`).catch(() => refused++)
  })
  const perSecond = await accepted
  const endedTotal = await bench.ended(500 + burst - refused)
  const drained = (burst / (performance.now() - startedAt)) * 1000
  const seen = Number(await bench.agent.ask('/seen')) - before
  const lost = burst - refused - seen
  const bare = await bareDrain(bench)
  const failed = Object.entries(endedTotal).filter(([status]) => status !== 'succeeded')
  return [
    {
      what: `${burst} in a burst, ${burstAtOnce} at a time`,
      value: `${perSecond.toFixed(0)} a second accepted, ${refused} refused, ${lost} lost, ${failed.length === 0 ? 'all succeeded' : JSON.stringify(failed)}`,
      baseline: '',
      reach: '0 refused, 0 lost',
    },
    {
      what: 'the burst drained to an echo agent, a second, from its first request on',
      value: drained.toFixed(0),
      baseline: `${bare.toFixed(0)} requests a second to its instance, ${drainBaselineAtOnce} at a time`,
      reach: '>= 500',
    },
  ]
}

/** The same requests to the instance, past the platform. */
async function bareDrain({ agent }: ExecutionsBench): Promise<number> {
  const unix = agent.socket()
  return await closedLoop(burst, drainBaselineAtOnce, async (index) => {
    const response = await fetch('http://agent/echo', { unix, method: 'POST', body: `p${index}` })
    await response.arrayBuffer()
  })
}
