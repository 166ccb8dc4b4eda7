import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { appendFileSync, readFileSync, statSync } from 'node:fs'
import type { FakeClock } from '../../lib/test-clock.ts'
import { refusalOf } from '../../lib/test-refusal.ts'
import { endedProcessesMax } from '../processes.ts'
import type { ScriptedGuest } from './test-guest.ts'
import { TestProcesses } from './test-processes.ts'

let host: TestProcesses
let clock: FakeClock
let guest: ScriptedGuest
const open = (...given: Parameters<TestProcesses['open']>) => host.open(...given)

beforeEach(() => {
  host = new TestProcesses()
  clock = host.clock
  guest = host.guest
})
afterEach(() => host[Symbol.dispose]())

describe('after kill -9 of hutch', () => {
  test('names, states, logs and intentions are known again', async () => {
    const before = await open()
    await before.start({ command: 'serve', name: 'web', workingDir: 'app' })
    await before.start({ command: 'b', name: 'ended-while-away' })
    await before.start({ command: 'c', name: 'stopped' })
    guest.write(1, 'stdout', 'hello\n')
    guest.onSignal = () => {}
    const stopping = before.stop('stopped')
    await clock.turn(1000)
    await stopping
    // Nothing is closed: the next one finds only what is on disk and in the guest.
    const listeners = guest.processes
    guest.end(2, { exitCode: 5 })
    const after = await open()
    expect(listeners).toBe(guest.processes)
    expect(await after.get('web')).toMatchObject({
      pid: '1001',
      status: 'running',
      command: 'serve',
      workingDir: 'app',
      logs: 'hello\n',
    })
    expect(await after.get('ended-while-away')).toMatchObject({ status: 'failed', exitCode: 5 })
    guest.end(3, { signal: 15 })
    expect((await after.get('stopped')).status).toBe('stopped')
    expect((await refusalOf(after.start({ command: 'x', name: 'web' }))).code).toBe('bad_request')
    expect(await after.start({ command: 'x' })).toMatchObject({ pid: '1004' })
  })

  test('a deadline and a restart that were pending are kept', async () => {
    const before = await open()
    await before.start({ command: 'a', name: 'timed', keepAlive: true, timeoutSeconds: 100 })
    await before.start({
      command: 'b',
      name: 'again',
      env: { B: '2' },
      restartOnFailure: true,
      maxRestarts: 1,
    })
    guest.end(2, { exitCode: 1 })
    await clock.turn(500)
    await before.close()
    const after = await open()
    await clock.turn(1000)
    expect(guest.spawned).toHaveLength(3)
    expect(guest.spawned[2]!.env.B).toBe('2')
    expect(await after.get('again')).toMatchObject({ status: 'running', restartCount: 1 })
    await clock.turn(100_000)
    expect((await after.get('timed')).status).toBe('killed')
  })

  test('a record of a process that was never started is dropped', async () => {
    const before = await open()
    guest.processes.spawn = () => new Promise(() => {})
    void before.launch({ command: 'a', name: 'never' })
    expect(readFileSync(host.recordsFile, 'utf8')).toContain('never')
    const after = await open()
    expect(after.find('never')).toBeNull()
    await after.close()
    const again = await open()
    expect(again.counts).toMatchObject({ running: 0, ended: 0 })
  })

  test('after a restart of the machine what ran counts as killed, and its record stays', async () => {
    const before = await open()
    await before.start({ command: 'a', name: 'p' })
    await before.close()
    guest = host.newMachine()
    const after = await open()
    expect(await after.get('p')).toMatchObject({ status: 'killed', exitCode: -1, logs: '' })
    expect(await after.start({ command: 'b', name: 'p' })).toMatchObject({ pid: '1002' })
  })

  test('what was answered is known though the machine dies in the same moment', async () => {
    const before = await open()
    const running = await before.start({ command: 'serve', name: 'running' })
    guest.onSpawn = ({ id }) => guest.end(id, { exitCode: 3 })
    const ended = await before.start({ command: 'b', name: 'ended', waitForCompletion: true })
    guest = host.newMachine()
    const after = await open()
    expect(await after.get('running')).toMatchObject({ pid: running.pid, status: 'killed', exitCode: -1 })
    expect(await after.get('ended')).toMatchObject({ pid: ended.pid, status: 'failed', exitCode: 3 })
    expect(await after.list()).toHaveLength(2)
  })

  test('a process whose start nobody was told of is not lost any more once it was seen', async () => {
    const before = await open()
    const { spawn } = guest.processes
    guest.processes.spawn = async (spec) => {
      await spawn(spec)
      return await new Promise(() => {})
    }
    void before.launch({ command: 'a', name: 'p' })
    const seen = await (await open()).list()
    guest = host.newMachine()
    expect(await (await open()).get('p')).toMatchObject({ pid: seen[0]?.pid, status: 'killed' })
  })

  test('one that was closed leaves the records to its successor', async () => {
    const before = await open()
    const { spawn } = guest.processes
    const spawned = Promise.withResolvers<void>()
    guest.processes.spawn = async (spec) => {
      await spawned.promise
      return await spawn(spec)
    }
    const late = refusalOf(before.start({ command: 'a', name: 'late' }))
    await before.close()
    guest.processes.spawn = spawn
    const after = await open()
    await after.start({ command: 'b', name: 'kept' })
    spawned.resolve()
    expect((await late).code).toBe('unavailable')
    expect((await refusalOf(before.start({ command: 'c' }))).code).toBe('unavailable')
    guest = host.newMachine()
    expect((await (await open()).list()).map(({ name }) => name)).toEqual(['kept'])
  })

  test('a process that cannot be recorded is not started', async () => {
    const processes = await open()
    host[Symbol.dispose]()
    expect((await refusalOf(processes.start({ command: 'a' }))).code).toBe('unavailable')
    expect(guest.spawned).toEqual([])
  })

  test('a record that a crash cut off while it was written counts as it stood before', async () => {
    const before = await open()
    await before.start({ command: 'a', name: 'p', timeoutSeconds: 7 })
    const file = host.recordsFile
    await before.close()
    appendFileSync(file, '{"version":1,"id":1,"name":"p","comm')
    const after = await open()
    expect(await after.get('p')).toMatchObject({ status: 'running', command: 'a' })
    guest.end(1, { exitCode: 3 })
    await after.close()
    const again = await open()
    expect(await again.get('p')).toMatchObject({ status: 'failed', exitCode: 3 })
  })

  test('a record stays small, however often its process is restarted', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p', restartOnFailure: true, maxRestarts: -1 })
    for (let run = 1; run <= 400; run++) {
      guest.end(run, { exitCode: 1 })
      await clock.turn(1000)
    }
    await processes.kill('p')
    await processes.close()
    expect(statSync(host.recordsFile).size).toBeLessThan(256 * 1024)
  })

  test('records are private, and hold no environment longer than a restart may need it', async () => {
    const processes = await open()
    await processes.start({ command: 'a', env: { SECRET: 'hush' }, restartOnFailure: true, maxRestarts: 1 })
    const file = host.recordsFile
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect(readFileSync(file, 'utf8')).toContain('hush')
    await processes.kill('1001')
    await processes.close()
    expect(readFileSync(file, 'utf8')).not.toContain('hush')
    const last = readFileSync(file, 'utf8').trimEnd().split('\n').at(-1)!
    expect(JSON.parse(last).ended.status).toBe('killed')
  })
})

test('the oldest ended processes are forgotten, with output and record', async () => {
  const processes = await open()
  for (let i = 1; i <= endedProcessesMax + 3; i++) {
    await processes.start({ command: 'a', name: `p${i}` })
    guest.end(i, { exitCode: 0 })
  }
  await clock.turn(0)
  expect(processes.counts.ended).toBe(endedProcessesMax)
  expect(guest.forgotten).toEqual([1, 2, 3])
  expect(processes.find('p1')).toBeNull()
  expect(processes.find('p4')).not.toBeNull()
  await processes.close()
  const after = await open()
  expect(after.counts.ended).toBe(endedProcessesMax)
  expect(after.find('p3')).toBeNull()
})
