/** For the tests of this folder: a machine without isolation, and a bridge to what runs in it, on a port. */
import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import type { RevisionProgram } from '../../../deployments/fleet/index.ts'
import { type Clock, systemClock } from '../../../lib/clock.ts'
import { silentLogger } from '../../../lib/log.ts'
import { openProcessRuntime } from '../../../runtimes/process/index.ts'
import { testHelperPath } from '../../../runtimes/test-host.ts'
import type { Instance } from '../../../spec/runtime.ts'
import { keptAlive } from '../../run/bodies.ts'
import { WholeBody } from '../../whole-body.ts'
import { splitSessionId } from '../session-ids.ts'
import { McpBridge } from './index.ts'

export interface TestMachine extends AsyncDisposable {
  url: string
  bridge: McpBridge
  instance: Instance
  /** What servers wrote for people, and what was said of them. */
  lines: string[]
  /** Leases that are held now. */
  leases(): number
  /** What is started for the next session. */
  program: RevisionProgram
  /** As after a restart of the platform: nothing is known of what runs. */
  forgetSessions(): void
}

export async function openTestMachine(argv: string[], clock: Clock): Promise<TestMachine> {
  const dir = realpathSync(mkdtempSync(`${tmpdir()}/hutch-bridge-`))
  const helperPath = await testHelperPath()
  const runtime = await openProcessRuntime({
    instancesDir: `${dir}/instances`,
    helperPath,
    log: silentLogger,
    clock: systemClock,
  })
  const workingDir = `${dir}/work`
  const instance = await runtime.create({
    id: 'bridgemachine01',
    hostname: 'machine',
    image: { digest: 'sha256:host', layers: ['/'], mounts: [] },
    ...{ memoryMb: 512, storageMb: 512, pidsMax: 512, workingDir },
    env: {},
  })
  const lines: string[] = []
  let leases = 0
  const machine = {
    bridge: new McpBridge({ clock, log: silentLogger }),
    program: { argv, env: { PATH: process.env.PATH ?? '', HOME: dir }, workingDir },
  }
  const server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    async fetch(request) {
      leases++
      const onLine = (line: string, stream: string) => void lines.push(`${stream}: ${line}`)
      const answer = await machine.bridge.handle({
        request,
        whole: new WholeBody(request, null),
        place: `main/${new URL(request.url).pathname}`,
        sessionId: splitSessionId(request.headers.get('mcp-session-id')),
        machine: { instance, program: machine.program, onLine },
        lease: { asConnection: () => ({ touch() {} }), [Symbol.dispose]: () => void leases-- },
      })
      if (answer instanceof Response) return answer
      const keepalive = { text: ': keepalive\n\n', everyMs: 15_000 }
      return new Response(keptAlive(answer.messages, keepalive, answer.release), { headers: answer.headers })
    },
  })
  return Object.assign(machine, {
    ...{ instance, lines },
    url: `http://127.0.0.1:${server.port}/mcp`,
    leases: () => leases,
    forgetSessions() {
      machine.bridge[Symbol.dispose]()
      machine.bridge = new McpBridge({ clock, log: silentLogger })
    },
    async [Symbol.asyncDispose]() {
      await server.stop(true)
      machine.bridge[Symbol.dispose]()
      await runtime.destroy(instance.id)
      console.timeLog('x')
      await runtime[Symbol.asyncDispose]()
      rmSync(dir, { recursive: true, force: true })
    },
  })
}
