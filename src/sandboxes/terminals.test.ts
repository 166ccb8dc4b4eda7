import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { ScriptedGuest } from './processes/test-guest.ts'
import { SandboxTerminals, type TerminalClient, terminalIdleMs } from './terminals.ts'

let dir: string
let clock: FakeClock
let guest: ScriptedGuest
let nextId: number

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-terminals-'))
  clock = new FakeClock(Date.UTC(2026, 0, 5, 12))
  guest = new ScriptedGuest(clock)
  nextId = 1
})

afterEach(() => rmSync(dir, { recursive: true, force: true }))

async function open(): Promise<SandboxTerminals> {
  const terminals = new SandboxTerminals({
    guest,
    recordsFile: join(dir, 'terminals'),
    clock,
    log: silentLogger,
    defaults: { env: { A: '1' }, workingDir: '/blaxel' },
    takeId: () => nextId++,
  })
  await terminals.open()
  return terminals
}

class Screen implements TerminalClient {
  text = ''
  dismissed: { code: number; reason: string } | null = null
  keepsUp = true
  output(text: string): boolean {
    this.text += text
    return this.keepsUp
  }
  dismiss(code: number, reason: string): void {
    this.dismissed = { code, reason }
  }
}

const request = { sessionId: 'default', cols: 80, rows: 24 }

test('the first shell that is there is taken, on a terminal of the size asked for', async () => {
  const terminals = await open()
  guest.failSpawn = new PlatformError('unprocessable', 'cannot start "zsh": exec')
  guest.onSpawn = () => {}
  const spawn = guest.processes.spawn
  const tried: string[] = []
  guest.processes.spawn = (spec) => {
    tried.push(spec.argv[0] ?? '')
    if (spec.argv[0] === 'bash') guest.failSpawn = null
    return spawn(spec)
  }
  await terminals.join({ ...request, workingDir: 'app' }, new Screen())
  expect(tried).toEqual(['zsh', 'bash'])
  expect(guest.spawned[0]).toMatchObject({
    pty: { cols: 80, rows: 24 },
    workingDir: '/blaxel/app',
    env: { A: '1', TERM: 'xterm-256color', SHELL: 'bash' },
  })
})

test('two who come at once share one shell', async () => {
  const terminals = await open()
  const sessions = await Promise.all([1, 2].map(() => terminals.join(request, new Screen())))
  expect(guest.spawned).toHaveLength(1)
  expect(sessions[0]).toBe(sessions[1]!)
})

test('a shell that nobody looks at is ended after ten minutes, and not before', async () => {
  const terminals = await open()
  const screen = new Screen()
  const session = await terminals.join(request, screen)
  await clock.turn(2 * terminalIdleMs)
  expect(guest.signals).toEqual([])
  session.leave(screen)
  await clock.turn(terminalIdleMs - 1)
  const again = new Screen()
  expect(await terminals.join(request, again)).toBe(session)
  session.leave(again)
  await clock.turn(terminalIdleMs - 1)
  expect(guest.signals).toEqual([])
  await clock.turn(1)
  expect(guest.signals).toEqual([{ id: 1, signal: 9, scope: 'tree' }])
  expect(guest.forgotten).toEqual([1])
  expect(await terminals.join(request, new Screen())).not.toBe(session)
})

test('after a restart of hutch a shell is where it was, with what it wrote', async () => {
  const before = await open()
  const screen = new Screen()
  await before.join(request, screen)
  guest.write(1, 'stdout', 'said before\r\n')
  await clock.turn(0)
  before.close()
  expect(screen.dismissed?.code).toBe(1012)
  guest.write(1, 'stdout', 'said meanwhile\r\n')
  const after = await open()
  await clock.turn(0)
  const again = new Screen()
  await after.join(request, again)
  expect(again.text).toBe('\x1b[0msaid before\r\nsaid meanwhile\r\n')
  expect(guest.spawned).toHaveLength(1)
})

test('a shell that ended while hutch was down is forgotten, and so are records that cannot be read', async () => {
  const before = await open()
  await before.join(request, new Screen())
  before.close()
  guest.end(1, { exitCode: 0 })
  await open()
  expect(guest.forgotten).toEqual([1])
  writeFileSync(join(dir, 'terminals'), '{"version":')
  await (await open()).join(request, new Screen())
  expect(guest.spawned).toHaveLength(2)
})

test('who joins late gets the last 100 KiB, from the beginning of a line', async () => {
  const terminals = await open()
  const session = await terminals.join(request, new Screen())
  for (let line = 0; line < 3000; line++) guest.write(1, 'stdout', `${'x'.repeat(90)} ${line}\r\n`)
  await clock.turn(0)
  const late = new Screen()
  session.join(late)
  expect(late.text).toMatch(/^.\[0mx{90} \d+\r\n/s)
  expect(late.text).toEndWith('2999\r\n')
  expect(late.text.length).toBeLessThanOrEqual(100 * 1024 + 4)
})

test('one that keeps up waits ten seconds for one that does not', async () => {
  const terminals = await open()
  const [fast, slow] = [new Screen(), new Screen()]
  await terminals.join(request, fast)
  const session = await terminals.join(request, slow)
  slow.keepsUp = false
  guest.write(1, 'stdout', 'one')
  await clock.turn(0)
  guest.write(1, 'stdout', 'two')
  await clock.turn(9000)
  expect(fast.text).toBe('one')
  session.resume(slow)
  await clock.turn(0)
  expect(fast.text).toBe('onetwo')
  await clock.turn(10_000)
  expect(slow.dismissed).toEqual({ code: 1013, reason: 'the terminal is too slow for its output' })
})

test('the end of the shell is told once all of its output is', async () => {
  const terminals = await open()
  const screen = new Screen()
  await terminals.join(request, screen)
  guest.write(1, 'stdout', 'bye')
  guest.end(1, { exitCode: 0 })
  await clock.turn(0)
  expect([screen.text, screen.dismissed]).toEqual(['bye', { code: 1000, reason: 'Shell exited' }])
})
