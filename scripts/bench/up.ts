import { RunningHutch, temporaryDataDir } from '../platform.ts'
import { milliseconds, type Row, sample, samplesMin } from './measure.ts'

/** Spawn to the first 200, on a data directory that exists; against a bare HTTP server in the same Bun. */
export default async function up(): Promise<Row[]> {
  await using dataDir = await temporaryDataDir()
  const values: number[] = []
  const baseline: number[] = []
  for (let round = -1; round < samplesMin; round++) {
    const startedAt = performance.now()
    await using platform = await RunningHutch.start({ dataDir: dataDir.path })
    await answered(`${platform.url}/healthz`)
    const ms = performance.now() - startedAt
    // The first start makes keys, tables and images.
    if (round >= 0) values.push(ms)
    baseline.push(await bareServer())
  }
  return [
    {
      what: 'hutch up, spawn to first 200',
      value: milliseconds(sample(values)),
      baseline: `${milliseconds(sample(baseline))} Bun.serve alone`,
      reach: '<= 120 ms',
    },
  ]
}

async function bareServer(): Promise<number> {
  const startedAt = performance.now()
  const script =
    "const s = Bun.serve({ port: 0, fetch: () => new Response('ok') }); console.log('ready ' + s.port)"
  const child = Bun.spawn([process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    const { value } = await child.stdout.getReader().read()
    const port = /ready (\d+)/.exec(new TextDecoder().decode(value))?.[1]
    await answered(`http://127.0.0.1:${port}/`)
    return performance.now() - startedAt
  } finally {
    child.kill('SIGKILL')
    await child.exited
  }
}

async function answered(url: string): Promise<void> {
  const response = await fetch(url)
  await response.arrayBuffer()
  if (response.status !== 200) throw new Error(`${url} answered ${response.status}`)
}
