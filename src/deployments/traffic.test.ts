import { afterEach, beforeEach, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { revisionView, stickyCookieName } from './index.ts'
import { actionsOn } from './test-actions.ts'
import { TestDeployments } from './test-host.ts'

let host: TestDeployments
beforeEach(async () => {
  host = await TestDeployments.open()
})
afterEach(() => host[Symbol.asyncDispose]())

const { runtime, create, update, read, viewOf, acquire, served, isDeployed, revisions } = actionsOn(
  () => host,
)

test('the last five revisions are kept, and those that get requests; images of the others go', async () => {
  const [first] = await revisions(1)
  const pinned: string[] = []
  await update({ spec: { revision: { active: first } } })
  for (let at = 1; at <= 6; at++) {
    const { revisionId } = await update({
      spec: { ...runtime({ memory: 2048 + at }), revision: { traffic: 0 } },
    })
    pinned.push(revisionId!)
    await isDeployed(revisionId)
  }
  await eventually('images of what was dropped went', () => host.images.removed.length === 2)
  expect((await read()).body.revisions.map(({ id }) => id)).toEqual([first!, ...pinned.slice(2)])
  expect(host.images.removed).toEqual(pinned.slice(0, 2).map((id) => `agent/one:${id}`))
  expect((await acquire()).revisionId).toBe(first!)
})

test('going back to a revision, after which a new one gets no requests until it is asked for', async () => {
  const [first, second] = await revisions(2)
  await update({ spec: { revision: { active: first } } })
  await eventually('the first serves', async () => (await served()).active === first!)
  expect((await read()).body.previousActive).toBe(second!)
  expect((await acquire()).revisionId).toBe(first!)
  const third = await update({ spec: runtime({ memory: 3000 }) })
  await isDeployed(third.revisionId)
  expect(await served()).toEqual({ active: first!, canary: null, canaryPercent: 0 })
  await eventually('it rests', () => host.fleet.retired.some(({ id }) => id === third.revisionId))
  await update({ spec: { revision: { traffic: 100 } } })
  await eventually('the third serves', async () => (await served()).active === third.revisionId)
  const { body } = await read()
  expect(body.revisions.map((one) => revisionView(body, one))).toMatchObject([
    { id: first!, active: false, previousActive: true, trafficPercent: 0, status: 'DEPLOYED' },
    { id: second!, active: false, previousActive: false, trafficPercent: 0 },
    { id: third.revisionId!, active: true, trafficPercent: 100 },
  ])
})

test('a part of the requests is for the revision that it was asked with, not for an earlier one', async () => {
  const [first] = await revisions(1)
  const idle = await update({ spec: { ...runtime({ memory: 2000 }), revision: { traffic: 0 } } })
  await isDeployed(idle.revisionId)
  const gate = Promise.withResolvers<void>()
  host.fleet.readiness = () => gate.promise
  const third = await update({ spec: { ...runtime({ memory: 3000 }), revision: { traffic: 10 } } })
  await eventually('it is on its way', () => host.fleet.runs.has(third.revisionId!))
  expect(await served()).toEqual({ active: first!, canary: null, canaryPercent: 0 })
  gate.resolve()
  await isDeployed(third.revisionId)
  expect(await served()).toEqual({ active: first!, canary: third.revisionId!, canaryPercent: 10 })
})

test('a revision need not wait for one before it that hangs, and that one takes nothing from it later', async () => {
  const gate = Promise.withResolvers<void>()
  let hanging = ''
  host.fleet.readiness = ({ id }, signal) =>
    id === hanging
      ? Promise.race([
          gate.promise,
          new Promise<void>((_, no) => signal?.addEventListener('abort', () => no(signal.reason))),
        ])
      : undefined
  const { deployment } = await create({ upload: true, spec: {} })
  hanging = deployment.body.revisions[0]!.id
  await host.builds.uploaded(host.clock.now())
  await host.builds.built()
  await eventually('it hangs', () => host.fleet.runs.has(hanging))
  const mended = await update({ spec: runtime({ memory: 3000 }) })
  await isDeployed(mended.revisionId)
  expect((await acquire()).revisionId).toBe(mended.revisionId!)
  gate.resolve()
  await isDeployed(hanging)
  expect((await acquire()).revisionId).toBe(mended.revisionId!)
  await eventually('it ended', () => host.fleet.retired.some(({ id }) => id === hanging))
})

test('one of a name that was deleted is nothing of the one before', async () => {
  await revisions(1)
  await host.deployments.remove('main', 'agent', 'one')
  const { revisionId } = await create()
  await isDeployed(revisionId)
  expect((await acquire()).revisionId).toBe(revisionId!)
})

test('a revision to go back to that does not start changes nothing but a message', async () => {
  const [first, second] = await revisions(2)
  host.fleet.readiness = ({ id }) => {
    if (id === first) throw new PlatformError('unprocessable', 'it crashed')
  }
  await update({ spec: { revision: { active: first } } })
  await eventually('it was given up', async () => (await read()).body.wanted === undefined)
  expect((await read()).body.events.at(-1)).toMatchObject({
    status: 'FAILED',
    revision: first!,
    message: `it crashed\nThe revision ${second} goes on serving.`,
  })
  expect((await acquire()).revisionId).toBe(second!)
  expect(await refusalOf(update({ spec: { revision: { active: 'rev-none' } } }))).toMatchObject({
    code: 'bad_request',
    message: expect.stringContaining('"rev-none" is no revision that is kept'),
  })
})

test('a canary gets its part of the requests, and a client stays with what it met', async () => {
  const [first] = await revisions(1)
  const { revisionId: canary } = await update({
    spec: { ...runtime({ memory: 3000 }), revision: { traffic: 20, stickySessionTtl: 60 } },
  })
  await isDeployed(canary)
  expect(viewOf(await read()).spec.revision).toEqual({
    activeImage: expect.any(String),
    active: first!,
    canary: canary!,
    canaryPercent: 20,
    stickySessionTtl: 60,
  })
  host.chance = 0.19
  const met = await acquire()
  expect(met.revisionId).toBe(canary!)
  expect(met.setCookie).toBe(
    `${stickyCookieName('agent', 'one')}=${canary}; Path=/main/agents/one; Max-Age=60; HttpOnly; SameSite=Lax`,
  )
  host.chance = 0.2
  expect((await acquire()).revisionId).toBe(first!)
  const again = await acquire(`a=b; ${met.setCookie!.split(';')[0]}`)
  expect(again).toMatchObject({ revisionId: canary!, setCookie: null })
  await update({ spec: { revision: { active: canary } } })
  await eventually('the canary serves alone', async () => (await served()).active === canary!)
  expect(await acquire(`${stickyCookieName('agent', 'one')}=${first}`)).toMatchObject({ revisionId: canary! })
})

test('which image serves is told beside the one that was deployed last', async () => {
  const { revisionId: first } = await create()
  await isDeployed(first)
  host.images.digests.set('sandbox/app:v2', 'sha256:2')
  const { revisionId: second } = await update({ spec: { runtime: { image: 'sandbox/app:v2' } } })
  await isDeployed(second)
  await eventually('the second serves', async () => (await served()).active === second)
  await update({ spec: { revision: { active: first } } })
  const { spec } = viewOf(await read())
  expect(spec).toMatchObject({
    runtime: { image: 'sandbox/app:v2' },
    revision: { active: first!, activeImage: 'sandbox/app:v1' },
  })
  expect((await update({ spec })).revisionId).toBeNull()
})

test('a request meets another revision when the one that was picked is taken away in between', async () => {
  const [, second] = await revisions(2)
  const acquire = host.fleet.acquire.bind(host.fleet)
  const acquireNow = host.fleet.acquireNow.bind(host.fleet)
  host.fleet.acquireNow = (id, options) => {
    host.fleet.acquireNow = acquireNow
    return refused === 0 ? null : acquireNow(id, options)
  }
  let refused = 0
  host.fleet.acquire = async (id, signal, options) => {
    if (refused++ === 0) throw new PlatformError('workload_not_found', 'just taken away')
    return await acquire(id, signal, options)
  }
  expect((await host.deployments.acquire('main', 'agent', 'one', { cookie: null })).revisionId).toBe(second!)
  expect(
    (await host.deployments.acquireInstance('main', 'agent', 'one', `instance-of-${second}`))?.revisionId,
  ).toBe(second!)
  expect(await host.deployments.acquireInstance('main', 'agent', 'one', 'instance-of-other')).toBeNull()
})
