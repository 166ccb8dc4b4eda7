import { expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Answer, type TestWorker, TestXpander } from './test-xpander.ts'

/** What a worker of the SDK says every two seconds, while time passes. */
async function alive(xpander: TestXpander, ms: number, ...workers: TestWorker[]): Promise<void> {
  for (let passed = 0; passed < ms; passed += 10_000) {
    for (const worker of workers) await worker.say('worker-heartbeat', '2026-01-01T00:00:00')
    await xpander.clock.turn(Math.min(10_000, ms - passed))
  }
}

test('a worker is told who it is, and gets the turns of its agent, also those that waited for it', async () => {
  await using xpander = await TestXpander.open()
  const first = await xpander.worker('behind-nat')
  expect(first.asset).toMatchObject({
    organization_id: 'main',
    type: 'worker',
    dedicated_agent_id: 'behind-nat',
    is_busy: false,
  })
  first.leave()
  const begun = await xpander.begin('behind-nat', 'wait for me')
  const elsewhere = await xpander.worker('other-agent')
  const second = await xpander.worker('behind-nat')
  const turn = await second.turn()
  expect(turn).toMatchObject({ id: begun.id, worker_id: second.asset.id, execution_attempts: 1 })
  await second.report(turn, { status: 'completed', result: 'ok' })
  expect(await xpander.task(begun.id)).toMatchObject({ status: 'completed' })
  elsewhere.leave()
})

test('turns are spread over workers, and wait for one that has room', async () => {
  await using xpander = await TestXpander.open()
  const [one, two] = [await xpander.worker('team'), await xpander.worker('team')]
  for (let n = 0; n < 14; n++) await xpander.begin('team', `turn ${n}`)
  const taken: Answer[] = []
  for (let n = 0; n < 6; n++) taken.push(await one.turn(), await two.turn())
  expect(new Set(taken.map(({ id }) => id)).size).toBe(12)
  // Both have as many as they work on at once: the rest waits.
  const { items } = await xpander.get('/v1/tasks?per_page=50')
  expect(items.filter(({ worker_id }: Answer) => worker_id).length).toBe(0)
  await one.say('worker-capacity-update', { is_busy: true })
  for (const turn of taken) {
    const worker = turn.worker_id === one.asset.id ? one : two
    await worker.report(turn, { status: 'completed', result: 'ok' })
  }
  const last = [await two.turn(), await two.turn()]
  for (const turn of last) await two.report(turn, { status: 'completed', result: 'ok' })
  for (const { id } of last) await xpander.task(id)
})

test('what a lost worker had is given to another, and what the first says then changes nothing', async () => {
  await using xpander = await TestXpander.open()
  const lost = await xpander.worker('relay')
  const begun = await xpander.begin('relay', 'do it')
  const first = await lost.turn()
  await lost.report(first, { status: 'executing' })
  lost.leave()
  await xpander.clock.turn(16_000)
  const next = await xpander.worker('relay')
  const second = await next.turn()
  expect(second).toMatchObject({ id: begun.id, execution_attempts: 2 })
  expect(await lost.report(first, { status: 'completed', result: 'late' })).toMatchObject({ result: null })
  await next.report(second, { status: 'completed', result: 'in time' })
  await lost.report(first, { status: 'completed', result: 'later still' })
  expect(await xpander.task(begun.id)).toMatchObject({ result: 'in time', execution_attempts: 2 })
  expect(await xpander.get(`/v1/tasks/${begun.id}/thread`)).toHaveLength(2)
})

test('a worker that comes back goes on with what it has, and one that says nothing is lost', async () => {
  await using xpander = await TestXpander.open()
  const before = await xpander.worker('steady')
  const begun = await xpander.begin('steady', 'long')
  const turn = await before.turn()
  before.leave()
  const after = await xpander.worker('steady')
  await alive(xpander, 60_000, after)
  // Its program still works on it, and is believed.
  await after.report(turn, { status: 'completed', result: 'made it' })
  expect(await xpander.task(begun.id)).toMatchObject({ result: 'made it', execution_attempts: 1 })
  const silent = await xpander.begin('steady', 'again')
  const unheard = await after.turn()
  expect(unheard.id).toBe(silent.id)
  await xpander.clock.turn(41_000)
  expect(await after.say('worker-heartbeat')).toBe(404)
  const heir = await xpander.worker('steady')
  await alive(xpander, 310_000, heir)
  const taken = await heir.turn()
  expect(taken.id).toBe(silent.id)
  await heir.report(taken, { status: 'completed', result: 'done' })
  await xpander.task(silent.id)
})

test('a turn that worker after worker is lost with ends as an error', async () => {
  await using xpander = await TestXpander.open()
  const first = await xpander.worker('cursed')
  const begun = await xpander.begin('cursed', 'boom')
  await first.turn()
  first.leave()
  for (let n = 1; n < 5; n++) {
    await xpander.clock.turn(16_000)
    const worker = await xpander.worker('cursed')
    await worker.turn()
    worker.leave()
  }
  await xpander.clock.turn(16_000)
  expect(await xpander.task(begun.id)).toMatchObject({ status: 'error', internal_status: 'worker_lost' })
})

test('a turn of a program that was given up says nothing of the turn after it', async () => {
  await using xpander = await TestXpander.open()
  const worker = await xpander.worker('fenced')
  const first = await xpander.begin('fenced', 'one')
  const stale = await worker.turn()
  await xpander.get(`/v1/tasks/${first.id}/stop`, { method: 'POST' })
  await xpander.begin('fenced', 'two', { id: first.id })
  await worker.report(stale, { status: 'completed', result: 'of one' })
  const second = await worker.turn()
  await worker.report(second, { status: 'completed', result: 'of two' })
  expect(await xpander.task(first.id)).toMatchObject({ result: 'of two' })
})

test('whoever makes a task to run it himself is given it by nobody', async () => {
  await using xpander = await TestXpander.open()
  const worker = await xpander.worker('local')
  const own = await xpander.get('/agent-execution/local', {
    json: { input: { text: 'mine' }, run_locally: true, worker_id: worker.asset.id, id: null },
  })
  const other = await xpander.begin('local', 'for the worker')
  expect((await worker.turn()).id).toBe(other.id)
  await worker.report(own, { status: 'executing' })
  await worker.report(own, { status: 'completed', result: 'did it' })
  expect(await xpander.task(own.id)).toMatchObject({ status: 'completed', source: 'sdk' })
})

test('workers are of those who may do the work of the workspace', async () => {
  await using xpander = await TestXpander.open()
  const { workspace } = xpander.platform.credentials
  const workload = (kind: string, name: string) =>
    xpander.platform.access.mintWorkloadToken({
      ...{ instanceId: `${name}-1`, workspace, labels: {}, ttlMs: 3_600_000 },
      resource: { kind, name },
    })
  const comes = async (agentId: string, key: string | null) =>
    (await xpander.ask(`/main/events/${agentId}`, { key, signal: AbortSignal.timeout(60_000) })).status
  expect(await comes('agent', null)).toBe(401)
  expect(await comes('agent', await workload('sandbox', 'box'))).toBe(403)
  expect(await comes('agent', await workload('agent', 'another'))).toBe(403)
  const own = await xpander.worker('agent', { key: await workload('agent', 'agent') })
  const others = await xpander.begin('agent', 'not yours')
  const turn = await own.turn()
  const report = async (key: string) =>
    (
      await xpander.ask(`/agent-execution/${turn.id}/update`, {
        method: 'PATCH',
        json: { status: 'completed' },
        key,
      })
    ).status
  expect(await report(await workload('agent', 'another'))).toBe(403)
  expect(await report(await workload('sandbox', 'box'))).toBe(403)
  const stop = { method: 'POST', key: await workload('sandbox', 'box') }
  expect((await xpander.ask(`/v1/tasks/${turn.id}/stop`, stop)).status).toBe(403)
  expect(await report(await workload('agent', 'agent'))).toBe(200)
  expect(await xpander.task(others.id)).toMatchObject({ status: 'completed' })
  // The organisation is the workspace of that name, or whichever the credential has.
  expect((await xpander.request(`/91fbe9bc-35b3-41e8/events/agent`)).status).toBe(200)
  own.leave()
  expect(await comes('not an agent', xpander.platform.credentials.apiKey)).toBe(422)
})

test('turns outlive the platform: those that wait, and those that workers have', async () => {
  const dataDir = mkdtempSync(join(tmpdir(), 'hutch-xpander-'))
  try {
    let waiting: Answer
    let working: Answer
    let turn: Answer
    {
      await using xpander = await TestXpander.open({ dataDir })
      waiting = await xpander.worker('later').then(async (worker) => {
        worker.leave()
        return await xpander.begin('later', 'wait', { user_tokens: { a: 'a-secret-of-a-user' } })
      })
      const worker = await xpander.worker('now')
      working = await xpander.begin('now', 'work')
      turn = await worker.turn()
      await worker.report(turn, { status: 'executing' })
    }
    for (const file of readdirSync(dataDir)) {
      if (!file.startsWith('hutch.db')) continue
      const bytes = Buffer.from(await Bun.file(join(dataDir, file)).arrayBuffer())
      expect(bytes.includes('a-secret-of-a-user')).toBe(false)
    }
    await using xpander = await TestXpander.open({ dataDir })
    expect(await xpander.get(`/v1/tasks/${working.id}`)).toMatchObject({ status: 'executing' })
    const back = await xpander.worker('now')
    await back.report(turn, { status: 'completed', result: 'survived' })
    expect(await xpander.task(working.id)).toMatchObject({ result: 'survived' })
    const worker = await xpander.worker('later')
    const late = await worker.turn()
    expect(late).toMatchObject({ id: waiting.id, user_tokens: { a: 'a-secret-of-a-user' } })
    await worker.report(late, { status: 'completed', result: 'at last' })
    expect(await xpander.task(waiting.id)).toMatchObject({ result: 'at last' })
  } finally {
    rmSync(dataDir, { recursive: true, force: true })
  }
})
