import { agentProgram, hosting } from './hosting-client.ts'
import { milliseconds, type Row, type Sample, sample, samplesMin, timesInTurns } from './measure.ts'

const requestsPerSecond = 200
/** Half a second: whatever else the machine does meets all kinds alike. */
const requestsPerTurn = 100
const turns = 24
/** The platform looks the host over in its first seconds, and the code of every kind is compiled as it is used. */
const settleMs = 10_000
const warmRequests = 4000
const connections = 32
const closedLoopMs = 600
const streams = 300

/** Requests to a deployed agent, against the same requests to its instance past the platform. */
export default async function main(): Promise<Row[]> {
  const rows = [await coldStarts(), await wakes()]
  await using agent = await hosting()
  await agent.deploy(agentProgram)
  await agent.ask()
  const direct = fetcher('http://agent', { unix: agent.socket() })
  const gateway = fetcher(agent.url, { headers: agent.headers })
  using plain = await plainProxy(agent.socket())
  const proxied = fetcher(plain.url, { headers: agent.headers })
  await Bun.sleep(settleMs)
  for (const ask of [gateway, direct, proxied]) await warm(ask)
  return [
    ...rows,
    await overhead(gateway, direct, proxied),
    await throughput(gateway, proxied),
    await firstBytes(gateway, direct),
  ]
}

type Fetcher = (path?: string) => Promise<Response>

function fetcher(origin: string, init: BunFetchRequestInit): Fetcher {
  return (path = '/') => fetch(origin + path, init)
}

async function text(answer: Promise<Response>): Promise<string> {
  const response = await answer
  const said = await response.text()
  if (!response.ok) throw new Error(`answered ${response.status}: ${said}`)
  return said
}

/** The instance is gone; the request makes another one. */
async function coldStarts(): Promise<Row> {
  await using agent = await hosting([
    '--standby-after-seconds',
    '0.05',
    '--scale-to-zero-after-seconds',
    '0.1',
  ])
  await agent.deploy(agentProgram)
  const values: number[] = []
  const seen = new Set<string>()
  for (let index = -2; index < samplesMin; index++) {
    await agent.stopped()
    const startedAt = performance.now()
    await agent.ask()
    if (index >= 0) values.push(performance.now() - startedAt)
    seen.add(await agent.ask('/id'))
  }
  if (seen.size < samplesMin) throw new Error('an instance answered twice')
  return {
    what: 'first answer of a TypeScript agent that was stopped',
    value: milliseconds(sample(values)),
    baseline: `${milliseconds(sample(await bareStarts()))} the program alone, on the host`,
    reach: 'p50 <= 150 ms',
  }
}

async function bareStarts(): Promise<number[]> {
  const values: number[] = []
  for (let index = -1; index < samplesMin; index++) {
    const port = freePort()
    const startedAt = performance.now()
    const child = Bun.spawn([process.execPath, '-e', agentProgram], {
      env: { ...process.env, HOST: '127.0.0.1', PORT: String(port) },
      stdio: ['ignore', 'ignore', 'ignore'],
    })
    while ((await fetch(`http://127.0.0.1:${port}/`).catch(() => null)) === null) await Bun.sleep(1)
    if (index >= 0) values.push(performance.now() - startedAt)
    child.kill('SIGKILL')
    await child.exited
  }
  return values
}

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response() })
  const { port } = server
  server.stop(true)
  return port ?? 0
}

async function wakes(): Promise<Row> {
  const restMs = 400
  await using agent = await hosting(['--standby-after-seconds', '0.05'])
  await agent.deploy(agentProgram)
  const [frozen, awake]: [number[], number[]] = [[], []]
  for (let index = -3; index < samplesMin; index++) {
    const before = Number(await agent.ask('/ticks'))
    await Bun.sleep(restMs)
    const startedAt = performance.now()
    const after = Number(await agent.ask('/ticks'))
    const ms = performance.now() - startedAt
    // It ticks every 5 ms, but for the time that it stood still.
    if (after - before > restMs / 10) throw new Error('the agent was not frozen')
    const again = performance.now()
    await agent.ask('/ticks')
    if (index < 0) continue
    frozen.push(ms)
    awake.push(performance.now() - again)
  }
  return {
    what: 'answer of an agent in standby',
    value: milliseconds(sample(frozen)),
    baseline: `${milliseconds(sample(awake))} awake`,
    reach: 'p50 <= 10 ms',
  }
}

async function warm(ask: Fetcher): Promise<void> {
  const client = async () => {
    for (let count = 0; count < warmRequests / connections; count++) await text(ask())
  }
  await Promise.all(Array.from({ length: connections }, client))
}

/** Requests at their times, however long those before take. */
async function paced(ask: Fetcher): Promise<number[]> {
  const values: number[] = []
  const startedAt = performance.now()
  const asked: Promise<void>[] = []
  for (let index = 0; index < requestsPerTurn; index++) {
    const waitMs = startedAt + (index * 1000) / requestsPerSecond - performance.now()
    if (waitMs > 0) await Bun.sleep(waitMs)
    const sentAt = performance.now()
    asked.push(text(ask()).then(() => void values.push(performance.now() - sentAt)))
  }
  await Promise.all(asked)
  return values
}

async function overhead(gateway: Fetcher, direct: Fetcher, plain: Fetcher): Promise<Row> {
  const values: [number[], number[], number[]] = [[], [], []]
  for (let turn = -1; turn < turns; turn++) {
    const kinds = [gateway, direct, plain].entries().toArray()
    // Each comes after each of the others equally often.
    const inTurn = turn % 2 === 0 ? kinds : kinds.toReversed()
    for (const [at, ask] of inTurn) {
      const timed = await paced(ask)
      // The first turn warms up.
      if (turn >= 0) values[at]?.push(...timed)
    }
  }
  const [measured, bare, proxied] = values.map(sample) as [Sample, Sample, Sample]
  const more = (key: 'median' | 'p99', of = measured) => `${(of[key] - bare[key]).toFixed(2)} ms`
  return {
    what: `a request through the gateway, at ${requestsPerSecond} a second`,
    value: `${more('median')} more at p50, ${more('p99')} more at p99 (${milliseconds(measured)})`,
    baseline: `${milliseconds(bare)} to the instance; ${more('median', proxied)} and ${more('p99', proxied)} more by Bun.serve that passes on`,
    reach: 'p50 <= 0.3 ms more, p99 <= 2 ms more',
  }
}

/** A proxy that does nothing else, in a process of its own as the platform is. */
async function plainProxy(unix: string): Promise<{ url: string } & Disposable> {
  const program = `const server = Bun.serve({
    port: 0, hostname: '127.0.0.1', idleTimeout: 0,
    fetch: (request) => fetch('http://agent/', { unix: ${JSON.stringify(unix)}, method: request.method, headers: request.headers, body: request.body }),
  })
  console.log(server.port)`
  const child = Bun.spawn([process.execPath, '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
  const { value } = await child.stdout.getReader().read()
  return {
    url: `http://127.0.0.1:${new TextDecoder().decode(value).trim()}`,
    [Symbol.dispose]: () => child.kill('SIGKILL'),
  }
}

async function perSecond(ask: Fetcher): Promise<number> {
  let count = 0
  const endsAt = performance.now() + closedLoopMs
  const client = async () => {
    while (performance.now() < endsAt) {
      await text(ask())
      count++
    }
  }
  await Promise.all(Array.from({ length: connections }, client))
  return (count / closedLoopMs) * 1000
}

async function throughput(gateway: Fetcher, plain: Fetcher): Promise<Row> {
  const [through, past]: [number[], number[]] = [[], []]
  for (let turn = -2; turn < samplesMin; turn++) {
    const first = await perSecond(turn % 2 === 0 ? gateway : plain)
    const second = await perSecond(turn % 2 === 0 ? plain : gateway)
    if (turn < 0) continue
    through.push(turn % 2 === 0 ? first : second)
    past.push(turn % 2 === 0 ? second : first)
  }
  const [measured, other] = [sample(through).median, sample(past).median]
  return {
    what: `requests a second through the gateway, ${connections} at a time`,
    value: `${measured.toFixed(0)}, ${((measured / other) * 100).toFixed(0)} % (n ${samplesMin})`,
    baseline: `${other.toFixed(0)} by Bun.serve that passes each on by fetch`,
    reach: '>= 60 %',
  }
}

async function firstBytes(gateway: Fetcher, direct: Fetcher): Promise<Row> {
  const rests: Promise<unknown>[] = []
  const timed = (ask: Fetcher) => async () => {
    const reader = (await ask('/stream')).body?.getReader()
    await reader?.read()
    rests.push(Promise.resolve(reader?.cancel()))
  }
  const { measured, bare } = await timesInTurns(streams, timed(gateway), timed(direct))
  await Promise.all(rests)
  return {
    what: 'first byte of a stream through the gateway',
    value: `${(measured.median - bare.median).toFixed(2)} ms more at p50 (${milliseconds(measured)})`,
    baseline: `${milliseconds(bare)} from the instance`,
    reach: '<= 1 ms more',
  }
}
