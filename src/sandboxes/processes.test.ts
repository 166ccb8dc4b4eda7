import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import type { FakeClock } from '../lib/test-clock.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { truncationLine } from './processes/output.ts'
import type { ScriptedGuest } from './processes/test-guest.ts'
import { TestProcesses } from './processes/test-processes.ts'
import type { SandboxProcesses } from './processes.ts'

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

describe('starting', () => {
  test('a command runs in the shell, in the working directory and with the environment of the sandbox', async () => {
    const processes = await open()
    const view = await processes.start({ command: 'echo $A', env: { B: '2' }, workingDir: 'app' })
    expect(guest.spawned[0]).toMatchObject({
      argv: ['sh', '-c', 'echo $A'],
      env: { PATH: '/bin', A: '1', B: '2' },
      workingDir: '/blaxel/app',
      stdin: 'null',
    })
    expect(view).toMatchObject({
      pid: '1001',
      status: 'running',
      logs: null,
      stdout: '',
      completedAt: '',
      workingDir: 'app',
    })
    expect(view.name).toMatch(/^proc-[a-z0-9]{8}$/)
    expect(view.startedAt).toBe('Mon, 05 Jan 2026 12:00:00 GMT')
  })

  test('a name is taken while its process runs, and free afterwards; the newest answers to it', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'web' })
    expect(await refusalOf(processes.start({ command: 'b', name: 'web' }))).toMatchObject({
      code: 'bad_request',
      message: "process with name 'web' already exists and is running",
    })
    guest.end(1, { exitCode: 0 })
    await processes.start({ command: 'c', name: 'web' })
    expect((await processes.get('web')).command).toBe('c')
    expect((await processes.get('1001')).command).toBe('a')
  })

  test('of two starts of one name at the same time one succeeds', async () => {
    const processes = await open()
    const results = await Promise.allSettled([1, 2].map(() => processes.start({ command: 'a', name: 'one' })))
    expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected'])
    expect(guest.spawned).toHaveLength(1)
  })

  test('a working directory that does not exist is named, and nothing is left', async () => {
    const processes = await open()
    guest.failSpawn = new PlatformError('unprocessable', 'chdir: no such file or directory')
    expect(
      await refusalOf(processes.start({ command: 'ls', workingDir: '/missing', name: 'x' })),
    ).toMatchObject({
      code: 'unprocessable',
      message:
        "failed to start process: could not execute command 'ls' because folder '/missing' does not exist",
    })
    expect(await processes.list()).toEqual([])
    await processes.close()
    expect(await (await open()).list()).toEqual([])
  })

  test('a failed start does not hide the ended process of the same name', async () => {
    const processes = await open()
    await processes.start({ command: 'first', name: 'web' })
    guest.end(1, { exitCode: 0 })
    guest.failSpawn = new PlatformError('unprocessable', 'exec: no such file or directory')
    await refusalOf(processes.start({ command: 'second', name: 'web' }))
    expect((await processes.get('web')).command).toBe('first')
  })

  test('names with a slash and commands with NUL are refused before anything starts', async () => {
    const processes = await open()
    expect((await refusalOf(processes.start({ command: 'a', name: 'a/b' }))).code).toBe('unprocessable')
    expect((await refusalOf(processes.start({ command: 'a\0b' }))).code).toBe('unprocessable')
    expect((await refusalOf(processes.start({ command: 'x'.repeat(200_000) }))).message).toContain(
      '200000 bytes',
    )
    expect(guest.spawned).toEqual([])
  })
})

describe('ending', () => {
  test.each([
    [{ exitCode: 0 }, 'completed', 0],
    [{ exitCode: 42 }, 'failed', 42],
    [{ signal: 11 }, 'failed', -1],
  ] as const)('a process that ended by %p has status %s', async (how, status, exitCode) => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p' })
    guest.end(1, how)
    expect(await processes.get('p')).toMatchObject({
      status,
      exitCode,
      completedAt: 'Mon, 05 Jan 2026 12:00:00 GMT',
    })
  })

  test('stop sends SIGTERM to the group, kill SIGKILL to the tree, and both answer when it is over', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'stopped' })
    await processes.start({ command: 'a', name: 'killed' })
    await processes.stop('stopped')
    await processes.kill('killed')
    expect(guest.signals).toEqual([
      { id: 1, signal: 15, scope: 'group' },
      { id: 2, signal: 9, scope: 'tree' },
    ])
    expect(await processes.get('stopped')).toMatchObject({ status: 'stopped', exitCode: -1 })
    expect(await processes.get('killed')).toMatchObject({ status: 'killed', exitCode: -1 })
    expect(await refusalOf(processes.kill('killed'))).toMatchObject({
      code: 'not_found',
      message: "process 'killed' is not running",
    })
    expect((await refusalOf(processes.stop('nobody'))).message).toBe('process not found')
  })

  test('a process that ignores SIGTERM counts as stopped, and can still be killed', async () => {
    const processes = await open()
    guest.onSignal = () => {}
    await processes.start({ command: 'a', name: 'deaf' })
    const stopping = processes.stop('deaf')
    await clock.turn(1000)
    await stopping
    expect(await processes.get('deaf')).toMatchObject({ status: 'stopped', completedAt: '' })
    expect(processes.counts).toMatchObject({ running: 1 })
    expect((await refusalOf(processes.stop('deaf'))).code).toBe('not_found')
    const { pid } = await processes.start({ command: 'b', name: 'deaf' })
    expect(await processes.get('deaf')).toMatchObject({ pid, status: 'running' })
    guest.onSignal = (id, signal) => guest.end(id, { signal })
    await processes.kill('1001')
    expect(await processes.get('1001')).toMatchObject({ status: 'killed', exitCode: -1 })
    expect((await refusalOf(processes.kill('1001'))).code).toBe('not_found')
  })

  test('one that obeys SIGTERM in its own way ends as it says', async () => {
    const processes = await open()
    guest.onSignal = (id) => guest.end(id, { exitCode: 0 })
    await processes.start({ command: 'a', name: 'polite' })
    await processes.stop('polite')
    expect((await processes.get('polite')).status).toBe('completed')
  })

  test('when the machine is gone every process was killed', async () => {
    const exited = Promise.withResolvers<void>()
    const processes = await open(exited.promise)
    const waiting = processes.start({ command: 'a', name: 'p', waitForCompletion: true })
    exited.resolve()
    expect(await waiting).toMatchObject({ status: 'killed', exitCode: -1 })
  })
})

describe('waiting', () => {
  test('for completion answers with the output, exactly', async () => {
    const processes = await open()
    const waiting = processes.start({ command: 'a', waitForCompletion: true })
    await clock.turn(0)
    guest.write(1, 'stdout', 'one\n')
    guest.write(1, 'stderr', 'two\n')
    guest.write(1, 'stdout', 'three\n')
    guest.end(1, { exitCode: 3 })
    expect(await waiting).toMatchObject({
      status: 'failed',
      exitCode: 3,
      logs: 'one\nthree\ntwo\n',
      stdout: 'one\nthree\n',
      stderr: 'two\n',
    })
  })

  test('without keepAlive a timeout ends the wait and not the process', async () => {
    const processes = await open()
    const waiting = refusalOf(
      processes.start({ command: 'a', name: 'p', waitForCompletion: true, timeoutSeconds: 5 }),
    )
    await clock.turn(5000)
    expect(await waiting).toMatchObject({
      code: 'unprocessable',
      message: 'process timed out after 5 seconds',
    })
    expect((await processes.get('p')).status).toBe('running')
  })

  test('the timeout counts from the request on: a start that takes long is part of it', async () => {
    const processes = await open()
    const gate = Promise.withResolvers<void>()
    guest.spawnGate = gate.promise
    const start = (name: string) =>
      refusalOf(processes.start({ command: 'a', name, waitForCompletion: true, timeoutSeconds: 5 }))
    const message = 'process timed out after 5 seconds'
    const never = start('never')
    await clock.turn(5000)
    expect((await never).message).toBe(message)
    const late = start('late')
    await clock.turn(4000)
    gate.resolve()
    await clock.turn(1000)
    expect((await late).message).toBe(message)
    // Both go on.
    expect((await processes.list()).map(({ name, status }) => [name, status])).toEqual([
      ['never', 'running'],
      ['late', 'running'],
    ])
  })

  test('with keepAlive a timeout kills, by default after 600 seconds, never with 0', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'default', keepAlive: true })
    await processes.start({ command: 'a', name: 'short', keepAlive: true, timeoutSeconds: 5 })
    await processes.start({ command: 'a', name: 'endless', keepAlive: true, timeoutSeconds: 0 })
    expect(processes.counts).toEqual({ running: 3, ended: 0, keepAlive: 3 })
    await clock.turn(5000)
    expect((await processes.get('short')).status).toBe('killed')
    expect((await processes.get('default')).status).toBe('running')
    await clock.turn(595_000)
    expect((await processes.get('default')).status).toBe('killed')
    await clock.turn(86_400_000)
    expect((await processes.get('endless')).status).toBe('running')
  })

  test('what the kernel killed for want of memory says so, and who ended otherwise is not asked about', async () => {
    const asked: string[] = []
    const processes = await open(undefined, {}, async (name) => asked.push(name) > 1)
    for (const name of ['killed', 'greedy', 'shell', 'done', 'unwanted'])
      await processes.start({ command: 'a', name })
    guest.end(1, { signal: 9 })
    guest.end(2, { signal: 9 })
    guest.end(3, { exitCode: 137 })
    guest.end(4, { exitCode: 1 })
    await processes.kill('unwanted')
    await clock.turn(1)
    const told = (await processes.list()).map(({ name, outOfMemory }) => [name, outOfMemory ?? false])
    expect(Object.fromEntries(told)).toEqual({
      ...{ killed: false, greedy: true, shell: true, done: false, unwanted: false },
    })
    expect(asked).toEqual(['killed', 'greedy', 'shell'])
    // Whoever opens it next knows it as well.
    expect((await (await open()).get('greedy')).outOfMemory).toBe(true)
  })

  test('keepAlive is refused where the sandbox has it disabled', async () => {
    const processes = await open(undefined, { BL_DISABLE_KEEPALIVE: 'true' })
    expect((await refusalOf(processes.start({ command: 'a', keepAlive: true }))).code).toBe('bad_request')
    expect((await processes.start({ command: 'a' })).status).toBe('running')
  })

  test('for ports answers once all of them listen', async () => {
    const processes = await open()
    let done = false
    const waiting = processes.start({ command: 'a', waitForPorts: [3000, 3001] }).then(() => {
      done = true
    })
    host.listening.add(3000)
    host.listening.add(3001)
    guest.listeners.set(1, [3000])
    await clock.turn(2000)
    // Somebody listens on 3001, but nobody of this process.
    expect(done).toBe(false)
    guest.listeners.set(1, [3000, 3001])
    await clock.turn(200)
    await waiting
  })

  test('for ports goes on while something the command left in the background lives, and no longer', async () => {
    const processes = await open()
    guest.listeners.set(1, [22])
    const background = processes.start({ command: 'server &', waitForPorts: [3000] })
    await clock.turn(10)
    guest.end(1, { exitCode: 0 })
    await clock.turn(2000)
    guest.listeners.set(1, [22, 3000])
    await clock.turn(200)
    expect((await background).status).toBe('completed')
    const nothing = processes.start({ command: 'true', waitForPorts: [3000] })
    await clock.turn(10)
    guest.end(2, { exitCode: 0 })
    await clock.turn(200)
    expect((await nothing).status).toBe('completed')
  })

  test('for ports ends after its time, and at once when the command failed', async () => {
    const processes = await open()
    const late = refusalOf(processes.start({ command: 'a', waitForPorts: [1], timeoutSeconds: 7 }))
    await clock.turn(7200)
    expect((await late).message).toBe('process timed out waiting for ports after 7 seconds')
    const failed = processes.start({ command: 'b', waitForPorts: [1] })
    await clock.turn(10)
    guest.end(2, { exitCode: 1 })
    await clock.turn(200)
    await failed
    expect((await processes.get('1002')).status).toBe('failed')
  })

  test('a client that leaves ends its wait', async () => {
    const processes = await open()
    const client = new AbortController()
    const waiting = processes.start({ command: 'a', waitForCompletion: true }, client.signal)
    client.abort(new Error('left'))
    await expect(waiting).rejects.toThrow('left')
    expect(processes.counts.running).toBe(1)
  })
})

describe('restarting', () => {
  test('a failing process is started again after a second, as often as allowed, and the wait spans it all', async () => {
    const processes = await open()
    let runs = 0
    guest.onSpawn = ({ id }) => {
      runs++
      guest.write(id, 'stdout', `run ${runs}\n`)
      setImmediate(() => guest.end(id, { exitCode: 7 }))
    }
    const waiting = processes.start({
      command: 'a',
      name: 'p',
      env: { B: '2' },
      restartOnFailure: true,
      maxRestarts: 2,
      waitForCompletion: true,
    })
    await clock.turn(900)
    expect(await processes.get('p')).toMatchObject({ status: 'running', restartCount: 1, pid: '1001' })
    await clock.turn(5000)
    expect(await waiting).toMatchObject({ status: 'failed', exitCode: 7, restartCount: 2, pid: '1001' })
    expect((await waiting).stdout).toBe(
      'run 1\n\n[Process failed with exit code 7. Attempting restart 1/2...]\n' +
        'run 2\n\n[Process failed with exit code 7. Attempting restart 2/2...]\nrun 3\n',
    )
    expect(guest.spawned.map(({ env }) => env.B)).toEqual(['2', '2', '2'])
  })

  test('a follower sees every run once, and the end', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p', restartOnFailure: true, maxRestarts: 1 })
    const seen = collect(processes, 'p')
    guest.write(1, 'stdout', 'first\n')
    guest.end(1, { exitCode: 1 })
    await clock.turn(1000)
    guest.write(2, 'stdout', 'second\n')
    guest.end(2, { exitCode: 0 })
    expect(await seen).toBe('first\n\n[Process failed with exit code 1. Attempting restart 1/1...]\nsecond\n')
  })

  test('stop during the pause before a restart ends it', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p', restartOnFailure: true, maxRestarts: -1 })
    guest.end(1, { exitCode: 1 })
    await clock.turn(500)
    await processes.stop('p')
    await clock.turn(5000)
    expect(guest.spawned).toHaveLength(1)
    expect((await processes.get('p')).status).toBe('stopped')
  })

  test('a process that was stopped is not restarted', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p', restartOnFailure: true, maxRestarts: 5 })
    await processes.stop('p')
    await clock.turn(5000)
    expect(guest.spawned).toHaveLength(1)
  })
})

describe('output', () => {
  test('a late follower gets the history once and then what comes', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p' })
    guest.write(1, 'stdout', 'before\n')
    const seen = collect(processes, 'p')
    await clock.turn(0)
    guest.write(1, 'stdout', 'after\n')
    guest.end(1, { exitCode: 0 })
    expect(await seen).toBe('before\nafter\n')
    expect(await collect(processes, 'p')).toBe('before\nafter\n')
  })

  test('a character that is cut in two by a record comes out whole', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p' })
    const bytes = new TextEncoder().encode('é')
    guest.write(1, 'stdout', bytes.slice(0, 1))
    guest.write(1, 'stderr', 'x')
    guest.write(1, 'stdout', bytes.slice(1))
    expect(await processes.logs('p')).toEqual({ logs: 'éx', stdout: 'é', stderr: 'x' })
  })

  test('a get shows the last 64 KiB, logs the last 4 MiB, and both say so', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p' })
    const line = `${'x'.repeat(1023)}\n`
    for (let i = 0; i < 100; i++) guest.write(1, 'stdout', line)
    const { stdout } = await processes.get('p')
    expect(stdout.startsWith(truncationLine)).toBe(true)
    expect(stdout.length - truncationLine.length).toBe(64 * 1024)
    expect((await processes.logs('p')).stdout).toBe(line.repeat(100))
    for (let i = 0; i < 5000; i++) guest.write(1, 'stdout', line)
    expect((await processes.logs('p')).stdout.length).toBe(4 * 1024 * 1024 + truncationLine.length)
    expect((await processes.get('p')).stdout).toBe(truncationLine + line.repeat(64))
  })

  test('gets at the same time show each byte once', async () => {
    const processes = await open()
    await processes.start({ command: 'a', name: 'p' })
    guest.write(1, 'stdout', 'one\n')
    const views = await Promise.all([processes.get('p'), processes.get('p')])
    guest.write(1, 'stdout', 'two\n')
    guest.end(1, { exitCode: 0 })
    expect(views.map(({ stdout }) => stdout)).toEqual(['one\n', 'one\n'])
    expect((await processes.get('p')).logs).toBe('one\ntwo\n')
    expect((await processes.get('p')).logs).toBe('one\ntwo\n')
  })
})

describe('stdin', () => {
  test('that is not read in time is given up, also by the guest', async () => {
    const processes = await open()
    await processes.start({ command: 'sleep 100', name: 'slow', stdin: true })
    const signals: (AbortSignal | undefined)[] = []
    const forEver = (signal?: AbortSignal) => {
      signals.push(signal)
      return new Promise<void>((_, reject) =>
        signal?.addEventListener('abort', () => reject(signal.reason), { once: true }),
      )
    }
    guest.processes.writeStdin = (_, __, signal) => forEver(signal)
    guest.processes.closeStdin = (_, signal) => forEver(signal)
    const slow = processes.require('slow')
    const failures = [slow.writeStdin(Buffer.from('x')), slow.closeStdin()].map((asked) =>
      asked.catch((error: unknown) => error),
    )
    await clock.turn(10_000)
    for (const error of await Promise.all(failures)) {
      expect(error).toMatchObject({ code: 'unavailable', details: { code: 'STDIN_NOT_READ' } })
      expect(String(error)).toContain('did not read its stdin for 10 seconds')
    }
    expect(signals.map((signal) => signal?.aborted)).toEqual([true, true])
  })

  test('is written and closed when it was asked for, and refused otherwise', async () => {
    const processes = await open()
    await processes.start({ command: 'cat', name: 'cat', stdin: true })
    await processes.start({ command: 'b', name: 'deaf' })
    await processes.require('cat').writeStdin(Buffer.from('hello'))
    await processes.require('cat').closeStdin()
    expect(guest.stdin.get(1)).toBe('hello<end>')
    expect(guest.spawned[0]!.stdin).toBe('pipe')
    expect((await refusalOf(processes.require('deaf').writeStdin(Buffer.from('x')))).code).toBe('conflict')
    guest.end(1, { exitCode: 0 })
    await processes.require('cat').closeStdin()
    expect((await refusalOf(processes.require('cat').writeStdin(Buffer.from('x')))).code).toBe('conflict')
  })
})

async function collect(processes: SandboxProcesses, name: string): Promise<string> {
  let all = ''
  const decoder = new TextDecoder()
  for await (const batch of processes.require(name).follow(new AbortController().signal)) {
    for (const chunk of batch) {
      if (chunk.kind === 'restart') all += chunk.note
      else if (chunk.kind !== 'truncated') all += decoder.decode(chunk.data)
    }
  }
  return all
}
