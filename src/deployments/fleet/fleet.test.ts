import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Instances } from '../../instances/index.ts'
import { silentLogger } from '../../lib/log.ts'
import { createSecretBox } from '../../lib/secret-box.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import { type FakeProgramContext, type FakeRuntime, fakeRuntime } from '../../runtimes/fake/index.ts'
import type { Store } from '../../spec/store.ts'
import { openSqliteStore } from '../../stores/sqlite/index.ts'
import { Logs } from '../../telemetry/index.ts'
import { Fleet, type RevisionLease } from './index.ts'
import { requestsPerInstance } from './members.ts'
import { testImage, testRun } from './test-run.ts'

const port = 3000
const idleMs = 5 * 60_000
const clock = new FakeClock()
let dir: string
let store: Store
let runtime: FakeRuntime
let instances: Instances
let logs: Logs
let fleet: Fleet
/** What the program of every image does: serves until a test says otherwise. */
let program: (context: FakeProgramContext) => Promise<number> | number
/** Programs that run, newest last. */
let running: FakeProgramContext[] = []
let starts = 0
/** As its owner is told. */
let crashes: string[] = []

const serves = async (context: FakeProgramContext) => {
  context.serve(port, () => Response.json(context.env))
  await ended(context.signal)
  return 0
}

function ended(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}

function openFleet(): void {
  instances = new Instances({
    store,
    runtime,
    secrets: createSecretBox(new Uint8Array(32)),
    clock,
    log: silentLogger,
    standby: { freezeAfterMs: 15_000, reclaimAfterMs: null },
  })
  fleet = new Fleet({
    store,
    instances,
    images: { resolve: async () => testImage() },
    logs,
    clock,
    log: silentLogger,
    idleMs,
    region: 'eu-test-1',
    crashed: (run, message) => void crashes.push(`${run.name} ${message}`),
  })
}

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-fleet-'))
  program = serves
  running = []
  starts = 0
  crashes = []
  runtime = fakeRuntime({
    clock,
    programs: {
      server: async (context) => {
        starts++
        running.push(context)
        try {
          return await program(context)
        } finally {
          running = running.filter((one) => one !== context)
        }
      },
    },
  })
  store = await openSqliteStore({
    path: join(dir, 'hutch.db'),
    clock,
    log: silentLogger,
    durability: 'process',
  })
  logs = new Logs({ dir: join(dir, 'telemetry'), clock, log: silentLogger })
  openFleet()
  fleet.open()
})

afterEach(async () => {
  fleet.close()
  await instances.close({ keepInstances: false })
  await logs.close()
  await runtime[Symbol.asyncDispose]()
  await store[Symbol.asyncDispose]()
  await rm(dir, { recursive: true, force: true })
})

/** Lets a little time pass, over and over, until `work` is done. */
async function passing<Result>(work: Promise<Result>): Promise<Result> {
  let over = false
  const settled = () => {
    over = true
  }
  work.then(settled, settled)
  while (!over) {
    clock.advance(5)
    await new Promise((resolve) => setImmediate(resolve))
  }
  return await work
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) {
    clock.advance(5)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

/** What a promise rejects with. */
async function failureOf(work: Promise<unknown>): Promise<Error> {
  return await work.then(
    () => {
      throw new Error('it did not fail')
    },
    (error) => error as Error,
  )
}

const acquire = () => passing(fleet.acquire('rev-one'))
const machines = () => runtime.list()

async function ask(lease: RevisionLease): Promise<Record<string, string>> {
  const { origin } = await lease.instance.address(lease.port)
  return (await (await fetch(origin)).json()) as Record<string, string>
}

test('the first request makes an instance, whose program knows how to be reached and how to reach the platform', async () => {
  fleet.serve(testRun())
  expect(await machines()).toEqual([])
  using lease = await acquire()
  expect(await ask(lease)).toMatchObject({
    PATH: '/bin',
    FROM_IMAGE: 'yes',
    FROM_OWNER: 'yes',
    HOST: '0.0.0.0',
    PORT: '3000',
    BL_SERVER_HOST: '0.0.0.0',
    BL_SERVER_PORT: '3000',
    BL_API_URL: 'http://hutch.internal/v0',
    BL_RUN_URL: 'http://hutch.internal',
    BL_API_KEY: 'hutch-workload',
    BL_WORKSPACE: 'main',
    BL_TYPE: 'agent',
    BL_NAME: 'hello',
    BL_REVISION: 'rev-one',
    BL_REGION: 'eu-test-1',
    BL_CLOUD: 'true',
    BL_DISABLE_H2: '1',
  })
  expect(running[0]?.argv).toEqual(['server', '--quick'])
  expect(lease.program).toMatchObject({ argv: ['server', '--quick'], workingDir: '/app' })
  expect(fleet.workloadOf(lease.instance.id)).toMatchObject({
    kind: 'agent',
    name: 'hello',
    labels: { team: 'a' },
  })
  using other = await acquire()
  expect(other.instance.id).toBe(lease.instance.id)
})

test('requests that one instance has no room for get another one, up to maxScale', async () => {
  fleet.serve(testRun({ maxScale: 2 }))
  const leases = [await acquire()]
  while (leases.length < requestsPerInstance) leases.push(await acquire())
  expect(await machines()).toHaveLength(1)
  leases.push(await acquire())
  await until(() => running.length === 2)
  await until(() => fleet.health('rev-one').instances === 2)
  while (leases.length < 3 * requestsPerInstance) leases.push(await acquire())
  expect(await machines()).toHaveLength(2)
  const used = new Set(leases.slice(requestsPerInstance + 1).map(({ instance }) => instance.id))
  expect(used.size).toBe(2)
  for (const lease of leases) lease[Symbol.dispose]()
})

test('an instance that nobody uses rests, goes after minutes, and the next request makes a new one', async () => {
  fleet.serve(testRun())
  const lease = await acquire()
  const { id } = lease.instance
  lease[Symbol.dispose]()
  clock.advance(15_000)
  await until(() => fleet.health('rev-one').standby === 1)
  const again = await acquire()
  expect(again.instance.id).toBe(id)
  expect(fleet.health('rev-one').standby).toBe(0)
  again[Symbol.dispose]()
  clock.advance(idleMs)
  await until(() => fleet.health('rev-one').instances === 0)
  await until(() => instances.ownerOf(id) === null)
  expect(await machines()).toEqual([])
  using fresh = await acquire()
  expect(fresh.instance.id).not.toBe(id)
})

test('minScale instances are there before any request, awake, and stay', async () => {
  fleet.serve(testRun({ minScale: 2 }))
  await until(() => running.length === 2)
  await passing(fleet.ready('rev-one'))
  clock.advance(60_000)
  const lease = await acquire()
  lease[Symbol.dispose]()
  clock.advance(2 * idleMs)
  await passing(Promise.resolve())
  expect(fleet.health('rev-one')).toMatchObject({ instances: 2, standby: 0 })
})

test('a program that ends before it listens is told of with its exit code and what it wrote', async () => {
  program = async ({ stderr }) => {
    await stderr('Error: no module called left-pad\n    at main.js:1\n')
    return 7
  }
  fleet.serve(testRun())
  const failure = await failureOf(passing(fleet.ready('rev-one')))
  expect(failure.message).toContain(
    'The program of the agent "hello" ended with exit code 7 before it listened on port 3000. Its last lines:\n' +
      '  Error: no module called left-pad\n      at main.js:1',
  )
  expect(await machines()).toEqual([])
})

test('a program that wrote nothing but empty lines is told to have written nothing', async () => {
  program = async ({ stderr }) => {
    await stderr('\n  \n')
    return 7
  }
  fleet.serve(testRun())
  const failure = await failureOf(passing(fleet.ready('rev-one')))
  expect(failure.message).toEndWith('before it listened on port 3000. It wrote nothing.')
})

test('nobody looks any longer whether a program listens that has ended', async () => {
  let looks = 0
  const create = runtime.create.bind(runtime)
  runtime.create = async (...wanted) => {
    const instance = await create(...wanted)
    const listening = instance.listening.bind(instance)
    instance.listening = (asked) => {
      looks++
      return listening(asked)
    }
    return instance
  }
  program = () => 7
  fleet.serve(testRun())
  await failureOf(passing(fleet.ready('rev-one')))
  await passing(fleet.retire('rev-one', { now: true }))
  const before = looks
  for (let turn = 0; turn < 50; turn++) await clock.turn(100)
  expect(looks).toBe(before)
})

test('a program that never listens is told of as it is documented', async () => {
  program = async ({ stdout, signal }) => {
    await stdout('listening on port 80\n')
    await ended(signal)
    return 0
  }
  fleet.serve(testRun())
  const ready = fleet.ready('rev-one')
  ready.catch(() => {})
  await until(() => running.length === 1)
  clock.advance(120_000)
  const failure = await failureOf(passing(ready))
  expect(failure.message).toMatch(
    /STARTUP TCP probe failed.*port 3000.*DEADLINE_EXCEEDED.*HOST and PORT.*\n {2}listening on port 80/s,
  )
})

test('what a program writes is in the logs of its deployment', async () => {
  program = async (context) => {
    await context.stdout('one\ntwo\n')
    await context.stderr('three\n')
    return await serves(context)
  }
  fleet.serve(testRun())
  using lease = await acquire()
  const query = () =>
    logs.query({ workspace: 'main', kind: 'agents', name: 'hello' }, { instance: lease.instance.id })
  let lines = (await query()).lines
  while (lines.length < 3) {
    clock.advance(5)
    lines = (await query()).lines
  }
  const said = lines.map(({ stream, message, revision }) => `${revision} ${stream} ${message}`)
  expect(said.sort()).toEqual(['rev-one stderr three', 'rev-one stdout one', 'rev-one stdout two'])
})

test('an instance whose program ends is replaced, and the next request finds the new one', async () => {
  let end = () => {}
  program = async (context) => {
    context.serve(port, () => new Response('here'))
    const asked = new Promise<void>((resolve) => {
      end = resolve
    })
    await Promise.race([asked, ended(context.signal)])
    return 1
  }
  fleet.serve(testRun())
  const lease = await acquire()
  const { id } = lease.instance
  lease[Symbol.dispose]()
  end()
  await until(() => starts === 2)
  using next = await acquire()
  expect(next.instance.id).not.toBe(id)
  await until(() => instances.ownerOf(id) === null)
  expect(await machines()).toHaveLength(1)
})

test('a revision that crashes over and over backs off, says why, and is not started for ever where nobody asks', async () => {
  program = async ({ stdout }) => {
    await stdout('cannot work\n')
    return 3
  }
  fleet.serve(testRun())
  await passing(fleet.ready('rev-one').catch(() => {}))
  await until(() => fleet.health('rev-one').crashes === 4)
  expect(await failureOf(fleet.acquire('rev-one'))).toMatchObject({
    code: 'workload_unavailable',
    retryAfterSeconds: expect.any(Number),
    message: expect.stringContaining('cannot work'),
  })
  expect(fleet.health('rev-one')).toMatchObject({
    instances: 0,
    lastError: expect.stringContaining('exit code 3'),
  })
  for (let minute = 0; minute < 60; minute++) {
    clock.advance(60_000)
    await passing(new Promise((resolve) => setTimeout(resolve, 5)))
  }
  expect(starts).toBeLessThan(12)
  expect(crashes.length).toBeLessThan(4)
  expect(crashes[0]).toMatch(/^hello Crashed 3 times in a row\. .*exit code 3.*cannot work/s)
  program = serves
  using lease = await acquire()
  expect(await ask(lease)).toMatchObject({ BL_NAME: 'hello' })
})

test('one that retires answers what is under way, takes nothing new, and leaves nothing', async () => {
  fleet.serve(testRun())
  const lease = await acquire()
  const retired = fleet.retire('rev-one')
  expect(() => fleet.acquire('rev-one')).toThrow('does not serve')
  clock.advance(60_000)
  await passing(Promise.resolve())
  expect(await ask(lease)).toMatchObject({ BL_NAME: 'hello' })
  lease[Symbol.dispose]()
  await passing(retired)
  await until(() => instances.ownerOf(lease.instance.id) === null)
  expect(await machines()).toEqual([])
  await fleet.retire('rev-one')
})

test('one that is to go at once waits for nothing that is under way', async () => {
  fleet.serve(testRun())
  using lease = await acquire()
  const retired = fleet.retire('rev-one')
  await passing(Promise.all([retired, fleet.retire('rev-one', { now: true })]))
  await until(() => instances.ownerOf(lease.instance.id) === null)
  expect(fleet.revisionOf(lease.instance.id)).toBeNull()
})

test('one that retires and is wanted again goes on with what it has', async () => {
  fleet.serve(testRun())
  const lease = await acquire()
  const retired = fleet.retire('rev-one')
  fleet.serve(testRun())
  await passing(retired)
  using next = await acquire()
  expect(next.instance.id).toBe(lease.instance.id)
  lease[Symbol.dispose]()
})

test('a later life of the platform takes up what runs, removes what nothing serves, and repeats no line of the logs', async () => {
  program = async (context) => {
    await context.stdout('begun\n')
    return await serves(context)
  }
  fleet.serve(testRun())
  fleet.serve(testRun({ id: 'rev-two' }))
  const kept = await acquire()
  const dropped = await passing(fleet.acquire('rev-two'))
  const query = () => logs.query({ workspace: 'main', kind: 'agents', name: 'hello' })
  while ((await query()).total < 2) clock.advance(5)
  fleet.close()
  await instances.close({ keepInstances: true })
  openFleet()
  await instances.recover()
  fleet.serve(testRun())
  fleet.open()
  using again = await acquire()
  expect(again.instance.id).toBe(kept.instance.id)
  expect(await ask(again)).toMatchObject({ BL_REVISION: 'rev-one' })
  await until(() => instances.ownerOf(dropped.instance.id) === null)
  expect(await machines()).toEqual([kept.instance.id])
  expect(starts).toBe(2)
  clock.advance(1000)
  await passing(new Promise((resolve) => setTimeout(resolve, 5)))
  expect((await query()).total).toBe(2)
})

test('what was stopped together with the platform is made anew when it is asked for', async () => {
  fleet.serve(testRun())
  const lease = await acquire()
  fleet.close()
  await instances.close({ keepInstances: false })
  expect(await machines()).toEqual([])
  openFleet()
  await instances.recover()
  fleet.serve(testRun())
  fleet.open()
  using again = await acquire()
  expect(again.instance.id).not.toBe(lease.instance.id)
  await until(() => instances.ownerOf(lease.instance.id) === null)
  expect(await machines()).toEqual([again.instance.id])
})

test('of a server that speaks over its standard streams nothing is started but the machine', async () => {
  fleet.serve(testRun({ kind: 'function', transport: 'stdio' }))
  await passing(fleet.ready('rev-one'))
  using lease = await acquire()
  expect(starts).toBe(0)
  expect(lease.program.env).toMatchObject({ BL_TYPE: 'function', FROM_OWNER: 'yes' })
})

test('a session finds its instance, or hears that it is gone; an instance that has no room for it is passed over', async () => {
  fleet.serve(testRun())
  const lease = await acquire()
  const { id } = lease.instance
  lease[Symbol.dispose]()
  using same = await fleet.acquire('rev-one', undefined, { instanceId: id })
  expect(same.instance.id).toBe(id)
  expect(await failureOf(fleet.acquire('rev-one', undefined, { instanceId: 'another' }))).toMatchObject({
    code: 'workload_not_found',
  })
  using other = await passing(
    fleet.acquire('rev-one', undefined, { fits: (instanceId) => instanceId !== id }),
  )
  expect(other.instance.id).not.toBe(id)
})

test('who leaves while an instance starts for them waits no longer', async () => {
  program = async ({ signal }) => {
    await ended(signal)
    return 0
  }
  fleet.serve(testRun())
  const leaving = new AbortController()
  const waiting = fleet.acquire('rev-one', leaving.signal)
  await until(() => running.length === 1)
  leaving.abort(new Error('gone'))
  expect((await failureOf(waiting)).message).toBe('gone')
})
