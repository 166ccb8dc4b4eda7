import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** Snapshots with the memory of programs, through the client of the cloud. */

setDefaultTimeout(60_000)

const whyFilesOnly = await whyNot(({ memory }) =>
  memory ? '' : 'this host keeps no memory of programs: scripts/install-criu.sh installs what it takes',
)
const describeMemory = whyFilesOnly === '' ? describe : describe.skip
describeMemory(`memory${whyFilesOnly === '' ? '' : ` (skipped: ${whyFilesOnly})`}`, () => {
  let dataDir = ''
  let client: TestClient
  beforeAll(async () => {
    dataDir = mkdtempSync(join(tmpdir(), 'hutch-snapshots-memory-'))
    client = await openTestClient({ dataDir })
  })
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]()
    if (dataDir) rmSync(dataDir, { recursive: true, force: true })
  })

  /** Counts what it is told, in a variable of its own. */
  const counter = 'n=0; while read -r word; do n=$((n+1)); echo "$n $word $NAMED"; done'
  const startCounter = (box: Sandbox) =>
    box.process.exec({
      name: 'counter',
      command: counter,
      stdin: true,
      keepAlive: true,
      env: { NAMED: 'first' },
    })
  const type = (box: Sandbox, text: string) => box.process.writeStdin('counter', `${text}\n`)
  const counted = (box: Sandbox, text: string) =>
    eventually(`it said ${text}`, async () => (await box.process.logs('counter')) === text)
  const messages = async (name: string) =>
    (await client.SandboxInstance.get(name)).events?.map(({ message }) => message ?? '').join('\n') ?? ''

  test('what runs in a sandbox goes on in a fork and after a restore, with its name, pid and output', async () => {
    const box = await client.SandboxInstance.create({ name: 'counting', memory: 512 })
    await startCounter(box)
    await type(box, 'one')
    await counted(box, '1 one first\n')
    const { pid, startedAt } = await box.process.get('counter')
    const snapshot = await box.snapshots.create('counted')
    expect(await messages('counting')).toContain('with memory')
    await type(box, 'two')
    await counted(box, '1 one first\n2 two first\n')

    await snapshot.fork('counting-on')
    const copy = await client.SandboxInstance.get('counting-on')
    expect(await copy.process.get('counter')).toMatchObject({
      ...{ pid, startedAt, status: 'running', command: counter, keepAlive: true },
      logs: '1 one first\n',
    })
    expect((await copy.process.list()).map(({ name }) => name)).toEqual(['counter'])
    await type(copy, 'other')
    await counted(copy, '1 one first\n2 other first\n')
    expect(await messages('counting-on')).toContain(
      `Forked from the snapshot "counted" (${snapshot.id}) of the sandbox "counting"\nPrograms of the snapshot go on where they were`,
    )
    expect(await (await client.request(`/v0/snapshots/${snapshot.id}`)).json()).toMatchObject({
      memoryKept: true,
    })

    await box.snapshots.restore('counted')
    await type(box, 'again')
    await counted(box, '1 one first\n2 again first\n')
    expect((await box.process.get('counter')).pid).toBe(pid)
    await copy.process.stop('counter')
    expect((await copy.process.get('counter')).status).not.toBe('running')
    // Stopping that one has nothing to do with this one.
    expect((await box.process.get('counter')).status).toBe('running')
    const made = await copy.process.exec({ command: 'echo made', waitForCompletion: true })
    expect(made.stdout).toBe('made\n')
  })

  test('what is given another environment is started anew', async () => {
    const box = await client.SandboxInstance.create({ name: 'renamed', memory: 512 })
    await startCounter(box)
    await type(box, 'one')
    await counted(box, '1 one first\n')
    await box.fork('renamed-on', { envs: [{ name: 'OTHER', value: 'set' }] })
    const copy = await client.SandboxInstance.get('renamed-on')
    await eventually('it runs', async () =>
      (await copy.process.list()).some(({ name }) => name === 'counter'),
    )
    expect(await messages('renamed-on')).toEndWith('Programs of the snapshot are started anew')
    await type(copy, 'here')
    await counted(copy, '1 here first\n')
    expect((await copy.process.exec({ command: 'echo $OTHER', waitForCompletion: true })).stdout).toBe(
      'set\n',
    )
  })

  test('with no CRIU there are files, and the snapshot says that programs are started anew', async () => {
    await using without = await openTestClient({ dataDir: join(dataDir, 'files-only'), criu: 'none' })
    expect(without.platform.runtime.capabilities.memory).toBe(false)
    const box = await without.SandboxInstance.create({ name: 'plain', memory: 512 })
    await startCounter(box)
    await box.snapshots.create('files')
    const { events } = await without.SandboxInstance.get('plain')
    expect(events?.at(-1)?.message).toContain('programs will be started anew')
  })
})
