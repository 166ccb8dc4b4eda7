import { afterAll, beforeAll, expect, test } from 'bun:test'
import { type Answer, type TestWorker, TestXpander } from './test-xpander.ts'

let xpander: TestXpander
let worker: TestWorker

beforeAll(async () => {
  xpander = await TestXpander.open()
  worker = await xpander.worker('helper')
})
afterAll(async () => {
  await xpander?.platform.close()
})

/** The answer, once the worker did the turn, and what the worker got. */
async function hook(
  path: string,
  asked: Parameters<TestXpander['ask']>[1],
  result: string,
): Promise<{ answer: Answer; turn: Answer }> {
  const answer = xpander.ask(path, { method: 'POST', ...asked })
  const turn = await worker.turn()
  await worker.report(turn, { status: 'completed', result })
  return { answer: (await answer).body, turn }
}

test('JSON starts an agent, and its other fields reach the agent too', async () => {
  const json = { prompt: 'Analyze this data', custom_field: 'any value', user_id: 'u1', user_email: 'a@b.c' }
  const { answer, turn } = await hook('/?agent_id=helper', { json }, 'analyzed')
  expect(turn.input).toMatchObject({
    text: 'Analyze this data\n\n{"custom_field":"any value"}',
    user: { id: 'u1', email: 'a@b.c' },
  })
  expect(answer).toMatchObject({ status: 'completed', result: 'analyzed', source: 'webhook' })
})

test('a form does, with the key in the address, and another turn of its thread', async () => {
  const { apiKey } = xpander.platform.credentials
  const form = (fields: Record<string, string>) => ({ key: null, body: new URLSearchParams(fields) })
  const path = `/?agent_id=helper&x-api-key=${apiKey}`
  const first = await hook(path, form({ prompt: 'one' }), '1')
  const second = await hook(path, form({ prompt: 'two', task_id: first.answer.id }), '2')
  expect(second.answer).toMatchObject({ id: first.answer.id, result: '2' })
  expect(await xpander.get(`/v1/tasks/${first.answer.id}/thread`)).toHaveLength(4)
})

test('a form with files hands them on', async () => {
  const form = new FormData()
  form.set('agent_id', 'helper')
  form.set('prompt', 'read')
  form.append('files', new File(['hello'], 'a.txt', { type: 'text/plain' }))
  const { turn } = await hook('/', { body: form }, 'read it')
  expect(turn.input.text).toBe('read')
  const [file] = turn.input.files
  expect(file).toMatch(/^data:text\/plain[^,]*;base64,aGVsbG8=$/)
})

test('its answer is at once, or the part of it that is asked for', async () => {
  const begun = await xpander.get('/?agent_id=helper&asynchronous=true', { json: { prompt: 'x' } })
  expect(begun).toMatchObject({ status: 'pending', result: null })
  await worker.report(await worker.turn(), { status: 'completed', result: 'y' })
  const said = '{"summary": {"lines": ["first"]}}'
  const part = { prompt: 'x', getter: 'result.summary.lines.0' }
  expect((await hook('/?agent_id=helper', { json: part }, said)).answer).toBe('first')
  expect(
    (await hook('/?agent_id=helper', { json: { ...part, getter: 'result.none' } }, said)).answer,
  ).toBeNull()
  const parsed = await hook('/?agent_id=helper&json=true', { json: { prompt: 'x' } }, said)
  expect(parsed.answer.result).toEqual({ summary: { lines: ['first'] } })
})

test('it is refused without an agent, a key, or a form', async () => {
  const status = async (path: string, asked: object) =>
    (await xpander.ask(path, { method: 'POST', ...asked })).status
  expect(await status('/', { json: { prompt: 'x' } })).toBe(422)
  expect(await status('/?agent_id=nobody', { json: { prompt: 'x' } })).toBe(404)
  expect(await status('/?agent_id=helper', { json: { prompt: 'x' }, key: null })).toBe(401)
  expect(await status('/?agent_id=helper', { body: '[1]' })).toBe(422)
  const headers = { 'content-type': 'multipart/form-data; boundary=x' }
  expect(await status('/?agent_id=helper', { body: 'no form', headers })).toBe(422)
})
