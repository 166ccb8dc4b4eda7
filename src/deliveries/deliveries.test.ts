import { expect, setDefaultTimeout, test } from 'bun:test'
import { createHmac } from 'node:crypto'
import { verifyWebhookFromRequest } from '@blaxel/core'
import { PlatformError } from '../errors.ts'
import { TestExecutions } from '../executions/test-executions.ts'
import { Dialer } from '../lib/dialer.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { DeliveryDialect } from './dialects.ts'
import { Deliveries, newCallbackSecret } from './index.ts'
import type { DeliveryView } from './record.ts'
import { type DeliveryNote, withAttempt } from './record.ts'
import { type Received, TestReceiver } from './test-receiver.ts'

setDefaultTimeout(120_000)
const secrets = createSecretBox(new Uint8Array(32).fill(5))
const secondMs = 1000

/** Deliveries over a real engine, where this machine may be dialled. */
class TestDeliveries implements AsyncDisposable {
  readonly receiver = new TestReceiver()
  readonly resolved = new Map<string, string[]>()
  loopbackOpen = true
  deliveries: Deliveries

  private constructor(readonly engine: TestExecutions) {
    this.deliveries = this.#open()
  }

  static async open(): Promise<TestDeliveries> {
    return new TestDeliveries(await TestExecutions.open())
  }

  #open(): Deliveries {
    const { engine } = this
    const dialer = new Dialer({
      privateTargets: [],
      ownPorts: () => [],
      loopbackOpen: () => this.loopbackOpen,
      resolve: async (host) => this.resolved.get(host) ?? (await Promise.reject(new Error('unknown'))),
    })
    const { executions, clock } = engine
    return new Deliveries({ executions, dialer, secrets, clock, version: '1', random: () => 0.5 })
  }

  /** As after kill -9. */
  async restart(): Promise<void> {
    await this.engine.reopen()
    this.deliveries = this.#open()
    await this.engine.executions.open()
  }

  async deliver(
    given: {
      dialect?: DeliveryDialect
      secrets?: string[]
      url?: string
      headers?: Record<string, string>
    } = {},
  ): Promise<string> {
    const { dialect = 'blaxel', url = this.receiver.url, headers = {} } = given
    const { execution } = await this.engine.executions.accept(
      this.deliveries.compose({
        workspace: 'main',
        executionId: 'execution-1',
        dialect,
        url,
        headers,
        body: Buffer.from('{"status_code":200}'),
        secrets: (given.secrets ?? []).map((secret) => this.deliveries.seal('main', secret)),
        loopback: true,
      }),
    )
    return String(execution.note.deliveryId)
  }

  get(id: string): DeliveryView {
    return this.deliveries.get('main', id)
  }

  /** Once `count` attempts are written. */
  async attempted(id: string, count: number): Promise<DeliveryView> {
    await eventually(`${count} attempts`, () => this.get(id).attempts.length >= count)
    return this.get(id)
  }

  /** When the attempt comes that follows the one that began then. */
  async waits(id: string, at: number): Promise<number> {
    return await eventually('it waits again', () => {
      const { nextAttemptAt = '' } = this.get(id)
      const nextAt = Date.parse(nextAttemptAt)
      return nextAt > at ? nextAt : null
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine[Symbol.asyncDispose]()
    await this.receiver[Symbol.asyncDispose]()
  }
}

function standardSignatures(
  { headers, body }: { headers: Record<string, string>; body: string },
  secret: string,
): string {
  const key = Buffer.from(secret.replace('whsec_', ''), 'base64')
  const signed = `${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`
  return `v1,${createHmac('sha256', key).update(signed).digest('base64')}`
}

test('a callback is signed for its dialect and for the standard, and recorded with its answer', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = () => Response.json({ received: true })
  const secret = newCallbackSecret()
  expect(secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/)
  const id = await host.deliver({ secrets: [secret] })
  const received = await host.receiver.nth(1)
  expect(received.body).toBe('{"status_code":200}')
  expect(verifyWebhookFromRequest(received, secret)).toBe(true)
  expect(verifyWebhookFromRequest(received, newCallbackSecret())).toBe(false)
  expect(verifyWebhookFromRequest({ ...received, body: '{"status_code":201}' }, secret)).toBe(false)
  const { headers } = received
  expect(headers).toMatchObject({
    'content-type': 'application/json',
    'user-agent': 'hutch/1',
    'webhook-id': id,
  })
  expect(headers['x-blaxel-timestamp']).toBe(headers['webhook-timestamp'])
  expect(headers['webhook-signature']).toBe(standardSignatures(received, secret))
  await host.attempted(id, 1)
  await eventually('it is delivered', () => host.get(id).status === 'delivered')
  expect(host.get(id)).toMatchObject({
    executionId: 'execution-1',
    dialect: 'blaxel',
    url: host.receiver.url,
    attempts: [{ status: 200, bodyExcerpt: '{"received":true}', error: null }],
  })
  expect(
    host.deliveries.list('main', { execution: 'execution-1', limit: 10 }).data.map((one) => one.id),
  ).toEqual([id])
  expect(host.deliveries.list('main', { execution: 'execution-2', limit: 10 }).data).toEqual([])
  // Secrets are kept sealed.
  expect(JSON.stringify(host.engine.executions.list('main', { source: 'delivery' }))).not.toContain(secret)
})

test('what fails is sent again with the same id and body, at its times, until it is given up', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = (_, count) => new Response(`no ${count}`, { status: 500 })
  const id = await host.deliver()
  const times = [1, 5, 30, 120, 600, 3600, 21_600]
  for (const [index, seconds] of times.entries()) {
    const { attempts } = await host.attempted(id, index + 1)
    expect(attempts[index]).toMatchObject({ status: 500, bodyExcerpt: `no ${index + 1}` })
    const at = Date.parse(attempts[index]?.at ?? '')
    const nextAt = await host.waits(id, at)
    expect(nextAt - at).toBeGreaterThanOrEqual(seconds * secondMs)
    // By the clock of the machine more may pass, but never as much as until the time after it.
    if (seconds >= 30) expect(nextAt - at).toBeLessThan(4 * seconds * secondMs)
    host.engine.clock.advance(seconds * secondMs)
  }
  await eventually('it is given up', () => host.get(id).status === 'failed')
  expect(host.get(id).attempts).toHaveLength(8)
  const ids = host.receiver.received.map(({ headers }) => headers['webhook-id'])
  expect(new Set(ids)).toEqual(new Set([id]))
  expect(new Set(host.receiver.received.map(({ body }) => body)).size).toBe(1)
  host.engine.clock.advance(24 * 3600 * secondMs)
  expect(host.receiver.received).toHaveLength(8)
})

test('what waits outlives the platform, and is sent with the same id after it', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = (_, count) => new Response('', { status: count < 3 ? 503 : 200 })
  const id = await host.deliver()
  await host.attempted(id, 1)
  host.engine.clock.advance(60 * secondMs)
  await host.attempted(id, 2)
  await host.restart()
  host.engine.clock.advance(600 * secondMs)
  await eventually('it is delivered', () => host.get(id).status === 'delivered')
  expect(host.get(id).attempts.map(({ status }) => status)).toEqual([503, 503, 200])
  expect((await host.receiver.nth(3)).headers['webhook-id']).toBe(id)
})

test('a receiver that answers 200 after its time has not got it', async () => {
  await using host = await TestDeliveries.open()
  const late = Promise.withResolvers<void>()
  host.receiver.answer = async (_, count) => {
    if (count === 1) await late.promise
    return new Response('ok')
  }
  const id = await host.deliver()
  await host.receiver.nth(1)
  host.engine.clock.advance(15 * secondMs)
  const [first] = (await host.attempted(id, 1)).attempts
  late.resolve()
  expect(first).toMatchObject({ status: null, error: 'no answer within 15 s', bodyExcerpt: '' })
  host.engine.clock.advance(60 * secondMs)
  await eventually('it is delivered', () => host.get(id).status === 'delivered')
  expect((await host.receiver.nth(2)).headers['webhook-id']).toBe(id)
})

test('a receiver decides when it is asked again, and that it is not', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = (_, count) =>
    count === 1
      ? new Response('', { status: 429, headers: { 'retry-after': '300' } })
      : new Response('gone', { status: 410 })
  const id = await host.deliver()
  await host.attempted(id, 1)
  await eventually('it waits', () => {
    const inMs = Date.parse(host.get(id).nextAttemptAt ?? '') - host.engine.clock.now()
    return inMs > 200 * secondMs && inMs <= 300 * secondMs
  })
  host.engine.clock.advance(300 * secondMs)
  await eventually('it is over', () => host.get(id).status === 'failed')
  expect(host.get(id).attempts.at(-1)).toMatchObject({
    status: 410,
    error: expect.stringContaining('no more'),
  })
})

test('a redirect is a failure, and what an answer says is kept up to a bound', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = (_, count) =>
    count === 1
      ? new Response('x'.repeat(5000), { status: 302, headers: { location: 'http://169.254.169.254/' } })
      : new Response('ok')
  const id = await host.deliver()
  const { attempts } = await host.attempted(id, 1)
  expect(attempts).toMatchObject([
    { status: 302, error: 'redirects are not followed (302)', bodyExcerpt: 'x'.repeat(1024) },
  ])
})

test('an answer is kept as it came: what unfolds to much is not unfolded', async () => {
  await using host = await TestDeliveries.open()
  const packed = Bun.gzipSync('x'.repeat(1024 * 1024))
  host.receiver.answer = () => new Response(packed, { status: 500, headers: { 'content-encoding': 'gzip' } })
  const { attempts } = await host.attempted(await host.deliver({ headers: { 'Accept-Encoding': 'gzip' } }), 1)
  expect(attempts[0]?.bodyExcerpt).not.toContain('xx')
  expect((await host.receiver.nth(1)).headers['accept-encoding']).toBe('identity')
})

test('the newest attempts are kept, as many as there is room for', () => {
  const attempt = { at: '', status: 500, latencyMs: 1, bodyExcerpt: '\u0001'.repeat(1024), error: 'failed' }
  let note = { headers: {}, secrets: [], attempts: [] } as unknown as DeliveryNote
  for (let count = 1; count <= 50; count++)
    note = { ...note, attempts: withAttempt(note, { ...attempt, at: String(count) }) }
  expect(note.attempts.length).toBeGreaterThan(5)
  expect(note.attempts.at(-1)?.at).toBe('50')
  expect(Buffer.byteLength(JSON.stringify(note))).toBeLessThan(64 * 1024)
})

test.each([
  ['a line', { 'x-a': 'b\r\nhost: c' }, 'characters that no header can have'],
  ['no name', { 'x a': 'b' }, 'is not a name of a header'],
  ['a long one', { 'x-a': 'b'.repeat(513) }, 'more than 512 characters'],
  ['many', Object.fromEntries(Array.from({ length: 21 }, (_, index) => [`x-${index}`, ''])), 'at most 20'],
])('headers of a client are refused where none can be sent so: %s', async (_, headers, message) => {
  await using host = await TestDeliveries.open()
  expect(() => host.deliveries.checkHeaders('headers', headers as Record<string, string>)).toThrow(message)
})

test('by hand it is sent once more, with the same id and all that was tried', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = (_, count) => new Response('', { status: count === 1 ? 410 : 200 })
  const id = await host.deliver()
  await eventually('it failed', () => host.get(id).status === 'failed')
  const again = await host.deliveries.redeliver('main', id)
  expect(again).toMatchObject({ id, attempts: [{ status: 410 }] })
  await eventually('it is delivered', () => host.get(id).status === 'delivered')
  expect(host.get(id).attempts.map(({ status }) => status)).toEqual([410, 200])
  expect((await host.receiver.nth(2)).headers['webhook-id']).toBe(id)
  const { data } = host.deliveries.list('main', { execution: 'execution-1', limit: 10 })
  expect(data.map((one) => [one.id, one.status])).toEqual([[id, 'delivered']])

  // One that waits is not sent twice for that.
  host.receiver.answer = (_, count) =>
    count === 3 ? new Response('', { status: 503, headers: { 'retry-after': '3600' } }) : new Response()
  const waiting = await host.deliver()
  await host.attempted(waiting, 1)
  await host.deliveries.redeliver('main', waiting)
  await eventually('it is delivered', () => host.get(waiting).status === 'delivered')
  expect(host.receiver.received).toHaveLength(4)
  const both = host.engine.executions.list('main', { source: 'delivery', labels: { delivery: waiting } })
  expect(both.data.map(({ status }) => status)).toEqual(['succeeded', 'cancelled'])
  expect(await refusal(host.deliveries.redeliver('main', 'none'))).toStartWith('not_found')
})

test('while two secrets hold, a receiver of either gets it', async () => {
  await using host = await TestDeliveries.open()
  const [fresh, old] = [newCallbackSecret(), newCallbackSecret()]
  host.deliveries.signer('blaxel', async () => null)
  host.receiver.answer = (_, count) =>
    new Response('', {
      status: verifyWebhookFromRequest(host.receiver.received[count - 1] as Received, old, 1e9) ? 200 : 401,
    })
  const id = await host.deliver({ secrets: [fresh, old] })
  await host.attempted(id, 1)
  host.engine.clock.advance(10 * secondMs)
  await eventually('it is delivered', () => host.get(id).status === 'delivered')
  expect(host.get(id).attempts.map(({ status }) => status)).toEqual([401, 200])
  const first = await host.receiver.nth(1)
  expect(verifyWebhookFromRequest(first, fresh, 1e9)).toBe(true)
  expect(first.headers['webhook-signature']).toBe(
    `${standardSignatures(first, fresh)} ${standardSignatures(first, old)}`,
  )
})

test('the newest secret signs until it is refused, whatever else fails, and each time that it is sent by hand', async () => {
  await using host = await TestDeliveries.open()
  const known = [newCallbackSecret(), newCallbackSecret(), newCallbackSecret()]
  host.deliveries.signer('blaxel', async () => null)
  const statuses = [500, 429, 401, 500, 403, 410, 200]
  host.receiver.answer = (_, count) => new Response('', { status: statuses[count - 1] as number })
  const id = await host.deliver({ secrets: known })
  for (let count = 1; count <= 6; count++) {
    const { at } = (await host.attempted(id, count)).attempts.at(-1) ?? { at: '' }
    if (count < 6) host.engine.clock.advance((await host.waits(id, Date.parse(at))) - host.engine.clock.now())
  }
  await eventually('it is given up', () => host.get(id).status === 'failed')
  await host.deliveries.redeliver('main', id)
  await eventually('it is delivered', () => host.get(id).status === 'delivered')
  const signedBy = host.receiver.received.map((received) =>
    known.findIndex((secret) => verifyWebhookFromRequest(received, secret, 1e9)),
  )
  expect(signedBy).toEqual([0, 0, 0, 1, 1, 2, 0])
})

test('AgentField signs under its own name, tries five times, and takes headers of the client but none of ours', async () => {
  await using host = await TestDeliveries.open()
  host.receiver.answer = () => new Response('', { status: 500 })
  const id = await host.deliver({
    dialect: 'agentfield',
    secrets: ['plain secret'],
    headers: { 'X-Custom': 'one', 'Webhook-Id': 'forged', Host: 'elsewhere', 'X-Blaxel-Signature': 'forged' },
  })
  for (let attempt = 1; attempt <= 4; attempt++) {
    await host.attempted(id, attempt)
    host.engine.clock.advance(60 * secondMs)
  }
  await eventually('it is given up', () => host.get(id).status === 'failed')
  expect(host.receiver.received).toHaveLength(5)
  const { headers, body } = await host.receiver.nth(1)
  const signature = createHmac('sha256', 'plain secret').update(body).digest('hex')
  expect(headers).toMatchObject({
    'x-agentfield-signature': `sha256=${signature}`,
    'x-custom': 'one',
    'webhook-id': id,
  })
  expect(headers['x-blaxel-signature']).toBeUndefined()
})

test('one receiver that is slow holds up no other', async () => {
  await using host = await TestDeliveries.open()
  await using slow = new TestReceiver()
  const gate = Promise.withResolvers<void>()
  slow.answer = async () => {
    await gate.promise
    return new Response()
  }
  const held = await Promise.all(Array.from({ length: 100 }, () => host.deliver({ url: slow.url })))
  await slow.nth(4)
  const id = await host.deliver()
  await eventually('the other got it', () => host.get(id).status === 'delivered')
  gate.resolve()
  await eventually('all got it', () => held.every((one) => host.get(one).status === 'delivered'))
})

const refusal = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'nothing was refused',
    (error) => (PlatformError.is(error) ? `${error.code} ${error.message}` : String(error)),
  )

test.each([
  ['no address', 'is not an address'],
  ['ftp://example.com/x', '"ftp:" is not http: or https:'],
  ['javascript:alert(1)', 'is not http: or https:'],
  ['https://user:pass@example.com/', 'a user name or a password'],
  ['https://example.com/#part', 'with a fragment'],
  ['http://10.0.0.7/hook', 'is a private address'],
  ['http://169.254.169.254/latest', 'is a private address'],
  ['http://[::ffff:192.168.1.1]/', 'is a private address'],
  ['https://inside.example.com/hook', 'is a private address'],
])('an address like %s is refused when it is given', async (address, message) => {
  await using host = await TestDeliveries.open()
  host.resolved.set('inside.example.com', ['192.168.7.7'])
  const refused = await refusal(host.deliveries.checkAddress('callbackUrl', address, { loopback: true }))
  expect(refused).toStartWith('bad_request callbackUrl')
  expect(refused).toContain(message)
  expect(refused).not.toContain('pass@')
})

test('this machine may be told by who asks for it as a user, where nobody else reaches the platform, and again when it is dialled', async () => {
  await using host = await TestDeliveries.open()
  const { url } = host.receiver
  const check = (loopback: boolean) => refusal(host.deliveries.checkAddress('callbackUrl', url, { loopback }))
  expect(await check(true)).toBe('nothing was refused')
  expect(await check(false)).toContain('private address')
  host.loopbackOpen = false
  expect(await check(true)).toContain('private address')
  const id = await host.deliver()
  const { attempts } = await host.attempted(id, 1)
  expect(attempts).toMatchObject([{ status: null, error: expect.stringContaining('private address') }])
  expect(host.receiver.received).toEqual([])
})

test('a name that points elsewhere when it is dialled is not dialled', async () => {
  await using host = await TestDeliveries.open()
  host.resolved.set('moving.example.com', ['93.184.216.34'])
  const url = 'https://moving.example.com/hook'
  expect(await host.deliveries.checkAddress('callbackUrl', url, { loopback: false })).toBe(url)
  host.resolved.set('moving.example.com', ['10.0.0.1'])
  const id = await host.deliver({ url })
  const { attempts } = await host.attempted(id, 1)
  expect(attempts).toMatchObject([{ status: null, error: expect.stringContaining('private address') }])
})
