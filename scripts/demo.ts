import { join } from 'node:path'
import { verifyWebhookFromRequest } from '@blaxel/core'
import { buildIfStale } from './build.ts'
import { cleanEnvironment, hutch, RunningHutch, temporaryDataDir } from './platform.ts'

/**
 * `npm run demo`: the built executable, a throwaway data directory, and fixtures/demo/main.mjs in a Node of its own
 * with the unmodified npm package; then fixtures/monorepo is deployed and asked, also for an answer that comes later, to an
 * address of the demo. Leaves nothing behind, also after Ctrl-C.
 */

const root = join(import.meta.dir, '..')
const node = Bun.which('node')
const callbackMsMax = 30_000

let client: Bun.Subprocess | null = null
let interrupted = false
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    interrupted = true
    client?.kill('SIGTERM')
  })
}

process.exit(await demo())

async function demo(): Promise<number> {
  if (!node) throw new Error('node was not found')
  const totalStartedAt = performance.now()
  let startedAt = performance.now()
  await buildIfStale()
  say('build dist/hutch', startedAt, (await hutch(['version'])).stdout.trim())

  await using dataDir = await temporaryDataDir()
  await using platform = await RunningHutch.start({ dataDir: dataDir.path })
  say('hutch up', performance.now() - platform.startMs, platform.url)
  if (interrupted) return 130

  client = Bun.spawn([node, join(root, 'fixtures', 'demo', 'main.mjs')], {
    cwd: join(root, 'fixtures', 'demo'),
    stdin: 'ignore',
    stdout: 'inherit',
    stderr: 'inherit',
    env: { ...cleanEnvironment(), ...(await platform.env()) },
  })
  const code = (await client.exited) || (interrupted ? 130 : await host(platform))

  startedAt = performance.now()
  const stopped = await platform.stop()
  say('stop', startedAt, `exit code ${stopped}`)
  if (interrupted) return 130
  if (code !== 0 || stopped !== 0) {
    console.error(platform.log)
    console.error('the demo failed; what the platform logged is above')
    return 1
  }
  say('all of it', totalStartedAt, 'worked')
  return 0
}

/** Second act: a folder with an agent and the tools that it asks is deployed. */
async function host(platform: RunningHutch): Promise<number> {
  let startedAt = performance.now()
  const deployed = await platform.run(['deploy'], { cwd: join(root, 'fixtures', 'monorepo') })
  if (deployed.code !== 0) {
    console.error(deployed.stderr)
    return deployed.code
  }
  say('deploy an agent and its tools', startedAt, deployed.stdout.trim().split('\n').join(', '))
  startedAt = performance.now()
  const asked = await platform.run(['run', 'agent', 'weather-agent', '--data', '{"inputs": "Paris"}'])
  if (asked.stdout !== 'In Paris: rain\n') {
    console.error(`it answered ${JSON.stringify(asked.stdout)}: ${asked.stderr}`)
    return 1
  }
  say('ask the agent', startedAt, asked.stdout.trim())
  return await later(platform)
}

/** Third act: the agent is asked for an answer that comes later, and tells an address of it with a signature. */
async function later(platform: RunningHutch): Promise<number> {
  const environment = await platform.env()
  const arrived = Promise.withResolvers<{ body: string; headers: Record<string, string> }>()
  await using receiver = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    async fetch(request) {
      arrived.resolve({ body: await request.text(), headers: Object.fromEntries(request.headers) })
      return new Response('thanks')
    },
  })
  const callbackUrl = `http://127.0.0.1:${receiver.port}/`
  const trigger = ['triggers', 'add', 'agent', 'weather-agent', 'http-async', '--callback-url', callbackUrl]
  const added = await platform.run([...trigger, '--json'])
  if (added.code !== 0) {
    console.error(added.stderr)
    return added.code
  }
  const { configuration } = JSON.parse(added.stdout) as { configuration: { callbackSecret: string } }

  let startedAt = performance.now()
  const accepted = await fetch(`${platform.url}/main/agents/weather-agent?async=true`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${environment.BL_API_KEY}`,
      'content-type': 'application/json',
    },
    body: JSON.stringify({ inputs: 'Paris' }),
  })
  say('ask it to answer later', startedAt, `${accepted.status} ${await accepted.text()}`)
  startedAt = performance.now()
  const callback = await Promise.race([arrived.promise, Bun.sleep(callbackMsMax).then(() => null)])
  if (callback === null || !verifyWebhookFromRequest(callback, configuration.callbackSecret)) {
    console.error(
      callback === null ? 'no callback came' : 'the signature of the callback is not by its secret',
    )
    return 1
  }
  const { response_body: said } = JSON.parse(callback.body) as { response_body: string }
  say('its callback, signature verified', startedAt, said.trim())
  return 0
}

function say(title: string, startedAt: number, outcome: string): void {
  const ms = (performance.now() - startedAt).toFixed(0)
  console.log(`  ${title.padEnd(34)} ${ms.padStart(6)} ms   ${outcome}`)
}
