import { readFileSync, writeFileSync } from 'node:fs'
import { type Row, type Sample, sample, samplesMin } from './measure.ts'
import { type BenchSandbox, benchSandbox } from './sandbox.ts'

const bytes = 100_000_000
/** A log's line, with its end. */
const lineBytes = 100
const command = `yes ${'x'.repeat(lineBytes - 1)} | head -c ${bytes}`

/** 100 MB of process output, by both streams; against a plain server that passes on the same program's pipe. */
export default async function output(): Promise<Row[]> {
  // Two processors: the program is not to be what is measured.
  await using sandbox = await benchSandbox(4096)
  await using plain = await plainServer()
  const kinds = { execution: executed(sandbox), logs: logged(sandbox) }
  const values: Record<keyof typeof kinds | 'bare', number[]> = { execution: [], logs: [], bare: [] }
  const growth = { execution: 0, logs: 0 }
  for (let round = -1; round < samplesMin; round++) {
    for (const [kind, work] of Object.entries(kinds) as [keyof typeof kinds, () => Promise<number>][]) {
      const before = forgetPeak(sandbox.pid)
      const rate = await timed(work)
      if (round < 0) continue
      values[kind].push(rate)
      growth[kind] = Math.max(growth[kind], memory(sandbox.pid, 'VmHWM') - before)
    }
    const rate = await timed(async () => drained(await fetch(plain.url)))
    if (round >= 0) values.bare.push(rate)
  }
  const bare = sample(values.bare)
  return (['execution', 'logs'] as const).map((kind) => ({
    what:
      kind === 'execution' ? '100 MB streamed by an execution (NDJSON)' : '100 MB streamed as logs (text)',
    value: `${rateOf(sample(values[kind]))}, at most ${growth[kind].toFixed(0)} MiB more memory`,
    baseline: `${rateOf(bare)} plain server, the same program`,
    reach: '>= 200 MB/s, <= 64 MiB',
  }))
}

function executed(sandbox: BenchSandbox): () => Promise<number> {
  const headers = { 'content-type': 'application/json', accept: 'text/event-stream' }
  const body = JSON.stringify({ command, waitForCompletion: true })
  return async () => drained(await sandbox.call('/process', { method: 'POST', headers, body }))
}

function logged(sandbox: BenchSandbox): () => Promise<number> {
  const headers = { 'content-type': 'application/json' }
  return async () => {
    // Held until its reader is there, which then gets all of it.
    const body = JSON.stringify({ command: `read go; ${command}`, stdin: true })
    const started = await sandbox.call('/process', { method: 'POST', headers, body })
    const { pid } = (await started.json()) as { pid: string }
    const stream = await sandbox.call(`/process/${pid}/logs/stream`)
    await (await sandbox.call(`/process/${pid}/stdin`, { method: 'POST', body: '\n' })).arrayBuffer()
    return drained(stream)
  }
}

/** MB of output a second. */
async function timed(work: () => Promise<number>): Promise<number> {
  const startedAt = performance.now()
  const received = await work()
  if (received < bytes) throw new Error(`only ${received} of ${bytes} bytes arrived`)
  return bytes / 1e3 / (performance.now() - startedAt)
}

async function drained(response: Response): Promise<number> {
  let received = 0
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) received += chunk.length
  return received
}

function rateOf({ median, count }: Sample): string {
  return `${median.toFixed(0)} MB/s (n ${count})`
}

function memory(pid: number, field: 'VmRSS' | 'VmHWM'): number {
  const found = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  return Number(found?.[1]) / 1024
}

/** The peak counts from now; answers what is in use. */
function forgetPeak(pid: number): number {
  writeFileSync(`/proc/${pid}/clear_refs`, '5')
  return memory(pid, 'VmRSS')
}

/** In a process of its own, as the platform is. */
async function plainServer(): Promise<{ url: string } & AsyncDisposable> {
  const script = `const server = Bun.serve({ port: 0, fetch: () =>
      new Response(Bun.spawn(['sh', '-c', ${JSON.stringify(command)}]).stdout) })
    console.log('ready ' + server.port)`
  const child = Bun.spawn([process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const { value } = await child.stdout.getReader().read()
  return {
    url: `http://127.0.0.1:${/ready (\d+)/.exec(new TextDecoder().decode(value))?.[1]}/`,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await child.exited
    },
  }
}
