import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import { FrameType } from './frame.ts'
import { KeeperChannel } from './index.ts'
import { ok, PlayedGuest, writer } from './test-played-guest.ts'

/** The channel to a keeper, which is played by the test. */

let played: PlayedGuest
beforeEach(async () => {
  played = await PlayedGuest.open()
})
afterEach(() => played.close())

describe('the keeper', () => {
  const keeperOf = (onEnd: (state: unknown) => void) =>
    new KeeperChannel({ socketPath: played.socketPath, log: silentLogger, onEnd })
  const guestState = (id: number, state: number, code: number) =>
    writer(FrameType.guest, id).u8(state).u32(code).finish()

  test('is asked for a port once', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
      if (frame.type === FrameType.listen) socket.write(ok(frame.id))
    }
    const keeper = keeperOf(() => {})
    await Promise.all([keeper.listen(80), keeper.listen(80), keeper.listen(81)])
    await keeper.listen(80)
    expect(played.received.filter(({ type }) => type === FrameType.listen).length).toBe(2)
  })

  test('of an earlier version is asked once for a socket that it cannot hand over', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
      if (frame.type === FrameType.listen) socket.write(ok(frame.id))
      if (frame.type === FrameType.reach) socket.destroy()
    }
    const keeper = keeperOf(() => {})
    expect([await keeper.reach(80), await keeper.reach(80)]).toEqual([null, null])
    expect(played.received.filter(({ type }) => type === FrameType.reach).length).toBe(1)
    await keeper.listen(80)
    expect(keeper.listen(80)).toBe(null)
    keeper.close(new PlatformError('unavailable', 'over'))
  })

  test('of an earlier version has no way out, and is asked for one where nothing else is lost with that', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
      if (frame.type === FrameType.depart) socket.destroy()
    }
    let ends = 0
    const keeper = keeperOf(() => ends++)
    await keeper.open()
    const opened = played.received.filter(({ type }) => type === FrameType.status).length
    for (let attempt = 0; attempt < 2; attempt++) {
      const failure = await keeper.depart(Uint8Array.of(8, 8, 8, 8), 80).catch((error) => error)
      expect(PlatformError.is(failure) && failure.code).toBe('unavailable')
    }
    expect(await keeper.open()).toMatchObject({ state: 'running' })
    expect(played.received.filter(({ type }) => type === FrameType.status).length).toBe(opened)
    expect(ends).toBe(0)
    keeper.close(new PlatformError('unavailable', 'over'))
  })

  test('that says it handed a socket over, and did not, is believed no further', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
      if (frame.type === FrameType.reach || frame.type === FrameType.depart) socket.write(ok(frame.id))
    }
    const keeper = keeperOf(() => {})
    expect(await keeper.reach(80)).toBe(null)
    const failure = await keeper.depart(Uint8Array.of(8, 8, 8, 8), 80).catch((error) => error)
    expect(PlatformError.is(failure) && failure.code).toBe('unavailable')
    keeper.close(new PlatformError('unavailable', 'over'))
  })

  test('is asked what process 1 does right behind the greeting, at every connect', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
      if (frame.type === FrameType.listen) socket.write(ok(frame.id))
    }
    const keeper = keeperOf(() => {})
    await keeper.open()
    played.sockets[0]?.destroy()
    await eventually(() => played.sockets.length === 2 && played.received.length === 4)
    const { hello, status } = FrameType
    expect(played.received.map(({ type }) => type)).toEqual([hello, status, hello, status])
    keeper.close(new PlatformError('unavailable', 'over'))
  })

  test('an end that came while nobody was connected is told at the next connect', async () => {
    let state = 1
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, state, 7))
    }
    const ends: unknown[] = []
    await keeperOf((end) => ends.push(end)).open()
    state = 2
    played.sockets[0]?.destroy()
    await eventually(() => ends.length > 0)
    expect(ends).toEqual([{ state: 'exited', code: 7 }])
  })

  test('tells the end of process 1 once', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
    }
    const ends: unknown[] = []
    const keeper = keeperOf((state) => ends.push(state))
    expect(await keeper.open()).toEqual({ state: 'running', code: 0 })
    played.sockets[0]?.write(guestState(0, 3, 9))
    played.sockets[0]?.end(guestState(0, 3, 9))
    await eventually(() => ends.length > 0)
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect(ends).toEqual([{ state: 'signaled', code: 9 }])
  })

  test('that is gone without a word is an end, too', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.status) socket.write(guestState(frame.id, 1, 0))
    }
    const ends: unknown[] = []
    await keeperOf((state) => ends.push(state)).open()
    await played.vanish()
    await eventually(() => ends.length > 0)
    expect(ends).toEqual([null])
  })
})
