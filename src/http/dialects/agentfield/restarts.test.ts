import { afterEach, beforeEach, expect, test } from 'bun:test'
import { TestControlPlane, type Told } from './test-control-plane.ts'
import { TestNode } from './test-node.ts'

let plane: TestControlPlane
let node: TestNode
let breaks: boolean

/** A workflow of two steps, each a call that goes by the control plane as SDKs make it. */
beforeEach(async () => {
  plane = await TestControlPlane.open()
  breaks = true
  const passedOn = /^x-(run-id|agentfield-replay-.*)$/
  node = new TestNode(plane, {
    flow: async ({ body, headers }) => {
      const { topic } = body as { topic: string }
      const context = Object.fromEntries(Object.entries(headers).filter(([name]) => passedOn.test(name)))
      const step = async (name: string, input: object) => {
        const parent = { 'x-parent-execution-id': headers['x-execution-id'] ?? '' }
        const { status, body } = await plane.execute(`hello-world.${name}`, input, { ...context, ...parent })
        if (status !== 200) throw new Error(body.error)
        return body.result
      }
      try {
        const found = await step('find', { topic })
        return Response.json({ said: await step('write', { found }) })
      } catch (error) {
        return Response.json({ error: String(error) }, { status: 500 })
      }
    },
    find: ({ body }) => Response.json({ about: (body as { topic: string }).topic }),
    write: () => (breaks ? Response.json({ error: 'no ink' }, { status: 500 }) : Response.json('a text')),
  })
  await node.register()
})
afterEach(async () => {
  await plane[Symbol.asyncDispose]()
  await node[Symbol.asyncDispose]()
})

const asked = (name: string) => node.calls.filter(({ path }) => path === `/reasoners/${name}`).length
const restart = async (id: string, json: object = {}) => {
  const { status, body } = await plane.ask(`/executions/${id}/restart`, { json })
  return { status, body: body as Told }
}

async function broken(): Promise<Told> {
  const { body } = await plane.executeLater('hello-world.flow', { input: { topic: 'ink' } })
  const ended = await plane.ended(body.execution_id)
  expect(ended.status).toBe('failed')
  breaks = false
  return ended
}

async function stepOf(run: string, name: string): Promise<Told> {
  const { body } = await plane.ask(`/executions?run_id=${run}`)
  const found = (body as { executions: Told[] }).executions.find(
    ({ target }) => target === `hello-world.${name}`,
  )
  if (found === undefined) throw new Error(`no step ${name}`)
  return found
}

test('a run is begun again where it broke, and asks nobody anew who had answered', async () => {
  const before = await broken()
  const failed = await stepOf(before.run_id, 'write')
  const { status, body } = await restart(failed.execution_id, { reason: 'there is ink now' })
  expect(status).toBe(202)
  expect(body).toMatchObject({
    status: 'queued',
    target: 'hello-world.flow',
    source_execution_id: failed.execution_id,
    source_run_id: before.run_id,
    restarted_execution_id: before.execution_id,
    replay_before_execution_id: failed.execution_id,
    replay_mode: 'succeeded-before',
    scope: 'workflow',
    kind: 'restart',
    webhook_registered: false,
  })
  expect(body.run_id).not.toBe(before.run_id)
  expect(await plane.ended(body.execution_id)).toMatchObject({
    status: 'succeeded',
    result: { said: 'a text' },
  })
  expect([asked('flow'), asked('find'), asked('write')]).toEqual([2, 1, 2])
  expect(await stepOf(body.run_id, 'find')).toMatchObject({ status: 'succeeded' })
})

test('a run that broke is begun again by its first call, too', async () => {
  const before = await broken()
  const { body } = await restart(before.execution_id)
  expect(await plane.ended(body.execution_id)).toMatchObject({ result: { said: 'a text' } })
  expect([asked('flow'), asked('find')]).toEqual([2, 1])
})

test('another input is another call, and reuse may be none', async () => {
  const before = await broken()
  const forked = (await restart(before.execution_id, { input: { topic: 'pens' }, reuse: 'all-succeeded' }))
    .body
  expect(forked).toMatchObject({ kind: 'fork', replay_mode: 'all-succeeded' })
  expect(forked).not.toHaveProperty('replay_before_execution_id')
  await plane.ended(forked.execution_id)
  expect(asked('find')).toBe(2)
  await plane.ended((await restart(before.execution_id, { reuse: 'none' })).body.execution_id)
  expect(asked('find')).toBe(3)
  const again = (await restart(before.execution_id, { reuse: 'all-succeeded' })).body
  await plane.ended(again.execution_id)
  expect(asked('find')).toBe(3)
})

test('one execution is begun again by itself', async () => {
  const before = await broken()
  const step = await stepOf(before.run_id, 'write')
  const { body } = await restart(step.execution_id, { scope: 'execution' })
  expect(body).toMatchObject({
    target: 'hello-world.write',
    scope: 'execution',
    replay_mode: 'all-succeeded',
  })
  expect(await plane.ended(body.execution_id)).toMatchObject({ status: 'succeeded', result: 'a text' })
  expect([asked('flow'), asked('write')]).toEqual([1, 2])
})

test('what cannot be restarted is refused', async () => {
  const { execution_id: id } = await broken()
  expect((await restart('exec_none')).status).toBe(404)
  expect((await restart(id, { scope: 'universe' })).status).toBe(400)
  expect((await restart(id, { reuse: 'some' })).status).toBe(400)
  const bare = await plane.request(`/executions/${id}/restart`, { method: 'POST' })
  expect(bare.status).toBe(202)
})
