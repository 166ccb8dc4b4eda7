/**
 * One life of a platform with an agent that is asked every hour, for the test that kills it: `DIRECTORY STARTS_AT HOURS
 * KILLED_AT`. It dies by SIGKILL right before or after its change of the store number KILLED_AT (0: not at all).
 */
import { join } from 'node:path'
import { Deliveries } from '../deliveries/index.ts'
import type { StoredDeployment } from '../deployments/index.ts'
import { Executions } from '../executions/index.ts'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { eventually } from '../lib/test-eventually.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Triggers } from './index.ts'

const hourMs = 3_600_000
const [directory = '', startsAt = '', hours = '', killedAt = ''] = process.argv.slice(2)
const changes = new Set(['create', 'update', 'remove', 'batch', 'enqueue', 'change'])
let changed = 0

/** The same, but that it kills this process. */
function deadly<Target extends object>(target: Target): Target {
  return new Proxy(target, {
    get(of, name) {
      const value: unknown = Reflect.get(of, name)
      if (typeof value !== 'function') return value
      if (!changes.has(String(name))) return value.bind(of)
      return async (...args: unknown[]) => {
        const mine = ++changed
        if (mine === Number(killedAt) && mine % 2 === 0) process.kill(process.pid, 'SIGKILL')
        const result: unknown = await value.apply(of, args)
        if (mine === Number(killedAt)) process.kill(process.pid, 'SIGKILL')
        return result
      }
    },
  })
}

const clock = new FakeClock(Number(startsAt))
const secrets = createSecretBox(new Uint8Array(32).fill(5))
await using store = await openSqliteStore({
  path: join(directory, 'hutch.db'),
  clock,
  log: silentLogger,
  durability: 'process',
})
const executions = new Executions({
  ...{ queue: deadly(store.queue), clock, log: silentLogger },
  ...{ waitingMax: 1000, bytesMax: 1024 ** 3, keptMs: 1000 * hourMs, keptMax: 10_000 },
})
const trigger = { id: 'hourly', type: 'cron' as const, configuration: { schedule: '0 * * * *' } }
const deployment = {
  ...{ kind: 'agent', workspace: 'main', name: 'one', updatedAt: 0 },
  body: {
    uid: 'agent-1',
    state: 'active',
    spec: { triggers: [trigger] },
    triggerStates: { hourly: { since: Date.UTC(2030, 0, 1), secrets: [] } },
  },
} as unknown as StoredDeployment
const deployments = {
  find: async () => deployment,
  standing: () => ({ ...deployment.body, gates: { atOnce: null } }),
  async *every() {
    yield deployment
  },
  watch() {},
  triggers: { secrets: async () => null },
} as unknown as ConstructorParameters<typeof Triggers>[0]['deployments']
const dialer = new Dialer({ privateTargets: [], ownPorts: () => [] })
const triggers = new Triggers({
  ...{ store: deadly(store), deployments, executions, secrets, clock, log: silentLogger },
  deliveries: new Deliveries({ executions, dialer, secrets, clock, version: '1' }),
  jobs: { start: () => Promise.reject(new Error('no job has a trigger here')) },
  origin: () => 'http://localhost',
  call: async () => ({
    ...{ status: 200, type: 'text/plain', body: new Uint8Array() },
    ...{ retryAfterMs: null, failure: null, retry: false, notAsked: false },
  }),
})
await executions.open()
await triggers.open()
for (let hour = 0; ; hour++) {
  const moment = new Date(Math.floor(clock.now() / hourMs) * hourMs).toISOString()
  await eventually(`${moment} is over`, () => {
    const { data } = executions.list('main', { source: 'agent', labels: { tick: moment } })
    return data.some(({ endedAt }) => endedAt !== null)
  })
  await triggers.settled()
  if (hour === Number(hours)) break
  clock.advance(hourMs)
}
await triggers.close()
await executions.close()
