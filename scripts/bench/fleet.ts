import { readFileSync } from 'node:fs'
import { milliseconds, type Row, sample } from './measure.ts'
import { platformAt } from './platform-client.ts'

const count = Number(process.env.BENCH_FLEET ?? 1000)
const width = 16
const looks = 500
const woken = 100
const rounds = 5
const port = 3000
const memoryMb = 256
const settleMs = 5000

/** Many sandboxes at once, all asleep: what they cost, how the platform answers meanwhile, and many woken at once. */
export default async function fleet(): Promise<Row[]> {
  if (!Number.isInteger(count) || count < woken)
    throw new Error(`BENCH_FLEET: a whole number, ${woken} or more`)
  await using platform = await platformAt({
    args: ['--standby-after-seconds', '2', '--sandboxes-max', String(count + 2)],
  })
  const names = Array.from({ length: count }, (_, index) => `idle-${index}`)
  // The first ones also fill caches that all share.
  for (const name of ['first', 'second']) await platform.create(name, memoryMb)
  const emptyLooks = await latencies(looks, () => look(['first', 'second']))
  const before = await availableKb()
  await inParallel(names, (name) => platform.create(name, memoryMb))
  await platform.asleep(names)
  const eachKb = (before - (await availableKb())) / count
  const fullLooks = await latencies(looks, () => look(names))

  const servers = names.slice(0, woken)
  await inParallel(servers, async (name) => {
    await platform.serve(name, port)
    // Its first answer is the one for which Node compiles its own HTTP server.
    await platform.port(name, port)
  })
  const cold: number[] = []
  const warm: number[] = []
  // The first round warms up: Node compiles much of its server for the second answer, asleep before or not.
  for (let round = -1; round < rounds; round++) {
    await platform.asleep(servers)
    const asleep = await atOnce(servers)
    const awake = await atOnce(servers)
    if (round >= 0) cold.push(...asleep)
    if (round >= 0) warm.push(...awake)
  }
  await inParallel(['first', 'second', ...names], (name) => platform.remove(name))
  return [
    {
      what: `host memory per idle sandbox (${count} at once)`,
      value: `${((eachKb * 1024) / 1e6).toFixed(2)} MB`,
      baseline: '',
      reach: '<= 2 MB',
    },
    {
      what: 'control plane meanwhile: get, or list 50',
      value: milliseconds(sample(fullLooks)),
      baseline: `${milliseconds(sample(emptyLooks))} with two sandboxes`,
      reach: 'p99 <= 20 ms',
    },
    {
      what: `${woken} frozen Node servers asked at once, all answered`,
      value: milliseconds(sample(cold)),
      baseline: `${milliseconds(sample(warm))} awake`,
      reach: 'p99 <= 150 ms',
    },
  ]

  async function look(of: string[]): Promise<void> {
    const name = of[Math.floor(Math.random() * of.length)]
    const path = Math.random() < 0.8 ? `/v0/sandboxes/${name}` : '/v0/sandboxes?limit=50'
    await (await platform.request(path)).arrayBuffer()
  }

  async function atOnce(of: string[]): Promise<number[]> {
    const startedAt = performance.now()
    return await Promise.all(
      of.map(async (name) => {
        const said = await platform.port(name, port)
        if (said !== 'ok') throw new Error(`${name} answered ${said}`)
        return performance.now() - startedAt
      }),
    )
  }
}

async function latencies(times: number, work: () => Promise<void>): Promise<number[]> {
  const values: number[] = []
  for (let index = -20; index < times; index++) {
    const startedAt = performance.now()
    await work()
    if (index >= 0) values.push(performance.now() - startedAt)
  }
  return values
}

async function inParallel<Item>(items: Item[], work: (item: Item) => Promise<void>): Promise<void> {
  const left = items.values()
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (const item of left) await work(item)
    }),
  )
}

/** MemAvailable in KiB, once things have come to rest: the median of a second's readings. */
async function availableKb(): Promise<number> {
  await Bun.sleep(settleMs)
  const readings: number[] = []
  for (let index = 0; index < 31; index++) {
    readings.push(Number(/^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]))
    await Bun.sleep(33)
  }
  return readings.toSorted((a, b) => a - b)[15]!
}
