import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { SandboxLeases } from './leases.ts'
import { ScriptedGuest } from './processes/test-guest.ts'
import { SandboxProcesses } from './processes.ts'
import type { StoredSandbox } from './record.ts'
import { ProcessRestarts } from './restarts.ts'

const clock = new FakeClock(Date.UTC(2026, 0, 5, 12))
const sandbox = { workspace: 'main', name: 'box' } as StoredSandbox
let dir: string

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-restarts-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

async function open(guest: ScriptedGuest): Promise<SandboxProcesses> {
  const processes = new SandboxProcesses({
    ...{ guest, clock, log: silentLogger },
    recordsFile: join(dir, 'processes'),
    defaults: { env: {}, workingDir: '/' },
  })
  await processes.open()
  return processes
}

function restartsOf(processes: SandboxProcesses): ProcessRestarts {
  const lease = { processes, env: {}, [Symbol.dispose]() {} }
  const leases = { acquire: async () => lease } as unknown as SandboxLeases
  return new ProcessRestarts({ leases, clock, log: silentLogger })
}

test('what ended between being noted and the end of its machine is not done again', async () => {
  const guest = new ScriptedGuest(clock)
  const processes = await open(guest)
  for (const name of ['goes-on', 'completes', 'fails', 'is-killed']) {
    await processes.start({ name, command: name, restartOnFailure: true })
  }
  const running = await processes.quiesce()
  const lease = { processes, env: {} } as unknown as Parameters<ProcessRestarts['of']>[0]
  const starts = await restartsOf(processes).of(lease, running)
  expect(starts.map(({ name }) => name)).toEqual(['goes-on', 'completes', 'fails', 'is-killed'])

  const runOf = (name: string) => processes.require(name).record.runs[0]!.id
  guest.end(runOf('completes'), { exitCode: 0 })
  processes.require('fails').record.restartOnFailure = false
  guest.end(runOf('fails'), { exitCode: 3 })
  await processes.kill('is-killed')
  await processes.close()

  const afterwards = new ScriptedGuest(clock)
  const again = await open(afterwards)
  await restartsOf(again).start(sandbox, starts)
  expect(afterwards.spawned.map(({ argv }) => argv.at(-1))).toEqual(['goes-on'])
  expect(again.require('completes').status).toBe('completed')
  await again.close()
})
