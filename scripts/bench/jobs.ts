import { tar } from '../../src/images/test-image.ts'
import type { Row } from './measure.ts'
import { type Platform, platformAt } from './platform-client.ts'

const tasks = 1000
const atOnce = 16
const pollMs = 20
const waitMsMax = 300_000
/** What a task runs, and what is run bare. */
const command = 'echo hello'

/** A job of a thousand tasks, each an instance of its own, against the same command run as often on the host, as many at a time. */
export default async function main(): Promise<Row[]> {
  await using platform = await platformAt({
    args: ['--log-level', 'error', '--job-tasks-max', String(atOnce)],
  })
  await deploy(platform)
  // The first ones find nothing in any cache.
  await execute(platform, 64)
  const ran = await execute(platform, tasks)
  const bareMs = await runBare(tasks)
  return [
    {
      what: `overhead of a task, in a job of ${tasks}, ${atOnce} at a time`,
      value: `${((ran.ms - bareMs) / tasks).toFixed(1)} ms (${Math.round((tasks / ran.ms) * 1000)} tasks/s)`,
      baseline: `${(bareMs / tasks).toFixed(2)} ms a run, bare`,
      reach: 'none set',
    },
    {
      what: `a job of ${tasks} tasks is accepted, durable`,
      value: `${ran.acceptMs.toFixed(0)} ms`,
      baseline: 'none',
      reach: 'none set',
    },
  ]
}

async function deploy(platform: Platform): Promise<void> {
  const spec = { runtime: { memory: 256 } }
  const begun = await platform.request('/v0/jobs?upload=true', {
    method: 'POST',
    body: JSON.stringify({ metadata: { name: 'hello' }, spec }),
  })
  await begun.arrayBuffer()
  const files = [
    { path: 'package.json', content: '{"scripts": {"start": "sh task.sh"}}' },
    { path: 'task.sh', content: command },
  ]
  const sent = await fetch(begun.headers.get('x-blaxel-upload-url') ?? '', {
    method: 'PUT',
    headers: { 'content-type': 'application/x-tar' },
    body: new Uint8Array(tar(files)),
  })
  if (!sent.ok) throw new Error(`the upload answered ${sent.status}`)
  await until('the job is deployed', async () => {
    const read = (await (await platform.request('/v0/jobs/hello')).json()) as { events: { status: string }[] }
    return read.events.some(({ status }) => status === 'DEPLOYED')
  })
}

async function execute(platform: Platform, count: number): Promise<{ ms: number; acceptMs: number }> {
  const path = '/v0/jobs/hello/executions'
  const startedAt = performance.now()
  const begun = await platform.request(path, {
    method: 'POST',
    body: JSON.stringify({ tasks: Array.from({ length: count }, (_, number) => ({ number })) }),
  })
  const { executionId } = (await begun.json()) as { executionId: string }
  const acceptMs = performance.now() - startedAt
  await until('the execution is over', async () => {
    const page = await platform.request(`${path}?limit=1`)
    const [execution] = (await page.json()) as { status: string; stats: { success: number } }[]
    if (execution?.status !== 'succeeded') return false
    if (execution.stats.success !== count) throw new Error(`${execution.stats.success} tasks of ${count}`)
    return true
  })
  const ms = performance.now() - startedAt
  const last = await platform.request(`${path}/${executionId}/tasks/${count - 1}`)
  if (((await last.json()) as { output: string }).output !== 'hello') throw new Error('a task said nothing')
  return { ms, acceptMs }
}

/** The same on the host: a shell for each, as many at a time. */
async function runBare(count: number): Promise<number> {
  const startedAt = performance.now()
  let left = count
  const worker = async () => {
    while (left-- > 0) {
      const child = Bun.spawn(['sh', '-c', command], { stdio: ['ignore', 'pipe', 'ignore'] })
      await new Response(child.stdout).text()
      await child.exited
    }
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
  return performance.now() - startedAt
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + waitMsMax
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`never happened: ${what}`)
    await Bun.sleep(pollMs)
  }
}
