import { expect, test } from 'bun:test'
import { eventually } from '../../lib/test-eventually.ts'
import { openDialectPlatform, requestTo, told } from './test-dialect.ts'

const bytes = 9 * 1024 * 1024
const headers = { 'content-type': 'application/json', 'content-length': String(bytes) }

/** Says nothing. */
const blanks = new Uint8Array(bytes).fill(32)

/** A body of which nothing comes. `asked`: it is being read. */
function nothing(): { body: ReadableStream<Uint8Array>; asked: Promise<void> } {
  const { promise: asked, resolve } = Promise.withResolvers<void>()
  const pull = () => {
    resolve()
    return new Promise<void>(() => {})
  }
  return { body: new ReadableStream({ pull }, { highWaterMark: 0 }), asked }
}

test('who sends a large body too slowly while another waits is told so as its clients read it, in every dialect', async () => {
  const { platform, clock } = await openDialectPlatform()
  await using _ = platform
  const node = { id: 'hello', base_url: 'http://127.0.0.1:9', reasoners: [{ id: 'greet' }] }
  const registered = await requestTo(platform, '/api/v1/nodes/register', { json: node })
  expect(registered.status).toBe(201)
  const message = 'the body came slowly and others wait to send theirs: try again'
  const ofAgentField = {
    ...{ error: message, message, code: 'too_many_requests' },
    ...{ error_category: 'queue_full', retry_after: 5 },
  }
  for (const [path, body] of [
    ['/api/v1/execute/async/hello.greet', ofAgentField],
    ['/api/v1/execute/hello.greet', ofAgentField],
    ['/api/v1/reasoners/hello.greet', ofAgentField],
    ['/api/v1/workflow/executions', ofAgentField],
    ['/v1/agents/mine/invoke', { detail: message }],
    ['/v1/agents/mine/invoke/async', { detail: message }],
    ['/?agent_id=mine', { detail: message }],
    ['/v0/jobs/mine/executions', { error: 'too_many_requests', code: 429, message }],
  ] as const) {
    const { body: none, asked } = nothing()
    const slow: { answer: Response | null } = { answer: null }
    const slowly = requestTo(platform, path, { method: 'POST', headers, body: none })
    const answered = slowly.then((response) => {
      slow.answer = response
    })
    await asked
    const next = requestTo(platform, path, { method: 'POST', headers, body: blanks })
    const refused = await eventually('it is refused', async () => {
      await clock.turn(1000)
      return slow.answer
    })
    await answered
    expect([path, refused.headers.get('retry-after'), await told<object>(refused)]).toEqual([
      ...[path, '5'],
      { status: 429, body },
    ])
    expect([path, (await next).status]).not.toEqual([path, 429])
  }
})
