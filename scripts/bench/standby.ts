import { readdirSync, readFileSync } from 'node:fs'
import { milliseconds, type Row, sample } from './measure.ts'
import { nodeServer, type Platform, platformAt } from './platform-client.ts'

const wakes = 100
const port = 3000
const cpuWindowMs = 3000
const restMs = 30

/** A frozen Node server's answer; against a bare Node server that was stopped by a signal. And what freezing gives back. */
export default async function standby(): Promise<Row[]> {
  await using platform = await platformAt({ args: ['--standby-after-seconds', '0.05'] })
  await platform.create('sleeper', 1024)
  await platform.serve('sleeper', port)
  const fetchIt = () => platform.port('sleeper', port)
  const awake: number[] = []
  const frozen: number[] = []
  const bare: number[] = []
  const child = Bun.spawn(['node', '-e', nodeServer(0)], { stdout: 'pipe', stderr: 'ignore' })
  try {
    const bareUrl = `http://127.0.0.1:${await firstLine(child.stdout)}/`
    for (let index = -5; index < wakes; index++) {
      await platform.asleep(['sleeper'])
      await Bun.sleep(restMs)
      const one = await timed(fetchIt)
      const two = await timed(fetchIt)
      child.kill('SIGSTOP')
      await Bun.sleep(restMs)
      const three = await timed(async () => {
        child.kill('SIGCONT')
        return await (await fetch(bareUrl)).text()
      })
      if (index < 0) continue
      frozen.push(one)
      awake.push(two)
      bare.push(three)
    }
  } finally {
    child.kill('SIGKILL')
    await child.exited
  }
  const busy = await processorOf(platform)
  return [
    {
      what: 'a frozen Node server answers, over HTTP',
      value: milliseconds(sample(frozen)),
      baseline: `${milliseconds(sample(bare))} bare Node, SIGCONT; ${milliseconds(sample(awake))} awake`,
      reach: 'median <= 10 ms, p99 <= 25 ms',
    },
    {
      what: `processor time of a busy sandbox while frozen, ${cpuWindowMs / 1000} s`,
      value: `${busy.frozenMs} ms`,
      baseline: `${busy.awakeMs} ms awake`,
      reach: '0 ms',
    },
  ]
}

async function processorOf(platform: Platform): Promise<{ awakeMs: number; frozenMs: number }> {
  await platform.create('busy', 2048)
  // Found on the host by a command line that nothing else has.
  const mark = `busy${crypto.getRandomValues(new Uint32Array(1))[0]}`
  await platform.start('busy', `exec node -e 'for (;;) {}' ${mark}`)
  const pid = await pidOf(mark)
  const used = async () => {
    const before = ticksOf(pid)
    await Bun.sleep(cpuWindowMs)
    return (ticksOf(pid) - before) * 10
  }
  // A stream that is open keeps it awake.
  const stream = await platform.request(`/main/sandboxes/busy/process/busy/logs/stream`)
  const awakeMs = await used()
  await stream.body?.cancel()
  await platform.asleep(['busy'])
  return { awakeMs, frozenMs: await used() }
}

/** The shell that starts it may not have become it yet. */
async function pidOf(mark: string): Promise<string> {
  for (let attempt = 0; attempt < 200; attempt++) {
    const pid = pidNow(mark)
    if (pid !== null) return pid
    await Bun.sleep(10)
  }
  throw new Error('the busy program is not found among the processes of this host')
}

function pidNow(mark: string): string | null {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
      if (argv[0] === 'node' && argv.includes(mark)) return pid
    } catch {
      // It ended while we looked.
    }
  }
  return null
}

/** Hundredths of a second, of user and system. */
function ticksOf(pid: string): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return Number(fields[11]) + Number(fields[12])
}

async function timed(work: () => Promise<string>): Promise<number> {
  const startedAt = performance.now()
  const said = await work()
  const ms = performance.now() - startedAt
  if (said !== 'ok') throw new Error(`the server answered ${said}`)
  return ms
}

async function firstLine(stream: ReadableStream<Uint8Array>): Promise<string> {
  let text = ''
  const decoder = new TextDecoder()
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true })
    if (text.includes('\n')) break
  }
  return text.trim()
}
