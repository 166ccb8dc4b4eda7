import { expect, test } from 'bun:test'
import { FakeClock } from '../lib/test-clock.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { LargeBodies } from './large-bodies.ts'
import { WholeBody } from './whole-body.ts'

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
    async send(bytes: number) {
      for (let left = bytes; left > 0; left -= MiB) {
        await writer.write(new Uint8Array(Math.min(MiB, left)).fill(7)).catch(() => {})
      }
    },
    async all(bytes: number) {
      await this.send(bytes)
      await writer.close().catch(() => {})
    },
  }
}

/** Bodies in one room. */
function rooms(clock = new FakeClock()) {
  const bodies = new LargeBodies(clock)
  return { clock, of: (request: Request, from = 'one') => new WholeBody(request, { bodies, sender: from }) }
}

/** Takes this much of the room until it is `used`. */
async function holding({ of }: ReturnType<typeof rooms>, bytes: number, from = 'one'): Promise<WholeBody> {
  const one = sender(bytes)
  const whole = of(one.request, from)
  const read = whole.bytes(32 * MiB)
  await one.all(bytes)
  await read
  return whole
}

/** Begins to read, and says whether it came. */
function reading({ of }: ReturnType<typeof rooms>, bytes: number, from = 'one') {
  const one = sender(bytes)
  const whole = of(one.request, from)
  const state = { whole, came: false, done: Promise.resolve() }
  state.done = whole.bytes(32 * MiB).then(() => {
    state.came = true
  })
  void one.all(bytes)
  return state
}

test('a body is handed over whole, with a length or without, small or large', async () => {
  for (const [bytes, declared] of [
    [10, true],
    [10, false],
    [3 * MiB, true],
    [3 * MiB, false],
  ] as const) {
    const one = sender(declared ? bytes : null)
    const read = rooms()
      .of(one.request)
      .bytes(32 * MiB)
    void one.all(bytes)
    const body = await read
    expect([body.length, body.every((byte) => byte === 7)]).toEqual([bytes, true])
  }
  const none = new Request('http://localhost/', { method: 'POST' })
  expect((await rooms().of(none).bytes(10)).length).toBe(0)
})

test('more than is allowed is refused, before it comes where its length is known', async () => {
  const room = rooms()
  expect((await refusalOf(room.of(sender(2 * MiB).request).bytes(MiB))).code).toBe('body_too_large')
  const surprising = sender(null)
  const read = refusalOf(room.of(surprising.request).bytes(MiB))
  void surprising.send(2 * MiB)
  expect((await read).code).toBe('body_too_large')
})

test('who finds no room waits until what another sent is used; small ones and the largest pass by', async () => {
  const room = rooms()
  const first = await holding(room, 8 * MiB)
  const second = await holding(room, 8 * MiB)
  const waiting = reading(room, 4 * MiB)
  await reading(room, 5).done
  await reading(room, 20 * MiB).done
  await reading(room, 4 * MiB, 'another').done
  expect(waiting.came).toBe(false)
  first.used()
  await waiting.done
  second.used()
})

test('what is made of a body that came counts for ten seconds at most', async () => {
  const room = rooms()
  await holding(room, 20 * MiB)
  const waiting = reading(room, 20 * MiB)
  await room.clock.turn(9999)
  expect(waiting.came).toBe(false)
  await room.clock.turn(1)
  await waiting.done
})

test('who sends slowly gives its room back once others wait for it, and not before', async () => {
  const room = rooms()
  const slow = sender(30 * MiB)
  const failed = refusalOf(room.of(slow.request).bytes(32 * MiB))
  void slow.send(MiB)
  await room.clock.turn(60 * 60_000)
  const other = reading(room, 20 * MiB)
  await room.clock.turn(1000)
  const error = await failed
  expect([error.code, error.retryAfterSeconds]).toEqual(['too_many_requests', 5])
  await other.done
})

test('who sends fast enough keeps its room, however many wait', async () => {
  const room = rooms()
  const steady = sender(30 * MiB)
  const read = room.of(steady.request).bytes(32 * MiB)
  const other = reading(room, 20 * MiB)
  for (let sent = 0; sent < 30; sent++) {
    await steady.send(MiB)
    await room.clock.turn(4000)
  }
  expect(other.came).toBe(false)
  await steady.all(0)
  expect((await read).length).toBe(30 * MiB)
})

test('so many of one sender wait, and the next is refused', async () => {
  const room = rooms()
  const first = await holding(room, 20 * MiB)
  const others = Array.from({ length: 224 }, () => sender(9 * MiB))
  const failures = others.map(({ request }) =>
    room
      .of(request)
      .bytes(32 * MiB)
      .catch((error) => error),
  )
  const error = await refusalOf(room.of(sender(9 * MiB).request).bytes(32 * MiB))
  expect([error.code, error.retryAfterSeconds]).toEqual(['too_many_requests', 1])
  first.used()
  // One by one, as each of them is given up for sending nothing.
  await room.clock.turn(224 * 12_000)
  await Promise.all(failures.slice(0, -1))
  void others.at(-1)?.all(9 * MiB)
  expect((await failures.at(-1))?.length).toBe(9 * MiB)
})

test('a client that leaves makes room', async () => {
  const room = rooms()
  const broken = new ReadableStream({
    start(controller) {
      controller.enqueue(new Uint8Array(MiB))
      controller.error(new Error('it hung up'))
    },
  })
  const headers = { 'content-length': String(30 * MiB) }
  const request = new Request('http://localhost/', { method: 'POST', headers, body: broken })
  const failure = await room
    .of(request)
    .bytes(32 * MiB)
    .catch((error: Error) => error.message)
  expect(failure).toBe('it hung up')
  await reading(room, 30 * MiB).done
})

test('a client that leaves while it waits for room keeps no place', async () => {
  const room = rooms()
  const first = await holding(room, 30 * MiB)
  const gone = new AbortController()
  const request = new Request('http://localhost/', {
    method: 'POST',
    headers: { 'content-length': String(9 * MiB) },
    body: sender(9 * MiB).request.body,
    signal: gone.signal,
  })
  const left = room
    .of(request)
    .bytes(32 * MiB)
    .catch((error: Error) => error.message)
  const next = reading(room, 9 * MiB)
  gone.abort(new Error('it hung up'))
  expect(await left).toBe('it hung up')
  first.used()
  await next.done
})

test('what is passed on as it comes has room for what is held of it', async () => {
  const room = rooms()
  const first = await holding(room, 8 * MiB)
  const second = await holding(room, 6 * MiB)
  const one = sender(null)
  const whole = room.of(one.request)
  const streaming = whole.streamed(6 * MiB)
  second.used()
  const body = await streaming
  void one.all(20 * MiB)
  let bytes = 0
  for await (const chunk of body) bytes += chunk.byteLength
  expect(bytes).toBe(20 * MiB)
  const waiting = reading(room, 7 * MiB)
  first.used()
  whole.used()
  await waiting.done
})
