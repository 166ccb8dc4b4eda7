import { afterEach, beforeEach, expect, test } from 'bun:test'
import { eventually } from '../../../lib/test-eventually.ts'
import { TestControlPlane } from './test-control-plane.ts'
import { later, TestNode } from './test-node.ts'

const hourMs = 3_600_000
let plane: TestControlPlane
let node: TestNode
/** How its agent takes what it is told. */
let heard: () => Response

beforeEach(async () => {
  plane = await TestControlPlane.open()
  heard = () => Response.json({ status: 'received', resolved: true })
  node = new TestNode(plane, { think: later, approval: () => heard() })
  await node.register()
})
afterEach(async () => {
  await plane[Symbol.asyncDispose]()
  await node[Symbol.asyncDispose]()
})

async function begun(): Promise<string> {
  const { execution_id: id } = (await plane.executeLater('hello-world.think')).body
  await plane.takenUp(id)
  return id
}

const ask = (id: string, more: object = {}) =>
  plane.ask(`/agents/hello-world/executions/${id}/request-approval`, {
    json: {
      approval_request_id: `req-${id}`,
      approval_request_url: 'https://example.com/review',
      callback_url: `${node.url}/webhooks/approval`,
      expires_in_hours: 72,
      ...more,
    },
  })
const stateOf = async (id: string) =>
  (await plane.ask(`/agents/hello-world/executions/${id}/approval-status`)).body
const decide = (json: object) => plane.ask('/webhooks/approval-response', { json })
const told = () => node.calls.filter(({ path }) => path === '/webhooks/approval').map(({ body }) => body)

test('an execution waits for somebody, longer than for its agent, and goes on as was decided', async () => {
  const id = await begun()
  expect((await stateOf(id)) as object).toMatchObject({ error: 'no_approval_request' })
  expect((await ask(id)).body).toEqual({
    approval_request_id: `req-${id}`,
    approval_request_url: 'https://example.com/review',
    status: 'pending',
    expires_at: '2026-01-04T00:00:00Z',
  })
  expect(await plane.told(id)).toMatchObject({ status: 'waiting', status_reason: 'waiting_for_approval' })
  expect(await stateOf(id)).toEqual({
    status: 'pending',
    request_url: 'https://example.com/review',
    requested_at: '2026-01-01T00:00:00Z',
  })
  expect(await ask(id)).toMatchObject({ status: 409, body: { error: 'approval_already_requested' } })
  // Without it, an hour without a word of its agent ends it.
  plane.clock.advance(70 * hourMs)
  await plane.clock.turn(0)
  expect((await plane.told(id)).status).toBe('waiting')
  const decision = { requestId: `req-${id}`, decision: 'approve', feedback: 'good', response: { stars: 5 } }
  expect((await decide(decision)).body).toEqual({
    ...{ status: 'processed', execution_id: id, decision: 'approved', new_status: 'running' },
  })
  await eventually('its agent hears it', () => told().length === 1)
  expect(told()).toEqual([
    {
      ...{ execution_id: id, approval_request_id: `req-${id}`, decision: 'approved', feedback: 'good' },
      ...{ new_status: 'running', response: '{"stars":5}' },
    },
  ])
  expect(await stateOf(id)).toMatchObject({ status: 'approved', response: { stars: 5 } })
  // A service that did not hear the answer says it again.
  expect((await decide({ ...decision, decision: 'rejected' })).body).toMatchObject({
    status: 'already_processed',
    approval_status: 'approved',
  })
  // It may ask again, and ends as ever.
  expect((await ask(id, { approval_request_id: 'second' })).status).toBe(200)
  expect(
    (await decide({ approval_request_id: 'second', decision: 'request_changes', feedback: 'shorter' })).body,
  ).toMatchObject({ decision: 'request_changes', new_status: 'running' })
  await eventually('its agent hears that, too', () => told().length === 2)
  await plane.report(id, { status: 'succeeded', result: 1 })
  expect(await plane.told(id)).toMatchObject({ status: 'succeeded', result: 1 })
})

test('what is rejected, or expires, is over; its agent hears that and is not called off beside it', async () => {
  const [rejected, expired, left] = [await begun(), await begun(), await begun()]
  for (const id of [rejected, expired, left]) expect((await ask(id)).status).toBe(200)
  const reject = { decision: 'rejected', reason: 'no' }
  expect((await plane.ask(`/executions/${rejected}/approval-response`, { json: reject })).body).toMatchObject(
    {
      new_status: 'cancelled',
    },
  )
  // As an approval service wraps it.
  const envelope = { id: 'evt_1', type: 'expired', createdAt: 'now', data: { requestId: `req-${expired}` } }
  expect((await decide(envelope)).body).toMatchObject({ decision: 'expired', new_status: 'cancelled' })
  await eventually('their agent hears it', () => told().length === 2)
  expect(told()).toContainEqual(expect.objectContaining({ execution_id: rejected, feedback: 'no' }))
  expect(await plane.told(rejected)).toMatchObject({
    status: 'cancelled',
    status_reason: 'approval_rejected: no',
  })
  expect(node.calledOff).toEqual([])
  plane.clock.advance(72 * hourMs)
  expect(await stateOf(left)).toMatchObject({ status: 'expired' })
})

test('an agent that cannot be told is told again', async () => {
  const id = await begun()
  await ask(id)
  heard = () => new Response('busy', { status: 503 })
  await decide({ requestId: `req-${id}`, decision: 'approved' })
  await eventually('it was told', () => told().length === 1)
  heard = () => Response.json({})
  const { executions } = plane.platform
  const next = await eventually('it waits for the next time', () => {
    const [notice] = executions.list('main', { source: 'agentfield-approval' }).data
    return notice?.status === 'queued' ? notice.runAt : null
  })
  plane.clock.advance(next - plane.clock.now())
  await eventually('it is told again', () => told().length === 2)
})

test('what cannot be asked or decided is refused', async () => {
  const id = await begun()
  const status = async (asked: Promise<{ status: number }>) => (await asked).status
  expect(await status(ask('exec_none'))).toBe(404)
  expect(await status(ask(id, { approval_request_id: '' }))).toBe(400)
  expect(await status(ask(id, { callback_url: 'http://10.0.0.1/hook' }))).toBe(400)
  expect(await status(ask(id, { expires_in_hours: 1e6 }))).toBe(400)
  expect(await status(decide({ requestId: 'none', decision: 'approved' }))).toBe(404)
  expect(await status(decide({ decision: 'approved' }))).toBe(400)
  await ask(id)
  expect(await status(decide({ requestId: `req-${id}`, decision: 'perhaps' }))).toBe(400)
  // Programs that are deployed ask, and do not decide.
  const key = await plane.workload('agent', 'hello-world')
  expect(
    await status(plane.ask(`/executions/${id}/approval-response`, { json: { decision: 'approved' }, key })),
  ).toBe(403)
  await plane.report(id, { status: 'succeeded', result: 1 })
  expect(await ask(id)).toMatchObject({ status: 409, body: { error: 'invalid_state' } })
  expect(await status(decide({ requestId: `req-${id}`, decision: 'approved' }))).toBe(409)
  expect(told()).toEqual([])
})
