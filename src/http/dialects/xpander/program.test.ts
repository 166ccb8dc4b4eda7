import { afterAll, beforeAll, beforeEach, expect, test } from 'bun:test'
import { gzipSync } from 'node:zlib'
import { PlatformError } from '../../../errors.ts'
import { systemClock } from '../../../lib/clock.ts'
import type { Instance } from '../../../spec/runtime.ts'
import type { Json, Thread } from '../../../threads/index.ts'
import { LargeAnswers } from '../../large-answers.ts'
import { Exchanges } from '../../run/exchanges.ts'
import { type ProgramOptions, performer } from './program.ts'

let program: Bun.Server<undefined>
/** What the program does with a request. */
let answer: (request: Request) => Response | Promise<Response>
let asked: { path: string; threadId: string | null; body: Record<string, unknown> }[] = []
let refusal: PlatformError | null = null
let versions: (string | null)[] = []
let leases = 0

beforeAll(() => {
  program = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    async fetch(request) {
      const { pathname, search } = new URL(request.url)
      const body = (await request.json()) as Record<string, unknown>
      asked.push({ path: pathname + search, threadId: request.headers.get('x-blaxel-thread-id'), body })
      return await answer(request)
    },
  })
})
afterAll(() => program.stop(true))
beforeEach(() => {
  asked = []
  versions = []
  refusal = null
  answer = () => new Response('fine', { headers: { 'content-type': 'text/plain' } })
})

const acquired = (version: string | null) => {
  versions.push(version)
  if (refusal !== null) throw refusal
  leases++
  return {
    setCookie: null,
    revisionId: 'rev-one',
    transport: null,
    isPublic: false,
    lease: {
      instance: {
        id: 'instance',
        address: async () => ({ origin: `http://127.0.0.1:${program.port}` }),
        listening: async () => true,
      } as unknown as Instance,
      port: 80,
      program: { argv: [], env: {}, workingDir: '/' },
      asConnection: () => ({ touch() {} }),
      [Symbol.dispose]: () => void leases--,
    },
  }
}
const offered: Thread[] = []
const executing: (string | null)[] = []
const options = {
  agents: {
    find: async (_: string, id: string) =>
      id === 'gone' ? null : { id, deployment: id === 'worked' ? null : {} },
  },
  workers: {
    serves: ({ body }: Thread) => body.agentId === 'both',
    offer: (thread: Thread) => offered.push(thread),
  },
  threads: { executing: async (_: Thread, version: string | null) => void executing.push(version) },
  plane: {
    deployments: { isPublic: () => false, acquire: async () => acquired(null) },
    exchanges: new Exchanges({ clock: systemClock }),
  },
  deployments: { acquireVersion: async (...given: unknown[]) => acquired(given[3] as string) },
  answers: new LargeAnswers(systemClock),
  origin: () => 'http://localhost:4400',
} as unknown as ProgramOptions
const perform = performer(options)

async function done(change: Record<string, unknown> = {}, signal = new AbortController().signal) {
  const told: Json[] = []
  const thread = {
    name: 'thread-1',
    workspace: 'main',
    body: {
      agentId: 'writer',
      version: null,
      input: { text: 'and now?', files: ['https://example.com/a'], user: { id: 'u1' } },
      options: { additional_context: 'be brief', events_streaming: false },
      ...change,
    },
  } as unknown as Thread
  const messages = [
    { role: 'user' as const, content: 'hello' },
    { role: 'assistant' as const, content: 'hi' },
    { role: 'user' as const, content: 'and now?' },
  ]
  const turn = { thread, messages, tokens: { user_oidc_token: 'secret' }, execution: {} as never }
  const outcome = await perform(turn, (type, data) => told.push([type, data]), signal)
  return { outcome, told }
}

test('a program is asked as by hutch chat, with the conversation and what else was said', async () => {
  const { outcome, told } = await done()
  expect(asked).toEqual([
    {
      path: '/?stream=true',
      threadId: 'thread-1',
      body: {
        inputs: 'and now?',
        thread_id: 'thread-1',
        messages: [
          { role: 'user', content: 'hello' },
          { role: 'assistant', content: 'hi' },
          { role: 'user', content: 'and now?' },
        ],
        files: ['https://example.com/a'],
        user: { id: 'u1' },
        additional_context: 'be brief',
        user_oidc_token: 'secret',
      },
    },
  ])
  expect(outcome).toEqual({ by: 'program', result: 'fine' })
  expect(told).toEqual([['chunk', 'fine']])
  expect(executing.at(-1)).toBe('rev-one')
  expect(leases).toBe(0)
})

test('it is said to be executing before it answers', async () => {
  executing.length = 0
  answer = () => new Response(String(executing.length))
  expect((await done()).outcome).toEqual({ by: 'program', result: '1' })
})

test('a long answer is told and kept whole, also one that is packed, and a long refusal by its beginning', async () => {
  const long = Array.from({ length: 80_000 }, (_, count) => `line ${count}\n`).join('')
  const headers = { 'content-type': 'text/plain' }
  const packed = { ...headers, 'content-encoding': 'gzip' }
  for (const whole of [
    () => new Response(long, { headers }),
    () => new Response(gzipSync(long, { level: 0 }), { headers: packed }),
  ]) {
    answer = whole
    const { outcome, told } = await done()
    expect(outcome).toEqual({ by: 'program', result: long })
    expect(told.map((piece) => (piece as Json[])[1]).join('')).toBe(long)
  }
  answer = () => new Response(long, { status: 500, headers })
  expect((await done()).outcome).toMatchObject({
    by: 'failure',
    outcome: { error: { message: expect.stringContaining('answered 500: line 0\nline 1\n') } },
  })
})

test('a refusal that has no end is left once its beginning was read', async () => {
  const left = Promise.withResolvers<void>()
  const endless = new ReadableStream({
    pull: (controller) => controller.enqueue(Buffer.alloc(64 * 1024, 'no ')),
    cancel: () => left.resolve(),
  })
  answer = () => new Response(endless, { status: 500 })
  const { outcome } = await done()
  expect(outcome).toMatchObject({
    outcome: { error: { message: expect.stringContaining('answered 500: no no no') } },
  })
  await left.promise
  expect(leases).toBe(0)
})

test('what it streams is told piece by piece, and is the result together', async () => {
  const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  answer = () =>
    new Response(
      (async function* () {
        yield 'data: {"content": "one "}\n\n'
        await gates[0]!.promise
        yield 'data: {"choices": [{"delta": {"content": "two"}}]}\n\ndata: [DONE]\n\n'
      })() as unknown as ReadableStream,
      { headers: { 'content-type': 'text/event-stream' } },
    )
  const running = done()
  gates[0]!.resolve()
  const { outcome, told } = await running
  expect(told).toEqual([
    ['chunk', 'one '],
    ['chunk', 'two'],
  ])
  expect(outcome).toEqual({ by: 'program', result: 'one two' })
})

test('what it packed unasked is the text that it packed', async () => {
  const headers = { 'content-encoding': 'gzip', 'content-type': 'text/plain' }
  answer = () => new Response(gzipSync('a text'), { headers })
  const { outcome, told } = await done()
  expect(outcome).toEqual({ by: 'program', result: 'a text' })
  expect(told).toEqual([['chunk', 'a text']])
})

test('of JSON the message is the result; with a schema, all of it', async () => {
  answer = () => Response.json({ output: 'the answer', cost: 3 })
  expect((await done()).outcome).toEqual({ by: 'program', result: 'the answer' })
  const schema = { output_schema: { type: 'object' } }
  expect((await done({ options: schema })).outcome).toEqual({
    by: 'program',
    result: '{"output":"the answer","cost":3}',
  })
  answer = () => Response.json({ anything: 'else' })
  expect((await done()).outcome).toEqual({ by: 'program', result: '{"anything":"else"}' })
})

test('what goes wrong is said, and done again only where the program had no part in it', async () => {
  answer = () => new Response('I broke', { status: 500 })
  expect((await done()).outcome).toMatchObject({
    by: 'failure',
    outcome: { error: { code: 'agent_error', message: 'the agent answered 500: I broke' }, retry: false },
  })
  refusal = new PlatformError('workload_unavailable', 'it does not start', { retryAfterSeconds: 3 })
  expect((await done()).outcome).toMatchObject({
    outcome: { error: { code: 'workload_unavailable' }, retry: true, retryAfterMs: 3000 },
  })
  refusal = new PlatformError('workload_not_found', 'it is gone')
  expect((await done()).outcome).toMatchObject({ outcome: { retry: false } })
  expect((await done({ agentId: 'gone' })).outcome).toMatchObject({
    outcome: { error: { code: 'agent_not_found' } },
  })
  expect(leases).toBe(0)
})

test('a version that is named is the one that is asked', async () => {
  await done({ version: '3' })
  await done({ version: 'draft' })
  await done()
  expect(versions).toEqual(['3', 'draft', null])
})

test('workers do what they are there for', async () => {
  for (const agentId of ['worked', 'both'])
    expect((await done({ agentId })).outcome).toEqual({ by: 'reporter' })
  expect(offered.map(({ body }) => body.agentId)).toEqual(['worked', 'both'])
  expect((await done({ options: { run_locally: true } })).outcome).toEqual({ by: 'reporter' })
  expect(asked).toEqual([])
})

test('one that is stopped leaves its program', async () => {
  const begun = Promise.withResolvers<void>()
  const left = Promise.withResolvers<void>()
  answer = async (request) => {
    request.signal.addEventListener('abort', () => left.resolve())
    begun.resolve()
    return await new Promise<Response>(() => {})
  }
  const stop = new AbortController()
  const running = done({}, stop.signal).catch((error) => error)
  await begun.promise
  stop.abort(new Error('stopped'))
  expect((await running).message).toBe('stopped')
  await left.promise
  expect(leases).toBe(0)
})
