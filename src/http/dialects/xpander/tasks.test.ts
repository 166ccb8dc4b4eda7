import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { type Answer, eventsOf, type TestWorker, TestXpander } from './test-xpander.ts'

let xpander: TestXpander
let worker: TestWorker

/** Of a task, in the documentation of the API. */
const documentedFields = [
  ...['id', 'agent_id', 'organization_id', 'input', 'created_at', 'status', 'internal_status'],
  ...['last_executed_node_id', 'agent_version', 'started_at', 'paused_at', 'finished_at'],
  ...['result', 'parent_execution', 'sub_executions', 'finished_sub_executions', 'should_update_parent'],
  ...['is_manually_stopped', 'is_background', 'payload_extension', 'hitl_request', 'pending_eca_request'],
  ...['source', 'worker_id', 'additional_context', 'instructions_override', 'expected_output'],
  ...['test_run_node_id', 'is_orchestration', 'is_gateway', 'output_format', 'voice_id'],
  ...['output_schema', 'events_streaming', 'used_mutating_tools', 'is_continuous', 'mcp_servers'],
  ...['triggering_agent_id', 'title', 'think_mode', 'disable_attachment_injection', 'deep_planning'],
  ...['execution_attempts', 'user_tokens', 'user_oidc_token', 'return_metrics', 'tokens'],
  ...['llm_model_provider', 'llm_model_name'],
]

beforeAll(async () => {
  xpander = await TestXpander.open()
  worker = await xpander.worker('helper')
})
afterAll(async () => {
  await xpander?.platform.close()
})

/** The worker does one turn. */
async function answers(result: string | null, change: object = {}): Promise<Answer> {
  const turn = await worker.turn()
  await worker.report(turn, { status: 'completed', result, ...change })
  return turn
}

/** Time passes; a worker that says nothing meanwhile is another one then. */
async function later(ms: number): Promise<void> {
  worker.leave()
  xpander.clock.advance(ms)
  worker = await xpander.worker('helper')
}

describe('an agent is invoked', () => {
  test('asynchronously: the task is pending at once, and polled until it is completed', async () => {
    const begun = await xpander.get('/v1/agents/helper/invoke/async', {
      json: { input: { text: 'Analyze competitor pricing for Q1 2026' } },
    })
    expect(begun).toMatchObject({
      agent_id: 'helper',
      organization_id: 'main',
      status: 'pending',
      result: null,
      input: { text: 'Analyze competitor pricing for Q1 2026', user: null, files: [] },
      source: 'api',
      execution_attempts: 1,
      is_manually_stopped: false,
      finished_at: null,
    })
    expect(begun.created_at).toBe('2026-01-01T00:00:00.000000Z')
    expect((await answers('the three main competitors')).id).toBe(begun.id)
    const done = await xpander.task(begun.id)
    expect(done).toMatchObject({ status: 'completed', result: 'the three main competitors' })
    expect(done.finished_at).toBe('2026-01-01T00:00:00.000000Z')
  })

  test('with every field of the documentation, as its example has them', async () => {
    const user = {
      ...{ email: '<string>', id: '<string>', first_name: '<string>', last_name: '<string>' },
      ...{ additional_attributes: {}, role: 'member', is_super_admin: false, timezone: '<string>' },
    }
    const texts = [
      ...['id', 'parent_execution_id', 'worker_id', 'source', 'additional_context', 'instructions_override'],
      ...['test_run_node_id', 'expected_output', 'triggering_agent_id', 'title', 'user_oidc_token'],
      ...['llm_model_provider', 'llm_model_name'],
    ]
    const begun = await xpander.get('/v1/agents/helper/invoke/async', {
      json: {
        ...Object.fromEntries(texts.map((name) => [name, '<string>'])),
        input: { text: '', files: [], user },
        ...{ payload_extension: {}, output_schema: {}, run_locally: false, events_streaming: false },
        ...{ mcp_servers: [], think_mode: 'default', disable_attachment_injection: false },
        ...{ user_tokens: {}, return_metrics: false },
      },
    })
    expect(begun).toMatchObject({ id: '<string>', input: { user }, source: '<string>', status: 'pending' })
    for (const name of documentedFields) expect(begun).toHaveProperty(name)
    await answers('done')
    expect(await xpander.task(encodeURIComponent('<string>'))).toMatchObject({ result: 'done' })
  })

  test('and waited for', async () => {
    const asked = xpander.get('/v1/agents/helper/invoke', { json: { input: { text: 'wait' } } })
    await answers('here')
    expect(await asked).toMatchObject({ status: 'completed', result: 'here' })
  })

  test('and followed as events, to its end', async () => {
    const response = await xpander.request('/v1/agents/helper/invoke/stream', {
      json: { input: { text: 'tell' }, events_streaming: true },
    })
    expect(response.headers.get('content-type')).toContain('text/event-stream')
    const turn = await worker.turn()
    await worker.report(turn, { status: 'executing' })
    const pushed = ['chunk', 'tool_call_request', 'chunk'].map((type, n) => ({
      ...{ type, task_id: turn.id, organization_id: 'main', time: '2026-01-01T00:00:00Z' },
      data: type === 'chunk' ? `piece ${n}` : { tool_name: 'search' },
    }))
    await xpander.get(`/agent-execution/${turn.id}/events/push`, { json: pushed })
    await worker.report(turn, { status: 'completed', result: 'told' })
    const events: Answer[] = []
    for await (const { data } of eventsOf(response)) events.push(data)
    expect(events.map(({ type }) => type)).toEqual([
      'task_created',
      'task_updated',
      'chunk',
      'tool_call_request',
      'chunk',
      'task_finished',
    ])
    expect(events.map(({ task_id }) => task_id)).toEqual(events.map(() => turn.id))
    expect(events[0].data).toMatchObject({ id: turn.id, status: 'pending' })
    expect(events[1].data.status).toBe('executing')
    expect(events[2].data).toBe('piece 0')
    expect(events[5]).toMatchObject({
      organization_id: 'main',
      data: { status: 'completed', result: 'told' },
    })
    const full = await xpander.get(`/v1/tasks/${turn.id}/thread/full`)
    expect(full.root[1].tool_calls).toEqual([{ type: 'tool_call_request', data: { tool_name: 'search' } }])
  })

  test('with what its client says, and nobody reads its credentials but its program', async () => {
    const given = {
      input: { text: 'x', files: ['https://example.com/a.pdf'], user: { id: 'u-9', first_name: 'Ada' } },
      title: 'A title',
      think_mode: 'harder',
      llm_model_name: 'some-model',
      user_tokens: { mcp: 'token-of-a-user' },
      user_oidc_token: 'token-of-oidc',
      payload_extension: { a: [1] },
      unknown_field: true,
    }
    const begun = await xpander.get('/v1/agents/helper/invoke/async', { json: given })
    expect(begun).toMatchObject({
      title: 'A title',
      think_mode: 'harder',
      llm_model_name: 'some-model',
      payload_extension: { a: [1] },
      user_tokens: null,
      user_oidc_token: null,
      input: { files: ['https://example.com/a.pdf'], user: { id: 'u-9', first_name: 'Ada', email: '' } },
    })
    const turn = await answers('')
    expect(turn).toMatchObject({ user_tokens: { mcp: 'token-of-a-user' }, user_oidc_token: 'token-of-oidc' })
    expect(await xpander.task(begun.id)).toMatchObject({ result: '', user_tokens: null })
  })
})

describe('a thread', () => {
  test('goes on with the id of its task, whose record is of the newest turn', async () => {
    const first = await xpander.begin('helper', 'My name is Ada.')
    await answers('Hello Ada.', { tokens: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 } })
    await xpander.task(first.id)
    await later(60_000)
    const second = await xpander.begin('helper', 'What is my name?', { id: first.id })
    expect(second).toMatchObject({ id: first.id, status: 'pending', result: null, is_continuous: true })
    expect(second.input.text).toBe('What is my name?')
    await answers('Ada.')
    expect(await xpander.task(first.id)).toMatchObject({ result: 'Ada.', created_at: first.created_at })
    const thread = await xpander.get(`/v1/tasks/${first.id}/thread`)
    expect(thread.map(({ role, content }: Answer) => [role, content])).toEqual([
      ['user', 'My name is Ada.'],
      ['assistant', 'Hello Ada.'],
      ['user', 'What is my name?'],
      ['assistant', 'Ada.'],
    ])
    expect(thread[0].created_at).toBe(Date.UTC(2026, 0, 1) / 1000)
    expect(await xpander.get(`/v1/tasks?agent_id=helper&user_id=nobody`)).toMatchObject({ total: 0 })
    const activity = await xpander.get(`/activity/helper/${first.id}`)
    expect(activity.messages.map(({ role }: Answer) => role)).toEqual(['user', 'agent', 'user', 'agent'])
  })

  test('may have an id of its client, and has one turn at a time', async () => {
    const first = await xpander.begin('helper', 'one', { id: 'order-17' })
    expect(first.id).toBe('order-17')
    const early = await xpander.ask('/v1/agents/helper/invoke/async', {
      json: { input: { text: 'two' }, id: 'order-17' },
    })
    expect(early).toMatchObject({ status: 409, body: { detail: expect.stringContaining('wait until') } })
    await answers('done')
    await xpander.task('order-17')
    const other = await xpander.worker('other')
    const elsewhere = { json: { input: { text: 'two' }, id: 'order-17' } }
    const refused = await xpander.ask('/v1/agents/other/invoke/async', elsewhere)
    expect(refused.body.detail).toContain('conversation with the agent "helper"')
    other.leave()
    expect(await xpander.get('/v1/tasks/order-17/thread')).toHaveLength(2)
  })

  test('that was asked for twice with one Idempotency-Key is one', async () => {
    const ask = (text: string, more = {}) =>
      xpander.ask('/v1/agents/helper/invoke/async', {
        json: { input: { text }, ...more },
        headers: { 'idempotency-key': 'once' },
      })
    const [first, second] = await Promise.all([ask('same'), ask('same')])
    expect(second.body.id).toBe(first.body.id)
    expect((await ask('another')).status).toBe(409)
    await answers('did it')
    await xpander.task(first.body.id)
    expect((await ask('same')).body).toMatchObject({ id: first.body.id, status: 'completed' })
    const turns = await xpander.get(`/v1/tasks/${first.body.id}/thread`)
    expect(turns).toHaveLength(2)
    // Kept for a day.
    await later(25 * 3600_000)
    const again = await ask('same')
    expect(again.status).toBe(200)
    await answers('again')
    await xpander.task(again.body.id)
  })
})

describe('output_schema', () => {
  const schema = {
    type: 'object',
    properties: { price: { type: 'number' } },
    required: ['price'],
    additionalProperties: false,
  }

  test('is what the result has to fit', async () => {
    const good = await xpander.begin('helper', 'price?', { output_schema: schema, output_format: 'json' })
    expect(good.output_schema).toEqual(schema)
    await answers('{"price": 3}')
    expect(await xpander.task(good.id)).toMatchObject({ status: 'completed', result: '{"price": 3}' })
    const bad = await xpander.begin('helper', 'price?', { output_schema: schema })
    await answers('{"price": "three"}')
    expect(await xpander.task(bad.id)).toMatchObject({
      status: 'failed',
      internal_status: 'output_schema',
      result: 'The result does not fit output_schema: price must be of type number, and is string',
    })
    const text = await xpander.begin('helper', 'price?', { output_schema: schema })
    await answers('three')
    expect((await xpander.task(text.id)).result).toContain('it is not JSON')
  })

  test('that is none is refused, before anything is done', async () => {
    const { status, body } = await xpander.ask('/v1/agents/helper/invoke', {
      json: { input: { text: 'x' }, output_schema: { type: 'money' } },
    })
    expect(status).toBe(422)
    expect(body.detail[0]).toMatchObject({ loc: ['body', 'output_schema'], type: 'value_error' })
  })
})

describe('a task', () => {
  test('is stopped, once, and what its program says afterwards changes nothing', async () => {
    const begun = await xpander.begin('helper', 'long')
    const turn = await worker.turn()
    await worker.report(turn, { status: 'executing' })
    const stopped = await xpander.get(`/v1/tasks/${begun.id}/stop`, { method: 'POST' })
    expect(stopped).toMatchObject({ status: 'stopped', is_manually_stopped: true, result: null })
    expect(stopped.finished_at).not.toBeNull()
    expect(await worker.report(turn, { status: 'completed', result: 'late' })).toMatchObject({
      status: 'stopped',
      result: null,
    })
    expect(await xpander.get(`/v1/tasks/${begun.id}/stop`, { method: 'POST' })).toEqual(stopped)
    expect(await xpander.get(`/agent-execution/${begun.id}`, { method: 'DELETE' })).toEqual(stopped)
    const done = await xpander.begin('helper', 'short')
    await answers('ok')
    await xpander.task(done.id)
    const kept = await xpander.get(`/v1/tasks/${done.id}/stop`, { method: 'POST' })
    expect(kept).toMatchObject({ status: 'completed', is_manually_stopped: false })
  })

  test('that failed says so, by whom', async () => {
    const begun = await xpander.begin('helper', 'x')
    await worker.report(await worker.turn(), { status: 'error', result: 'ValueError: no' })
    expect(await xpander.task(begun.id)).toMatchObject({ status: 'error', result: 'ValueError: no' })
    const failed = await xpander.begin('helper', 'x')
    await worker.report(await worker.turn(), { status: 'failed', result: 'I could not' })
    expect(await xpander.task(failed.id)).toMatchObject({ status: 'failed', result: 'I could not' })
  })

  test('whose result is longer than may be ended in error', async () => {
    const begun = await xpander.begin('helper', 'x')
    await answers('x'.repeat(2 * 1024 * 1024 + 1))
    expect(await xpander.task(begun.id)).toMatchObject({
      status: 'error',
      internal_status: 'answer_too_large',
      result: 'the result is longer than 2097152 characters',
    })
  })

  test('that is large is told whole, and listed by its beginning', async () => {
    const text = `About this:\n${'x'.repeat(200_000)}`
    const more = { additional_context: 'y'.repeat(100_000), user_tokens: { crm: 'z'.repeat(50_000) } }
    const begun = await xpander.begin('helper', text, { ...more, source: 'large' })
    const turn = await worker.turn()
    expect([turn.input.text, turn.additional_context, turn.user_tokens]).toEqual([
      text,
      ...Object.values(more),
    ])
    const result = 'r'.repeat(100_000)
    await worker.report(turn, { status: 'completed', result })
    expect(await xpander.task(begun.id)).toMatchObject({ input: { text }, result, status: 'completed' })
    const listed = async () => {
      const { items } = await xpander.get('/v1/tasks?agent_id=helper&per_page=50')
      return items.find(({ id }: Answer) => id === begun.id)
    }
    expect(await listed()).toMatchObject({ title: 'About this:', status: 'completed' })
    expect((await listed()).result).toBe(`${'r'.repeat(8192)}...`)
    const said = await xpander.get(`/v1/tasks/${begun.id}/thread`)
    expect(said.map(({ content }: Answer) => content)).toEqual([text, result])
    await xpander.begin('helper', 'and now?', { id: begun.id })
    await answers('short')
    expect(await xpander.task(begun.id, ({ result: now }) => now === 'short')).toMatchObject({
      input: { text: 'and now?' },
      additional_context: null,
    })
    expect((await listed()).result).toBe('short')
  })

  test('is deleted with its thread and its sub-tasks', async () => {
    const parent = await xpander.begin('helper', 'parent')
    await answers('p')
    const part = await xpander.begin('helper', 'part', { parent_execution_id: parent.id })
    await answers('c')
    await xpander.task(part.id)
    const full = await xpander.get(`/v1/tasks/${parent.id}/thread/full`)
    expect(full[part.id].map(({ content }: Answer) => content)).toEqual(['part', 'c'])
    expect((await xpander.ask(`/v1/tasks/${parent.id}`, { method: 'DELETE' })).status).toBe(204)
    for (const id of [parent.id, part.id]) {
      expect((await xpander.ask(`/v1/tasks/${id}`)).status).toBe(404)
      expect((await xpander.ask(`/v1/tasks/${id}/thread`)).status).toBe(404)
    }
    expect((await xpander.ask(`/v1/tasks/${parent.id}`, { method: 'DELETE' })).status).toBe(404)
  })

  test('is listed by whatever is known of it, page by page', async () => {
    const from = new Date(xpander.clock.now()).toISOString()
    await later(1000)
    const ids: string[] = []
    for (let n = 0; n < 5; n++) {
      const user = { id: n % 2 === 0 ? 'even' : 'odd' }
      const more = { triggering_agent_id: 'boss', parent_execution_id: n === 4 ? 'top' : undefined }
      const begun = await xpander.get('/v1/agents/helper/invoke/async', {
        json: { input: { text: `task ${n}\nmore`, user }, ...more },
      })
      ids.push(begun.id)
      const turn = await worker.turn()
      await worker.report(turn, { status: n === 3 ? 'failed' : 'completed', result: String(n) })
      await xpander.task(begun.id)
      await later(1000)
    }
    const newest = ids.toReversed()
    const list = async (query: string) => {
      const page = await xpander.get(`/v1/tasks?from_date=${from}&triggering_agent_id=boss&${query}`)
      return { ids: page.items.map(({ id }: Answer) => id), ...page, items: page.items }
    }
    expect(await list('')).toMatchObject({ ids: newest, total: 5, page: 1, per_page: 20, total_pages: 1 })
    expect(await list('page=2&per_page=2')).toMatchObject({
      ids: newest.slice(2, 4),
      total: 5,
      total_pages: 3,
    })
    expect(await list('page=4&per_page=2')).toMatchObject({ ids: [], total: 5, page: 4 })
    expect((await list('user_id=odd')).ids).toEqual([ids[3], ids[1]])
    expect((await list('user_id=odd&status=failed')).ids).toEqual([ids[3]])
    expect((await list('status=stopped')).total).toBe(0)
    expect((await list('parent_task_id=top')).ids).toEqual([ids[4]])
    expect((await list('agent_id=other')).total).toBe(0)
    const second = (await list('per_page=1&page=5')).items[0]
    expect(second).toMatchObject({ title: 'task 0', user_id: 'even', source_node_type: 'api', result: '0' })
    const to = new Date(Date.parse(second.created_at) + 1500).toISOString()
    expect((await list(`to_date=${to}`)).ids).toEqual([ids[1], ids[0]])
    expect((await xpander.get('/v1/agents/helper/tasks?triggering_agent_id=boss')).total).toBe(5)
    const history = await xpander.get('/agent-execution/executions/history/helper?user_id=even')
    expect(history.map(({ id }: Answer) => id)).toEqual([ids[4], ids[2], ids[0]])
    expect(await xpander.get('/agent-execution/executions/history/user/odd')).toHaveLength(2)
  })

  test('that was done elsewhere is kept with what it cost', async () => {
    const done = await xpander.get('/agent-execution/helper/report_task', {
      json: { id: 'elsewhere', input: 'asked', result: 'told', duration: 2.5, used_tools: ['search'] },
    })
    expect(done).toMatchObject({ id: 'elsewhere', status: 'completed', result: 'told', duration: 2.5 })
    await xpander.get('/agents-metrics/helper/execution', {
      json: { execution_id: 'elsewhere', llm_tokens: { worker: { prompt_tokens: 7, total_tokens: 9 } } },
    })
    expect((await xpander.get('/v1/tasks/elsewhere')).tokens).toMatchObject({ prompt_tokens: 7 })
  })
})

describe('what is refused', () => {
  const refusal = async (path: string, asked: Parameters<TestXpander['ask']>[1] = {}) => {
    const { status, body } = await xpander.ask(path, asked)
    return { status, detail: body.detail }
  }

  test('says why in the shape that clients know', async () => {
    expect(await refusal('/v1/tasks', { key: null })).toEqual({ status: 401, detail: expect.any(String) })
    expect((await refusal('/v1/tasks', { key: 'bl_wrong' })).status).toBe(401)
    const elsewhere = await refusal('/v1/tasks', { headers: { 'x-blaxel-workspace': 'others' } })
    expect(elsewhere).toEqual({ status: 403, detail: expect.stringContaining('others') })
    expect(await refusal('/v1/tasks/none')).toEqual({ status: 404, detail: 'there is no task "none"' })
    const stop = await refusal('/v1/tasks/none/stop', { method: 'POST' })
    expect(stop.status).toBe(404)
    const unknown = await refusal('/v1/agents/nobody/invoke', { json: { input: { text: 'x' } } })
    expect(unknown).toEqual({ status: 404, detail: expect.stringContaining('no agent "nobody"') })
    expect((await refusal('/v1/nothing')).status).toBe(404)
  })

  test('names the field that is wrong', async () => {
    const invoke = (json: unknown) => refusal('/v1/agents/helper/invoke', { json })
    expect(await invoke({})).toMatchObject({ status: 422, detail: [{ loc: ['body', 'input'] }] })
    expect(await invoke({ input: { text: 3 } })).toMatchObject({
      detail: [{ loc: ['body', 'input', 'text'] }],
    })
    for (const input of [{}, { text: null }, { files: [] }]) {
      expect(await invoke({ input })).toMatchObject({
        status: 422,
        detail: [{ loc: ['body', 'input', 'text'] }],
      })
    }
    expect((await invoke({ input: { text: 'x' }, think_mode: 'hardest' })).detail[0].msg).toContain('harder')
    expect((await invoke({ input: { text: 'x' }, id: 'not an id' })).status).toBe(422)
    expect((await refusal('/v1/tasks?per_page=51')).status).toBe(422)
    expect((await refusal('/v1/tasks?page=0')).status).toBe(422)
    expect((await refusal('/v1/tasks?status=queued')).status).toBe(422)
    expect((await refusal('/v1/tasks?from_date=yesterday')).status).toBe(422)
    const broken = await refusal('/v1/agents/helper/invoke', { method: 'POST', body: '{' })
    expect(broken.status).toBe(422)
  })
})

test('agents are listed, those that only have workers among them', async () => {
  const page = await xpander.get('/v1/agents?per_page=1')
  expect(page).toMatchObject({ page: 1, per_page: 1, items: [{ organization_id: 'main', status: 'ACTIVE' }] })
  expect(page.total).toBe(2)
  expect(await xpander.get('/v1/agents/helper')).toMatchObject({
    id: 'helper',
    version: 1,
    framework: 'agno',
  })
  expect((await xpander.get('/agents/list')).map(({ id }: Answer) => id).sort()).toEqual(['helper', 'other'])
  expect((await xpander.get('/agents/helper')).graph).toEqual([])
  expect((await xpander.ask('/v1/agents/other', { method: 'DELETE' })).status).toBe(204)
  expect((await xpander.ask('/v1/agents/other')).status).toBe(404)
})
