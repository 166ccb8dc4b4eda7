import { expect, test } from 'bun:test'
import { FakeClock } from '../lib/test-clock.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { LargeBodies } from './large-bodies.ts'

const MiB = 1024 * 1024

/** A body that comes when the test says so. */
function sender(declared: number | null) {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>()
  const writer = writable.getWriter()
  // It may be told that nobody reads it any more.
  writer.closed.catch(() => {})
  const headers: Record<string, string> = declared === null ? {} : { 'content-length': String(declared) }
  const request = new Request('http://localhost/', { method: 'POST', headers, body: readable })
  return {
    request,
    send: (bytes: number) => writer.write(new Uint8Array(bytes).fill(7)).catch(() => {}),
    end: () => writer.close().catch(() => {}),
  }
}

test('a body is handed over whole, with a length or without, small or large', async () => {
  const bodies = new LargeBodies(new FakeClock())
  for (const [bytes, declared] of [
    [10, true],
    [10, false],
    [3 * MiB, true],
    [3 * MiB, false],
  ] as const) {
    const one = sender(declared ? bytes : null)
    const read = bodies.read(one.request, 32 * MiB, async (body) => [
      body.length,
      body.every((byte) => byte === 7),
    ])
    for (let sent = 0; sent < bytes; sent += MiB) void one.send(Math.min(MiB, bytes - sent))
    void one.end()
    expect(await read).toEqual([bytes, true])
  }
  const none = new Request('http://localhost/', { method: 'POST' })
  expect(await bodies.read(none, 10, async (body) => body.length)).toBe(0)
})

test('more than is allowed is refused, before it comes where its length is known', async () => {
  const bodies = new LargeBodies(new FakeClock())
  const declared = sender(2 * MiB)
  expect((await refusalOf(bodies.read(declared.request, MiB, async () => 0))).code).toBe('body_too_large')
  const surprising = sender(null)
  const read = bodies.read(surprising.request, MiB, async () => 0)
  void surprising.send(2 * MiB)
  expect((await refusalOf(read)).code).toBe('body_too_large')
})

test('who finds no room waits until what another sent is used, and small ones pass by', async () => {
  const bodies = new LargeBodies(new FakeClock())
  const first = sender(30 * MiB)
  const used = Promise.withResolvers<void>()
  const order: string[] = []
  const reading = bodies.read(first.request, 32 * MiB, async () => {
    order.push('first')
    await used.promise
  })
  const second = sender(4 * MiB)
  const waiting = bodies.read(second.request, 32 * MiB, async () => void order.push('second'))
  for (let sent = 0; sent < 30; sent++) void first.send(MiB)
  for (let sent = 0; sent < 4; sent++) void second.send(MiB)
  void first.end()
  void second.end()
  const small = sender(5)
  void small.send(5)
  void small.end()
  await bodies.read(small.request, 32 * MiB, async () => void order.push('small'))
  while (!order.includes('first')) await Bun.sleep(1)
  expect(order.toSorted()).toEqual(['first', 'small'])
  used.resolve()
  await Promise.all([reading, waiting])
  expect(order.at(-1)).toBe('second')
})

test('who sends slowly gives its room back once others wait for it, and not before', async () => {
  const clock = new FakeClock()
  const bodies = new LargeBodies(clock)
  const slow = sender(30 * MiB)
  const failed = refusalOf(bodies.read(slow.request, 32 * MiB, async () => 0))
  void slow.send(MiB)
  await clock.turn(60 * 60_000)
  const other = sender(4 * MiB)
  const read = bodies.read(other.request, 32 * MiB, async (body) => body.length)
  for (let sent = 0; sent < 4; sent++) void other.send(MiB)
  void other.end()
  await clock.turn(1000)
  const error = await failed
  expect([error.code, error.retryAfterSeconds]).toEqual(['too_many_requests', 5])
  expect(await read).toBe(4 * MiB)
})

test('a client that leaves makes room', async () => {
  const bodies = new LargeBodies(new FakeClock())
  const broken = new ReadableStream({
    start(controller) {
      controller.enqueue(new Uint8Array(MiB))
      controller.error(new Error('it hung up'))
    },
  })
  const headers = { 'content-length': String(30 * MiB) }
  const request = new Request('http://localhost/', { method: 'POST', headers, body: broken })
  const failure = await bodies.read(request, 32 * MiB, async () => 0).catch((error: Error) => error.message)
  expect(failure).toBe('it hung up')
  const next = sender(30 * MiB)
  const read = bodies.read(next.request, 32 * MiB, async (body) => body.length)
  for (let sent = 0; sent < 30; sent++) void next.send(MiB)
  void next.end()
  expect(await read).toBe(30 * MiB)
})
