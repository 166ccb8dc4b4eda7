import { Database } from 'bun:sqlite'
import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { unusedPorts } from '../src/lib/test-ports.ts'
import { buildIfStale } from './build.ts'
import { canIsolate } from './host.ts'
import { RunningHutch } from './platform.ts'
import { seededChoices } from './seeded-choices.ts'

// Kills dist/hutch in the milliseconds behind an answer, often together with a sandbox's keeper or process 1, and looks
// whether every process that was acknowledged is still known, with what is true of it.

/** HUTCH_TEST_ROUNDS: more of them, to look for what is rare. */
const rounds = Number(process.env.HUTCH_TEST_ROUNDS ?? 12)
const startsPerRound = 6
const killDelayMsMax = 25
const roundTimeoutMs = 60_000

await buildIfStale()
const usable = canIsolate()

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-acknowledged-')))
const dataDir = join(directory, 'data')
const saved = { ...process.env }
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
  for (const name of Object.keys(process.env)) if (!(name in saved)) delete process.env[name]
  Object.assign(process.env, saved)
})

const { seed, below, oneOf } = seededChoices()

/** A process that was answered, and what the answer said. */
interface Acknowledged {
  name: string
  pid: string
  kind: Kind
  /** Of those that end: exactly; of those that run: what each line begins with. */
  logs: string
  exitCode: number
  /** `asked`: without an answer, so that it may have been done or not. */
  stop: 'no' | 'asked' | 'answered'
}

const kinds = ['counts', 'ends', 'waited', 'restarts'] as const
type Kind = (typeof kinds)[number]

let serial = 0
const acknowledged = new Map<string, Acknowledged>()
const files = new Map<string, string>()

async function startOne(box: Sandbox, kind: Kind): Promise<void> {
  const name = `${kind}-${serial++}`
  const exitCode = below(2) * 3
  const counting = `i=0; while :; do echo ${name} $i; i=$((i+1)); sleep 0.02; done`
  const command = kind === 'counts' || kind === 'restarts' ? counting : `echo ${name}; exit ${exitCode}`
  const { pid, status } = await box.process.exec({
    name,
    command,
    waitForCompletion: kind === 'waited',
    ...(kind === 'restarts' ? { restartOnFailure: true, maxRestarts: 2, env: { SECRET: name } } : {}),
  })
  if (kind === 'waited') expect(status).toBe(exitCode === 0 ? 'completed' : 'failed')
  acknowledged.set(name, { name, pid, kind, exitCode, stop: 'no', logs: name })
}

async function stopOne(box: Sandbox): Promise<void> {
  const running = [...acknowledged.values()].filter(({ kind, stop }) => kind === 'counts' && stop === 'no')
  const chosen = oneOf(running)
  if (chosen === undefined) return
  chosen.stop = 'asked'
  await box.process.stop(chosen.name)
  chosen.stop = 'answered'
}

async function writeOne(box: Sandbox): Promise<void> {
  const path = `/root/file-${serial++}`
  const text = `${path} `.repeat(oneOf([1, 5000]) ?? 1)
  await box.fs.write(path, text)
  files.set(path, text)
}

/** The pids on this host of a sandbox's keeper and process 1. */
function hostPids(): { keeper: number; guest: number } {
  const database = new Database(join(dataDir, 'hutch.db'), { readonly: true })
  const row = database.query("SELECT body FROM resources WHERE kind = 'instance'").get() as { body: string }
  database.close()
  const { handle } = JSON.parse(row.body) as {
    handle: { state: { guest: { pid: number }; keeper: { pid: number } } }
  }
  return { keeper: handle.state.keeper.pid, guest: handle.state.guest.pid }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // The other one was faster to take it along.
  }
}

/** As it is, and if it ends by itself once it has. */
async function settled(box: Sandbox, { name, kind }: Acknowledged) {
  const deadline = performance.now() + roundTimeoutMs / 2
  for (;;) {
    const found = await box.process.get(name)
    if (kind !== 'ends' || found.status !== 'running' || performance.now() > deadline) return found
    await Bun.sleep(20)
  }
}

/** One whose end was asked for may end at any moment: in the end it is dead and known to be, or neither. */
async function agreesWithItsMachine(box: Sandbox, { name, pid }: Acknowledged): Promise<void> {
  const deadline = performance.now() + roundTimeoutMs / 2
  for (;;) {
    const { status } = await box.process.get(name)
    const { exitCode } = await box.process.exec({ command: `[ -d /proc/${pid} ]`, waitForCompletion: true })
    if ((status === 'running') === (exitCode === 0)) return
    if (performance.now() > deadline) throw new Error(`${name} is ${status}, and the opposite inside`)
    await Bun.sleep(20)
  }
}

async function check(box: Sandbox, machineDied: boolean): Promise<void> {
  const listed = new Map((await box.process.list()).map((process) => [process.name, process]))
  expect([...acknowledged.keys()].filter((name) => !listed.has(name))).toEqual([])
  const alive = await box.process.exec({
    command: `for p in ${[...acknowledged.values()].map(({ pid }) => pid).join(' ')}; do [ -d /proc/$p ] && echo $p; done; true`,
    waitForCompletion: true,
  })
  const alivePids = new Set(machineDied ? [] : (alive.stdout ?? '').split('\n'))
  for (const wanted of [...acknowledged.values()]) {
    const found = await settled(box, wanted)
    expect([wanted.name, found.pid]).toEqual([wanted.name, wanted.pid])
    const logs = await box.process.logs(wanted.name, 'all')
    if (wanted.kind === 'ends' || wanted.kind === 'waited') {
      // What had ended, and was told, stays as it was told.
      const lost = machineDied && wanted.kind === 'ends' && found.status === 'killed'
      const status = wanted.exitCode === 0 ? 'completed' : 'failed'
      if (!lost) {
        expect([wanted.name, found.status, found.exitCode]).toEqual([wanted.name, status, wanted.exitCode])
        expect(logs).toBe(`${wanted.name}\n`)
      }
    } else {
      const left = machineDied ? 'killed' : 'running'
      const state = wanted.stop === 'answered' || found.status === 'stopped' ? 'stopped' : left
      if (wanted.stop === 'no') expect(state).toBe(left)
      expect([wanted.name, found.status]).toEqual([wanted.name, state])
      if (wanted.stop === 'asked' && !machineDied) await agreesWithItsMachine(box, wanted)
      else expect([wanted.name, alivePids.has(wanted.pid)]).toEqual([wanted.name, state === 'running'])
      const lines = logs.trimEnd().split('\n')
      expect(lines).toEqual(lines[0] === '' ? [''] : lines.map((_, at) => `${wanted.name} ${at}`))
    }
    // Only so many ended ones are kept, and those of the next rounds are looked at again.
    if (found.status !== 'running') acknowledged.delete(wanted.name)
  }
  for (const [path, text] of files) expect(await box.fs.read(path)).toBe(text)
}

async function start(port: number): Promise<void> {
  platform = await RunningHutch.start({ dataDir, port })
}

test.skipIf(!usable || process.getuid?.() !== 0)(
  `an acknowledged process is known whatever dies right behind the answer (seed ${seed})`,
  async () => {
    console.log(`seed ${seed}`)
    // The same after each kill, and none that the kernel gives away meanwhile.
    const port = unusedPorts()
    await start(port)
    Object.assign(process.env, await platform?.env())
    const { initialize, SandboxInstance } = await import('@blaxel/core')
    initialize({
      workspace: String(process.env.BL_WORKSPACE),
      apiKey: String(process.env.BL_API_KEY),
    })
    const box = await SandboxInstance.create({ name: 'box', memory: 512 })
    for (let round = 0; round < rounds; round++) {
      const victim = oneOf([null, 'keeper', 'guest', 'both'] as const) ?? null
      const pids = hostPids()
      const delayMs = below(killDelayMsMax + 1)
      const first = Promise.withResolvers<void>()
      const work = [
        ...Array.from({ length: startsPerRound }, () => () => startOne(box, oneOf(kinds) ?? 'counts')),
        () => writeOne(box),
        () => stopOne(box),
      ]
      const answers = work.map((one) => one().then(first.resolve))
      answers.map((answer) => answer.catch(() => {}))
      await Promise.race([first.promise, Promise.allSettled(answers)])
      if (delayMs > 0) await Bun.sleep(delayMs)
      const order = [
        ...(victim === 'keeper' || victim === 'both' ? [pids.keeper] : []),
        ...(victim === 'guest' || victim === 'both' ? [pids.guest] : []),
        platform?.child.pid ?? 0,
      ]
      for (const pid of below(2) === 0 ? order : order.reverse()) kill(pid)
      await platform?.child.exited
      await Promise.allSettled(answers)
      await start(port)
      await check(box, victim !== null)
    }
    await SandboxInstance.delete('box')
    expect(await platform?.stop()).toBe(0)
  },
  rounds * roundTimeoutMs,
)
