import { expect, test } from 'bun:test'
import { PlatformError } from '../../errors.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import { eventually } from '../../lib/test-eventually.ts'
import { keptBodies, tried } from './tried.ts'

const tries = { retries: 2, timeoutMs: null }

/** Asks as one that answers with each of these in its turn; passes the pauses between them. */
async function asking(
  outcomes: (number | PlatformError)[],
  init: RequestInit,
  how: Parameters<typeof tried>[1] = tries,
  kept = keptBodies(),
) {
  const clock = new FakeClock()
  const seen: string[] = []
  const pauses: number[] = []
  const ask = async ({ request }: { request: Request }): Promise<Response> => {
    seen.push(`${request.method} ${request.headers.get('x-own')} ${await request.text()}`)
    const outcome = outcomes[seen.length - 1] ?? 200
    if (outcome instanceof PlatformError) throw outcome
    return new Response('said', { status: outcome })
  }
  const request = new Request('http://localhost:4400/main/agents/one', init)
  const context = {
    request,
    path: '/',
    search: '',
    origin: '',
    consumed: { headers: [], query: [] },
    upgrade: null,
  }
  let outcome: Response | PlatformError | null = null
  const asked = tried(context, how, ask, { clock, kept }).then(
    (response) => {
      outcome = response
    },
    (error) => {
      outcome = error
    },
  )
  const waiting = how.timeoutMs === null ? 0 : 1
  while (true) {
    await eventually('it pauses, or is over', () => outcome !== null || clock.sleepers > waiting)
    if (outcome !== null) break
    const before = clock.now()
    while (clock.sleepers > waiting) clock.advance(100)
    pauses.push(clock.now() - before)
  }
  await asked
  return { outcome: outcome as Response | PlatformError, seen, pauses, sleepers: clock.sleepers }
}

const post = (body: string, headers: Record<string, string> = {}): RequestInit => ({
  ...{ method: 'POST', body },
  headers: { 'x-own': 'kept', 'content-length': String(body.length), ...headers },
})

test('what failed is tried again, with the same body, after pauses that double', async () => {
  const { outcome, seen, pauses } = await asking([503, 429, 200], post('work'))
  expect((outcome as Response).status).toBe(200)
  expect(seen).toEqual(Array(3).fill('POST kept work'))
  expect(pauses).toEqual([500, 1000])
})

test('the last answer, or failure, is what its client gets', async () => {
  const last = await asking([500, 500, 502, 200], post('work'))
  expect([(last.outcome as Response).status, last.seen.length]).toEqual([502, 3])
  const down = new PlatformError('bad_gateway', 'it does not listen')
  expect((await asking([down, down, down], post('work'))).outcome).toBe(down)
  expect(((await asking([down, 200], { method: 'GET' })).outcome as Response).status).toBe(200)
})

test('what its program decided, and what cannot be sent again, is asked once', async () => {
  expect((await asking([400], post('work'))).seen).toHaveLength(1)
  const unknown = new PlatformError('workload_not_found', 'there is none')
  expect((await asking([unknown], post('work'))).seen).toHaveLength(1)
  const large = post('work', { 'content-length': String(9 * 1024 * 1024) })
  expect((await asking([503, 200], large)).seen).toHaveLength(1)
})

test('its time is for all tries together', async () => {
  const { outcome, seen, sleepers } = await asking([503, 503, 503], post('work'), {
    ...{ retries: 10, timeoutMs: 1000 },
  })
  expect(outcome).toMatchObject({ code: 'gateway_timeout', message: expect.stringContaining('1 seconds') })
  expect([seen.length, sleepers]).toEqual([2, 0])
})

test('a large body is kept to be sent again while there is room for it, and sent once where there is none', async () => {
  const large = post('w'.repeat(1024 * 1024))
  const kept = keptBodies()
  expect((await asking([503, 200], large, tries, kept)).seen.length).toBe(2)
  kept.tryTake(64 * 1024 * 1024)
  const { outcome, seen } = await asking([503, 200], large, tries, kept)
  expect([(outcome as Response).status, seen.length]).toEqual([503, 1])
  kept.leave(64 * 1024 * 1024)
  expect((await asking([503, 200], large, tries, kept)).seen.length).toBe(2)
})
