import { afterAll, beforeAll, expect, test } from 'bun:test'
import { openTestMachine, type TestMachine } from '../../http/mcp/bridge/test-machine.ts'
import { HurriedClock } from '../../lib/test-clock.ts'
import type { RevisionRun } from '../fleet/index.ts'
import { StdioProbes } from './index.ts'

const clock = new HurriedClock()
let machine: TestMachine

beforeAll(async () => {
  machine = await openTestMachine([], clock)
})
afterAll(() => machine[Symbol.asyncDispose]())

const logged: string[] = []
const probes = new StdioProbes({
  clock,
  logs: { append: ({ revision, stream }, line) => void logged.push(`${revision} ${stream}: ${line}`) },
})

/** The message that a program is refused with, or 'ready'. */
async function probe(
  argv: string[],
  { signal = new AbortController().signal, id = 'rev-1' } = {},
): Promise<string> {
  const run: RevisionRun = {
    ...{
      id,
      workspace: 'main',
      kind: 'function',
      name: 'tools',
      labels: {},
      image: 'function/tools:1',
      env: {},
    },
    ...{ memoryMb: 512, port: 1, minScale: 0, maxScale: 1, transport: 'stdio' },
  }
  const probing = probes.probe(run, machine.instance, { ...machine.program, argv }, signal)
  return await probing.then(
    () => 'ready',
    (error: Error) => error.message,
  )
}

const script = (text: string) => [process.execPath, '-e', text]

test('a server that answers is ready, and is not asked again', async () => {
  const notebook = `${import.meta.dir}/../../../fixtures/mcp-stdio/src/server.ts`
  expect(await probe([process.execPath, notebook], { id: 'rev-0' })).toBe('ready')
  expect(await probe(['/no/such/program'], { id: 'rev-0' })).toBe('ready')
})

test('one that ends before that is told with its last words', async () => {
  const message = await probe(script("console.error('no DATABASE_URL'); process.exit(7)"))
  expect(message).toContain('the server ended with exit code 7 before it answered "initialize"')
  expect(message).toContain('no DATABASE_URL')
  expect(logged).toContain('rev-1 stderr: no DATABASE_URL')
})

test('one that serves by HTTP is told what it has to do', async () => {
  const probing = probe(script("console.log('listening on 3000'); setInterval(() => {}, 1000)"))
  let over = false
  void probing.then(() => {
    over = true
  })
  while (!over) {
    clock.advance(121_000)
    await Bun.sleep(5)
  }
  const message = await probing
  expect(message).toContain('did not answer "initialize" within 120 seconds')
  expect(message).toContain('transport = "stdio"')
})

test('one that refuses, and one that is not there', async () => {
  const refuses = `for await (const line of console) console.log(JSON.stringify({ id: JSON.parse(line).id, error: { message: 'no' } }))`
  expect(await probe(script(refuses))).toContain('its answer to "initialize" was an error: no')
  expect(await probe(['/no/such/program'])).toContain('/no/such/program')
})

test('a probe that is called off ends', async () => {
  const off = new AbortController()
  const probing = probe(script('setInterval(() => {}, 1000)'), { signal: off.signal })
  off.abort(new Error('enough'))
  expect(await probing).toBe('enough')
})
