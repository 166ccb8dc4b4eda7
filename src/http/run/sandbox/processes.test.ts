import { afterAll, describe, expect, test } from 'bun:test'
import { PlatformError } from '../../../errors.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import { ServedSandbox } from '../test-sandbox.ts'
import { outputStreamsMax } from './processes.ts'

const served = new ServedSandbox()
const { machine, base } = served
afterAll(() => served.close())

const post = (body: unknown, headers: Record<string, string> = {}) =>
  fetch(`${base}/process`, { method: 'POST', body: JSON.stringify(body), headers })
const json = async (response: Response | Promise<Response>) =>
  (await (await response).json()) as Record<string, unknown>

describe('processes', () => {
  test('run, are awaited, and answer with what they wrote', async () => {
    const done = await json(
      post({ command: 'echo test; echo bad >&2; exit 3', waitForCompletion: true, name: 'first' }),
    )
    expect(done).toMatchObject({
      name: 'first',
      status: 'failed',
      exitCode: 3,
      stdout: 'test\n',
      stderr: 'bad\n',
    })
    expect(await json(fetch(`${base}/process/first/logs`))).toMatchObject({
      stdout: 'test\n',
      stderr: 'bad\n',
    })
    expect(await json(fetch(`${base}/process/${done.pid}`))).toMatchObject({ name: 'first' })
    const list = (await (await fetch(`${base}/process`)).json()) as { name: string }[]
    expect(list.map(({ name }) => name)).toContain('first')
    expect(await json(fetch(`${base}/process/nobody`))).toEqual({ error: 'process not found' })
  })

  test('bad requests are told what is wrong', async () => {
    const empty = await post({})
    expect(empty.status).toBe(400)
    expect((await json(empty)).error).toMatch(/^invalid request body: .*command/)
    const dir = await post({ command: 'ls', workingDir: '/nope' })
    expect([dir.status, (await json(dir)).error]).toEqual([
      422,
      "failed to start process: could not execute command 'ls' because folder '/nope' does not exist",
    ])
    const large = await fetch(`${base}/process`, {
      method: 'POST',
      body: `{"command":"${'x'.repeat(10_000_000)}"}`,
    })
    expect(large.status).toBe(413)
  })

  test('stop, kill and stdin work by name', async () => {
    await post({ command: 'sleep 100', name: 'sleeper' })
    expect(await json(fetch(`${base}/process/sleeper`, { method: 'DELETE' }))).toEqual({
      message: 'Process stopped successfully',
    })
    expect(await json(fetch(`${base}/process/sleeper`))).toMatchObject({ status: 'stopped', exitCode: -1 })
    expect((await fetch(`${base}/process/sleeper/kill`, { method: 'DELETE' })).status).toBe(404)
    await post({ command: 'cat', name: 'cat', stdin: true })
    expect((await fetch(`${base}/process/cat/stdin`, { method: 'POST', body: 'hi\n' })).status).toBe(200)
    expect((await fetch(`${base}/process/cat/stdin`, { method: 'DELETE' })).status).toBe(200)
    expect(await (await fetch(`${base}/process/cat/logs/stream`)).text()).toBe('stdout:hi\n')
    expect((await fetch(`${base}/process/sleeper/stdin`, { method: 'POST', body: 'x' })).status).toBe(409)
    expect((await fetch(`${base}/process/nobody/logs/stream`)).status).toBe(404)
  })

  test('a streamed execution tells what was written, in no blank line, and the process at the end', async () => {
    const answer = await post(
      { command: 'echo one; echo; printf two; sleep 0.3; echo three >&2', waitForCompletion: true },
      { accept: 'text/event-stream' },
    )
    expect(answer.headers.get('content-type')).toBe('application/x-ndjson')
    const lines = (await answer.text()).split('\n')
    expect(lines.pop()).toBe('')
    const events = lines.map((line) => JSON.parse(line)).filter(({ type }) => type !== 'keepalive')
    const result = JSON.parse(events.pop().data)
    expect(result).toMatchObject({ status: 'completed', stdout: 'one\n\ntwo', stderr: 'three\n' })
    const said = (stream: string) => events.flatMap(({ type, data }) => (type === stream ? [data] : []))
    expect(said('stdout')).toEqual(['one\n', '\n', 'two'])
    expect(said('stderr')).toEqual(['three\n'])
  })

  test('that a process does not read is said by the sandbox, not as if the platform were away', async () => {
    await post({ command: 'sleep 100', name: 'busy', stdin: true })
    const { writeStdin } = machine.guest.processes
    const notRead = new PlatformError('unavailable', 'it reads nothing', {
      details: { code: 'STDIN_NOT_READ' },
    })
    machine.guest.processes.writeStdin = () => Promise.reject(notRead)
    const answer = await fetch(`${base}/process/busy/stdin`, { method: 'POST', body: 'x' })
    machine.guest.processes.writeStdin = writeStdin
    expect(answer.status).toBe(503)
    expect(await answer.json()).toEqual({ error: 'it reads nothing', code: 'STDIN_NOT_READ' })
    await fetch(`${base}/process/busy/kill`, { method: 'DELETE' })
  })

  test('a prompt is told while the program waits for its answer', async () => {
    const answer = await post(
      { command: 'printf "name? "; read name; echo "hello $name"', name: 'asks', stdin: true },
      { accept: 'text/event-stream' },
    )
    const decoder = new TextDecoder()
    let text = ''
    let isAnswered = false
    for await (const chunk of answer.body!) {
      text += decoder.decode(chunk, { stream: true })
      if (isAnswered || !text.includes('"name? "')) continue
      isAnswered = true
      await fetch(`${base}/process/asks/stdin`, { method: 'POST', body: 'you\n' })
    }
    const events = text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line))
    const said = events.flatMap(({ type, data }) => (type === 'stdout' ? [data] : []))
    expect(said).toEqual(['name? ', 'hello you\n'])
  })

  test('a stream of logs starts at once, and a client that leaves it ends nothing but its lease', async () => {
    await post({ command: 'sleep 100', name: 'quiet' })
    const client = new AbortController()
    const answer = await fetch(`${base}/process/quiet/logs/stream`, { signal: client.signal })
    const reader = answer.body!.getReader()
    expect(new TextDecoder().decode((await reader.read()).value)).toBe('[keepalive]\n')
    expect(machine.leases).toBe(1)
    client.abort()
    await eventually(() => machine.leases === 0)
    expect((await json(fetch(`${base}/process/quiet`))).status).toBe('running')
    await fetch(`${base}/process/quiet/kill`, { method: 'DELETE' })
  })

  test('streams are so many at once and no more, and nothing is started for one that is refused', async () => {
    await post({ command: 'sleep 100', name: 'followed' })
    const clients = new AbortController()
    const follow = () => fetch(`${base}/process/followed/logs/stream`, { signal: clients.signal })
    const open = await Promise.all(Array.from({ length: outputStreamsMax }, follow))
    expect(new Set(open.map(({ status }) => status))).toEqual(new Set([200]))
    const refused = await follow()
    expect(refused.status).toBe(429)
    expect(await refused.text()).toContain(`${outputStreamsMax} streams of output open`)
    const execution = () => post({ command: 'true', name: 'late' }, { accept: 'text/event-stream' })
    expect((await execution()).status).toBe(429)
    expect((await fetch(`${base}/process/late`)).status).toBe(404)
    clients.abort()
    await eventually(() => machine.leases === 0)
    expect((await execution()).status).toBe(200)
    await fetch(`${base}/process/followed/kill`, { method: 'DELETE' })
  })
})
