import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import type { Socket } from 'node:net'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { watchesMax } from '../spec/guest.ts'
import { type Frame, FrameType } from './frame.ts'
import { GuestClient } from './index.ts'
import { codeOf, errorFrame, ok, PlayedGuest, writer } from './test-played-guest.ts'

/** The client's files, against a guest that is played by the test. */

let played: PlayedGuest
let client: GuestClient
beforeEach(async () => {
  played = await PlayedGuest.open()
  client = open()
})
afterEach(async () => {
  client.close(new PlatformError('unavailable', 'closed'))
  await played.close()
})

function open(more: Partial<ConstructorParameters<typeof GuestClient>[0]> = {}) {
  const { socketPath, logDir } = played
  return new GuestClient({
    ...{ socketPath, logDir, log: silentLogger },
    ...{ requestTimeoutMs: 60_000, stallMsMax: 60_000, ...more },
  })
}

describe('files', () => {
  test('a move that overwrites nothing is refused by the kernel, not after a look: something may come in between', async () => {
    played.play((frame, socket) => {
      if (frame.type === FrameType.stat) socket.write(errorFrame(frame.id, 2))
      if (frame.type === FrameType.rename) socket.write(ok(frame.id))
      if (frame.type === FrameType.renameNew) socket.write(errorFrame(frame.id, 17))
    })
    expect(await codeOf(client.files.move('/a', '/b', { exclusive: true }))).toBe('already_exists')
    expect(await codeOf(client.files.move('/a', '/b'))).toBe('')
  })

  test('an idle connection is closed, so that an idle sandbox has no worker', async () => {
    client = open({ idleMsMax: 20 })
    played.play((frame, socket) => {
      if (frame.type === FrameType.chmod) socket.write(ok(frame.id))
    })
    await client.files.setMode('/x', 0o600)
    await client.files.setMode('/x', 0o600)
    expect(played.sockets.length).toBe(1)
    await eventually(() => played.sockets[0]?.destroyed === true)
  })

  test('no more than the pool are open at once, and all get their turn', async () => {
    client = open({ lastingMsMin: 60_000 })
    let most = 0
    let now = 0
    const full = Promise.withResolvers<void>()
    played.play((frame, socket) => {
      if (frame.type !== FrameType.chmod) return
      most = Math.max(most, ++now)
      // Those that may be open at once wait for each other, and for any that would be one too many.
      if (most === 16) setTimeout(full.resolve, 50)
      void full.promise.then(() => {
        now--
        socket.write(ok(frame.id))
      })
    })
    await Promise.all(Array.from({ length: 100 }, () => client.files.setMode('/x', 0o600)))
    expect(most).toBe(16)
    expect(played.sockets.length).toBe(16)
  })

  describe('operations that last', () => {
    let slow: { frame: Frame; socket: Socket }[]
    const finish = ({ frame, socket }: (typeof slow)[number]) => socket.write(ok(frame.id))
    const lasting = (count: number) =>
      Array.from({ length: count }, (_, at) => client.files.setMode(`/slow/${at}`, 0o600))

    beforeEach(() => {
      slow = []
      client = open({ lastingMsMin: 1 })
      played.play((frame, socket) => {
        if (frame.type !== FrameType.chmod) return
        if (Buffer.from(frame.payload).includes('/slow/')) slow.push({ frame, socket })
        else socket.write(ok(frame.id))
      })
    })

    test('leave the pool to those who wait, and their connections end with them', async () => {
      const waiting = lasting(16)
      await eventually(() => slow.length === 16)
      await Promise.all(Array.from({ length: 40 }, () => client.files.setMode('/quick', 0o600)))
      expect(slow.length).toBe(16)
      const [first] = slow
      if (first) finish(first)
      await eventually(() => first?.socket.destroyed === true)
      for (const each of slow.slice(1)) finish(each)
      await Promise.all(waiting)
    })

    test('are bounded: beyond that all wait until one of them is done', async () => {
      const waiting = lasting(16 + 24)
      await eventually(() => slow.length === 40)
      let answered = false
      const quick = client.files.setMode('/quick', 0o600).then(() => {
        answered = true
      })
      await new Promise((resolve) => setTimeout(resolve, 20))
      expect(answered).toBe(false)
      const [first] = slow
      if (first) finish(first)
      await quick
      for (const each of slow.slice(1)) finish(each)
      await Promise.all(waiting)
    })
  })

  test('watches beyond what may be open at once are refused, and one that ends makes room', async () => {
    played.play((frame, socket) => {
      if (frame.type === FrameType.watch) socket.write(ok(frame.id))
    })
    const open = () => {
      const controller = new AbortController()
      return client.files
        .watch('/x', { signal: controller.signal })
        .then((changes) => ({ changes, controller }))
    }
    const watches = []
    for (let count = 0; count < watchesMax; count++) watches.push(await open())
    expect(await refusalOf(open())).toMatchObject({
      code: 'too_many_requests',
      message: `${watchesMax} watches are open in this sandbox, the most at once: end one first`,
    })
    const [first] = watches
    first?.controller.abort(new Error('enough'))
    await first?.changes.next().catch(() => {})
    await open()
    expect(await refusalOf(open())).toMatchObject({ code: 'too_many_requests' })
  })

  test('a watch that the kernel has no room for is told as such, not as a full disk', async () => {
    for (const [errno, setting] of [
      [24, 'max_user_instances'],
      [28, 'max_user_watches'],
    ] as const) {
      played.play((frame, socket) => {
        if (frame.type === FrameType.watch) socket.write(errorFrame(frame.id, errno))
      })
      const refusal = await refusalOf(client.files.watch('/x'))
      expect(refusal.code).toBe('too_many_requests')
      expect(refusal.message).toContain(`fs.inotify.${setting}`)
    }
  })

  test('a refusal in the middle of a write ends it, without the rest being sent', async () => {
    played.play((frame, socket) => {
      if (frame.type === FrameType.data) socket.write(errorFrame(0, 28))
    })
    let pulled = 0
    let cancelled = false
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, 5))
        if (++pulled > 1_000) controller.close()
        else controller.enqueue(new Uint8Array(1_000))
      },
      cancel() {
        cancelled = true
      },
    })
    const error = await client.files.write('/x', body).catch((error) => error)
    expect([error.code, error.details]).toEqual(['insufficient_storage', { errno: 'ENOSPC' }])
    expect(pulled).toBeLessThan(1_000)
    await eventually(() => cancelled)
  })

  for (const chunkBytes of [4_000, 40_000]) {
    test(`a guest that takes a write in bursts gets all of it, in pieces of ${chunkBytes}`, async () => {
      const bytesTotal = 8_000_000
      let received = 0
      played.play((frame, socket) => {
        if (frame.type === FrameType.data) received += frame.payload.length
        if (frame.type === FrameType.end) {
          const entry = writer(FrameType.entryOk).u8('f'.charCodeAt(0)).u32(0o644).u32(0).u32(0)
          socket.write(entry.u64(received).u64(0).u32(1).str('x').str('').finish())
        }
        socket.pause()
        setTimeout(() => socket.resume(), 1)
      })
      let pulled = 0
      const body = new ReadableStream<Uint8Array>({
        pull(controller) {
          if (pulled >= bytesTotal) return controller.close()
          pulled += chunkBytes
          controller.enqueue(new Uint8Array(chunkBytes))
        },
      })
      expect((await client.files.write('/x', body)).size).toBe(bytesTotal)
    })
  }

  test('what was sent of a long write is not kept', async () => {
    played.play((frame, socket) => {
      // The test itself would keep it.
      played.received.length = 0
      if (frame.type !== FrameType.end) return
      const entry = writer(FrameType.entryOk).u8('f'.charCodeAt(0)).u32(0o644).u32(0).u32(0)
      socket.write(entry.u64(0).u64(0).u32(1).str('x').str('').finish())
    })
    const sent: WeakRef<Uint8Array>[] = []
    let alive = 0
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        if (sent.length === 200) {
          await new Promise((resolve) => setTimeout(resolve, 1))
          Bun.gc(true)
          alive = sent.filter((chunk) => chunk.deref() !== undefined).length
          return controller.close()
        }
        await new Promise((resolve) => setImmediate(resolve))
        const chunk = new Uint8Array(10_000)
        sent.push(new WeakRef(chunk))
        controller.enqueue(chunk)
      },
    })
    await client.files.write('/x', body)
    expect(alive).toBeLessThan(50)
  })

  test('a guest that takes nothing of a write is not sent more than its socket holds', async () => {
    client = open({ stallMsMax: 100 })
    played.play((frame, socket) => {
      if (frame.type === FrameType.write) socket.pause()
    })
    let pulled = 0
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        pulled += 4_000
        controller.enqueue(new Uint8Array(4_000))
      },
    })
    expect(await codeOf(client.files.write('/x', body))).toBe('gateway_timeout')
    expect(pulled).toBeLessThan(4_000_000)
  })

  test('paths that mean nothing are refused before they are sent', async () => {
    for (const path of ['', 'relative', '/a\0b', `/${'x'.repeat(5_000)}`]) {
      expect(await codeOf(client.files.stat(path))).toBe('bad_request')
    }
    expect(await codeOf(client.files.setMode('/x', 0o10000))).toBe('bad_request')
    expect(await codeOf(client.files.read('/x', { offset: -1 }))).toBe('bad_request')
    expect(played.sockets.length).toBe(0)
  })
})
