import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { SandboxInstance } from '@blaxel/core'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** Every method of `sandbox.process`, through the unmodified client and a real guest. */

let client: TestClient
let sandbox: SandboxInstance

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process' })
  sandbox = await client.SandboxInstance.create({ name: 'processes' })
}, 60_000)

afterAll(() => client?.[Symbol.asyncDispose](), 30_000)

/** A line of 200 bytes for each number. */
const numbered = (count: number) => `seq -f '%0199g' 1 ${count}`

describe('exec', () => {
  test('answers at once with a running process, whose output is fetched later', async () => {
    const started = await sandbox.process.exec({ command: 'echo out; echo err >&2', name: 'quick' })
    expect(started).toMatchObject({ name: 'quick', exitCode: 0, logs: null })
    expect(started.pid).toMatch(/^\d+$/)
    const ended = await sandbox.process.wait('quick', { interval: 10 })
    expect(ended).toMatchObject({ status: 'completed', exitCode: 0, stdout: 'out\n', stderr: 'err\n' })
    expect(ended.completedAt).toMatch(/^\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT$/)
    expect(await sandbox.process.logs('quick')).toBe('out\nerr\n')
    expect(await sandbox.process.logs('quick', 'stdout')).toBe('out\n')
    expect(await sandbox.process.logs('quick', 'stderr')).toBe('err\n')
  })

  test('that waits calls back for every line of each stream as it comes, and answers with all of it', async () => {
    const seen: Record<'log' | 'out' | 'err', string[]> = { log: [], out: [], err: [] }
    const done = await sandbox.process.exec({
      command: `printf 'a\\n\\nb "quoted" \\\\ \\t é\\n'; echo bad >&2; printf 'no end'; exit 4`,
      waitForCompletion: true,
      onLog: (line) => seen.log.push(line),
      onStdout: (line) => seen.out.push(line),
      onStderr: (line) => seen.err.push(line),
    })
    // The client itself leaves out empty lines.
    expect(seen.out).toEqual(['a', 'b "quoted" \\ \t é', 'no end'])
    expect(seen.err).toEqual(['bad'])
    expect(seen.log.toSorted()).toEqual([...seen.out, ...seen.err].toSorted())
    expect(done).toMatchObject({ status: 'failed', exitCode: 4, stderr: 'bad\n' })
    expect(done.stdout).toEndWith('no end')
  })

  test('that does not wait calls back, too, until it is closed', async () => {
    const lines: string[] = []
    const two = Promise.withResolvers<void>()
    const started = await sandbox.process.exec({
      command: 'i=0; while read -r line; do echo "got $line"; done',
      name: 'echoes',
      stdin: true,
      onLog: (line: string) => {
        lines.push(line)
        if (lines.length === 2) two.resolve()
      },
    } as never)
    const encoder = new TextEncoder()
    await sandbox.process.writeStdin('echoes', encoder.encode('one\ntwo\n') as never)
    await two.promise
    ;(started as unknown as { close(): void }).close()
    await sandbox.process.writeStdin('echoes', encoder.encode('three\n') as never)
    await sandbox.process.closeStdin('echoes')
    await sandbox.process.closeStdin('echoes')
    expect((await sandbox.process.wait('echoes', { interval: 10 })).stdout).toBe(
      'got one\ngot two\ngot three\n',
    )
    expect(lines).toEqual(['got one', 'got two'])
  })

  test('whose working directory does not exist says so, streamed or not', async () => {
    const command = { command: 'ls', workingDir: '/nowhere', waitForCompletion: true }
    const reason = "could not execute command 'ls' because folder '/nowhere' does not exist"
    await expect(sandbox.process.exec({ ...command })).rejects.toThrow(reason)
    await expect(sandbox.process.exec({ ...command, onLog: () => {} })).rejects.toThrow(reason)
  })
})

describe('output', () => {
  test('an attached reader gets every line of a flood once, however much it is', async () => {
    let next = 1
    const wrong: string[] = []
    const done = await sandbox.process.exec({
      command: numbered(400_000),
      waitForCompletion: true,
      onStdout: (line) => {
        if (Number(line) !== next++) wrong.push(line)
      },
    })
    expect([done.status, next - 1, wrong]).toEqual(['completed', 400_000, []])
    expect(done.stdout).toStartWith('[... truncated, see the process log file for the full output ...]\n')
  })

  test('a late reader gets the last 32 MiB, and first that there was more', async () => {
    const lines = 300_000
    await sandbox.process.exec({ command: numbered(lines), name: 'flood', waitForCompletion: true })
    const seen: string[] = []
    await sandbox.process.streamLogs('flood', { onLog: (line) => seen.push(line) }).wait()
    expect(seen.shift()).toBe('[... truncated, see the process log file for the full output ...]')
    // The oldest line that is kept may have lost its beginning.
    const first = Number(seen[1])
    expect(seen.slice(1).map(Number)).toEqual(
      Array.from({ length: lines - first + 1 }, (_, at) => first + at),
    )
    expect(seen.length * 200).toBeGreaterThanOrEqual(32 * 1024 * 1024)
  })

  test('as records it is exact, bytes that are no text included, and restarts have a record of their own', async () => {
    await sandbox.process.exec({
      command: `printf 'text\\n\\377\\000'; exit 1`,
      name: 'records',
      restartOnFailure: true,
      maxRestarts: 1,
      waitForCompletion: true,
    })
    const answer = await client.request(
      `/${client.platform.credentials.workspace}/sandboxes/processes/process/records/logs/stream`,
      { headers: { accept: 'application/x-ndjson' } },
    )
    const records = (await answer.text())
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line))
      .filter(({ type }) => type !== 'keepalive')
    const base64 = Buffer.from('text\n\xff\0', 'latin1').toString('base64')
    expect(records).toEqual([
      { type: 'stdout', data: base64, encoding: 'base64' },
      {
        type: 'restart',
        data: '\n[Process failed with exit code 1. Attempting restart 1/1...]\n',
        attempt: 1,
        exitCode: 1,
      },
      { type: 'stdout', data: base64, encoding: 'base64' },
    ])
  })
})
