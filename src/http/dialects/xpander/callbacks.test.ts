import { expect, test } from 'bun:test'
import { createHmac } from 'node:crypto'
import { TestReceiver } from '../../../deliveries/test-receiver.ts'
import { type Answer, TestXpander } from './test-xpander.ts'

test('whoever named a webhook is told how the turn ended, signed, with the same words as the stream', async () => {
  await using receiver = new TestReceiver()
  await using xpander = await TestXpander.open()
  const worker = await xpander.worker('helper')
  const secret = `whsec_${Buffer.from('thirty-two bytes of a test secret').toString('base64')}`
  const webhook = { url: receiver.url, secret, headers: { 'X-Mine': 'yes' } }
  const begun = await xpander.begin('helper', 'tell me', { webhook })
  expect(JSON.stringify(begun)).not.toContain(secret)
  await worker.report(await worker.turn(), { status: 'completed', result: 'told' })
  const { headers, body } = await receiver.nth(1)
  expect(JSON.parse(body)).toMatchObject({
    type: 'task_finished',
    task_id: begun.id,
    organization_id: 'main',
    data: {
      id: begun.id,
      agent_id: 'helper',
      status: 'completed',
      result: 'told',
      is_manually_stopped: false,
    },
  })
  expect(headers['x-mine']).toBe('yes')
  const signed = createHmac('sha256', 'thirty-two bytes of a test secret')
    .update(`${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`)
    .digest('base64')
  expect(headers['webhook-signature']).toBe(`v1,${signed}`)

  // Each turn says for itself whether it is told of.
  await xpander.task(begun.id)
  await xpander.begin('helper', 'again', { id: begun.id })
  await worker.report(await worker.turn(), { status: 'completed', result: 'untold' })
  await xpander.task(begun.id)
  await xpander.begin('helper', 'stop', { id: begun.id, webhook: { url: receiver.url } })
  await worker.turn()
  await xpander.get(`/v1/tasks/${begun.id}/stop`, { method: 'POST' })
  const second = await receiver.nth(2)
  expect(JSON.parse(second.body).data).toMatchObject({ status: 'stopped', is_manually_stopped: true })
  expect(second.headers['webhook-signature']).toBeUndefined()
})

test('an address that may not be dialled is refused, before anything is done', async () => {
  await using xpander = await TestXpander.open()
  const worker = await xpander.worker('helper')
  for (const url of ['ftp://example.com', 'http://a:b@example.com', 'http://169.254.169.254/x', 'nowhere']) {
    const { status, body } = await xpander.ask('/v1/agents/helper/invoke/async', {
      json: { input: { text: 'x' }, webhook: { url } },
    })
    expect([url, status]).toEqual([url, 422])
    expect(body.detail[0].loc).toEqual(['body', 'webhook', 'url'])
  }
  expect((await xpander.get('/v1/tasks')).total).toBe(0)
  worker.leave()
})

test('a turn that failed is done once more as an execution, and its thread is told', async () => {
  await using xpander = await TestXpander.open()
  const worker = await xpander.worker('helper')
  const begun = await xpander.begin('helper', 'try')
  await worker.report(await worker.turn(), { status: 'error', result: 'no luck' })
  expect(await xpander.task(begun.id)).toMatchObject({ status: 'error' })
  const { data } = await xpander.get('/v0/executions?source=xpander', {
    headers: { 'blaxel-version': '2026-04-28' },
  })
  const [execution] = data as Answer[]
  expect(execution).toMatchObject({ status: 'failed', labels: { thread: begun.id, turn: '1' } })
  expect((await xpander.ask(`/v0/executions/${execution.id}/replay`, { json: {} })).status).toBeLessThan(300)
  const again = await worker.turn()
  expect(again).toMatchObject({ id: begun.id, input: { text: 'try' } })
  await worker.report(again, { status: 'completed', result: 'luck' })
  const done = await xpander.task(begun.id, ({ status }) => status === 'completed')
  expect(done.result).toBe('luck')
  const thread = await xpander.get(`/v1/tasks/${begun.id}/thread`)
  expect(thread.map(({ content }: Answer) => content)).toEqual(['try', 'no luck', 'luck'])
})
