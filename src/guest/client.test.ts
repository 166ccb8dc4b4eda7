import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { SpawnSpec } from '../spec/guest.ts'
import { FrameType, framePayloadBytesMax } from './frame.ts'
import { GuestClient } from './index.ts'
import { codeOf, end, ok, PlayedGuest, processFrame, spawned, writer } from './test-played-guest.ts'

/** The client against a guest that is played by the test, and that lies. */

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

const spec = (id: number, more: Partial<SpawnSpec> = {}): SpawnSpec => ({
  id,
  argv: ['program'],
  env: {},
  workingDir: '/',
  stdin: 'null',
  ...more,
})

describe('a guest that does not do its part', () => {
  test('and answers nothing: the request fails in time, the next one gets a new connection', async () => {
    client = open({ requestTimeoutMs: 2_000 })
    let silent = true
    played.play((frame, socket) => {
      if (frame.type === FrameType.signal && !silent) socket.write(ok(frame.id))
    })
    expect(await codeOf(client.processes.signal(1, 15, 'process'))).toBe('gateway_timeout')
    silent = false
    expect(await codeOf(client.processes.signal(1, 15, 'process'))).toBe('')
    expect(played.sockets.length).toBe(2)
  })

  test('and does not greet: connecting fails in time', async () => {
    played.deaf = true
    const { Connection } = await import('./connection.ts')
    const handler = { onFrame() {}, onClose() {} }
    const opening = Connection.open({ path: played.socketPath, role: 'control', timeoutMs: 50 }, handler)
    expect(await codeOf(opening)).toBe('unavailable')
  })

  test('while it is frozen: nothing times out, and it answers afterwards', async () => {
    client = open({ requestTimeoutMs: 2_000 })
    played.play((frame, socket) => void socket.write(ok(frame.id)))
    await client.open()
    client.suspend()
    const signalling = codeOf(client.processes.signal(1, 15, 'process'))
    await new Promise((resolve) => setTimeout(resolve, 2_200))
    client.resume()
    expect(await signalling).toBe('')
  })

  test('and answers with nonsense: that request fails and the connection is closed', async () => {
    played.play((_, socket) => socket.write(Buffer.from('HTTP/1.1 200 OK\r\n\r\n')))
    expect(await codeOf(client.processes.signal(1, 15, 'process'))).toBe('bad_gateway')
    expect(await codeOf(client.files.stat('/x'))).toBe('bad_gateway')
    await eventually(() => played.sockets.every((socket) => socket.destroyed))
  })

  test('and answers with another type: the files operation fails and its connection is not used again', async () => {
    played.play((frame, socket) => {
      if (frame.type === FrameType.stat) socket.write(end())
    })
    expect(await codeOf(client.files.stat('/x'))).toBe('bad_gateway')
    await eventually(() => played.sockets[0]?.destroyed === true)
  })

  test('and speaks of processes that nobody started: they are not remembered, and a flood ends the connection', async () => {
    played.play(() => {})
    await client.open()
    const [socket] = played.sockets
    const heard: number[] = []
    client.processes.onExit(({ id }) => heard.push(id))
    for (let id = 1; id <= 1_000; id++) socket?.write(processFrame(FrameType.exit, id, 2))
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(socket?.destroyed).toBe(false)
    for (let id = 1; id <= 1_000; id++) socket?.write(processFrame(FrameType.exit, id, 2))
    await eventually(() => socket?.destroyed === true)
    expect(heard).toEqual([])
  })

  test('and lists more processes than it may hold: the list fails', async () => {
    played.onFrame = (frame, socket) => {
      if (frame.type !== FrameType.list) return
      for (let id = 1; id <= 4_097; id++)
        socket.write(processFrame(FrameType.item, id, 1, { frameId: frame.id }))
      socket.write(end(frame.id))
    }
    expect(await codeOf(client.processes.list())).toBe('bad_gateway')
  })

  test('and sends more of a file than was asked for: the read fails', async () => {
    const entry = writer(FrameType.entryOk)
    entry.u8('f'.charCodeAt(0)).u32(0o644).u32(0).u32(0).u64(10).u64(0).u32(1).str('x').str('')
    played.play((frame, socket) => {
      if (frame.type !== FrameType.read) return
      socket.write(
        Buffer.concat([entry.finish(), writer(FrameType.data).raw(new Uint8Array(20)).finish(), end()]),
      )
    })
    expect(await codeOf(client.files.read('/x', { offset: 0, length: 10 }))).toBe('bad_gateway')
  })

  test('and stops in the middle of a file: the read fails in time', async () => {
    client = open({ stallMsMax: 100 })
    const entry = writer(FrameType.entryOk)
    entry.u8('f'.charCodeAt(0)).u32(0o644).u32(0).u32(0).u64(10).u64(0).u32(1).str('x').str('')
    played.play((frame, socket) => {
      if (frame.type !== FrameType.read) return
      const whole = writer(FrameType.data).raw(new Uint8Array(10)).finish()
      socket.write(Buffer.concat([entry.finish(), whole.subarray(0, -3)]))
    })
    const { body } = await client.files.read('/x')
    expect(await codeOf(new Response(body).arrayBuffer())).toBe('gateway_timeout')
  })

  test('and says that it handed over a file, and did not: opening it fails, and nothing is left open', async () => {
    const entry = writer(FrameType.entryOk)
    entry.u8('f'.charCodeAt(0)).u32(0o644).u32(0).u32(0).u64(10).u64(0).u32(1).str('x').str('')
    played.play((frame, socket) => {
      if (frame.type === FrameType.open)
        socket.write(Buffer.concat([entry.finish(), writer(FrameType.opened).finish()]))
    })
    const openBefore = readdirSync('/proc/self/fd').length
    for (let round = 0; round < 100; round++)
      expect(await codeOf(client.files.open('/x'))).toBe('bad_gateway')
    await eventually(() => played.sockets.every((socket) => socket.destroyed))
    await eventually(() => readdirSync('/proc/self/fd').length <= openBefore)
  })

  test('and pings without reading: the connection ends', async () => {
    played.play(() => {})
    await client.open()
    const [socket] = played.sockets
    socket?.pause()
    const pings = Buffer.concat(Array.from({ length: 10_000 }, () => writer(FrameType.ping).finish()))
    const flood = setInterval(() => socket?.write(pings), 1)
    await eventually(() => socket?.destroyed === true)
    clearInterval(flood)
  })
})

describe('processes', () => {
  test('an exit in the same breath as the start is not missed', async () => {
    played.play((frame, socket) => {
      if (frame.type !== FrameType.spawn) return
      socket.write(Buffer.concat([spawned(frame.id), processFrame(FrameType.exit, frame.id, 2, { code: 3 })]))
    })
    const heard: number[] = []
    client.processes.onExit(({ id }) => heard.push(id))
    await client.processes.spawn(spec(5))
    expect(await client.processes.wait(5)).toMatchObject({ running: false, exitCode: 3, signal: null })
    expect(heard).toEqual([5])
  })

  test('who waits is told over a lost connection', async () => {
    let ended = false
    played.onFrame = (frame, socket) => {
      if (frame.type === FrameType.spawn) socket.write(spawned(frame.id))
      if (frame.type !== FrameType.list) return
      if (ended) socket.write(processFrame(FrameType.item, 5, 3, { code: 9, frameId: frame.id }))
      socket.write(end(frame.id))
    }
    await client.processes.spawn(spec(5))
    const waiting = client.processes.wait(5)
    ended = true
    played.sockets[0]?.destroy()
    expect(await waiting).toMatchObject({ running: false, exitCode: null, signal: 9 })
  })

  test('who waits for a process that a lost connection lost as well is told that', async () => {
    played.play((frame, socket) => {
      if (frame.type === FrameType.spawn) socket.write(spawned(frame.id))
    })
    await client.processes.spawn(spec(5))
    const waiting = codeOf(client.processes.wait(5))
    played.sockets[0]?.destroy()
    expect(await waiting).toBe('not_found')
  })

  test('a refusal carries what the guest said, without control characters', async () => {
    played.play((frame, socket) => {
      if (frame.type !== FrameType.spawn) return
      socket.write(writer(FrameType.error, frame.id).u32(2).str('exec: \u001b[31mno\nsuch file').finish())
    })
    const error = await client.processes.spawn(spec(5)).catch((error) => error)
    expect([error.code, error.message, error.details]).toEqual([
      'unprocessable',
      'cannot start "program": exec:  [31mno such file',
      { errno: 'ENOENT' },
    ])
  })

  test('what cannot be sent is refused before it is', async () => {
    played.play(() => {})
    for (const bad of [
      spec(0),
      spec(1, { argv: [] }),
      spec(1, { argv: ['a\0b'] }),
      spec(1, { env: { 'A=B': 'c' } }),
      spec(1, { env: { A: 'x\0y' } }),
      spec(1, { workingDir: '/\0' }),
      spec(1, { argv: ['x'.repeat(framePayloadBytesMax)] }),
      spec(1, { pty: { cols: 0, rows: 10 } }),
    ]) {
      expect(await codeOf(client.processes.spawn(bad))).toBe('bad_request')
    }
    expect(played.received.some(({ type }) => type === FrameType.spawn)).toBe(false)
  })

  test('stdin goes in pieces, one after the other, over a connection of its own', async () => {
    const sizes: number[] = []
    played.play((frame, socket) => {
      if (frame.type !== FrameType.stdin) return
      sizes.push(frame.payload.length)
      setTimeout(() => socket.write(ok(frame.id)), 1)
    })
    await Promise.all([
      client.processes.writeStdin(5, new Uint8Array(150_000)),
      client.processes.writeStdin(5, new Uint8Array(10)),
    ])
    expect(sizes).toEqual([65_536, 65_536, 18_928, 10])
  })

  test('who gives up on stdin takes back what was not sent, and leaves nothing for others to wait for', async () => {
    const sent: string[] = []
    const answers: (() => void)[] = []
    const begun = Promise.withResolvers<void>()
    played.play((frame, socket) => {
      if (frame.type === FrameType.hello) return
      sent.push(frame.type === FrameType.stdin ? Buffer.from(frame.payload).toString() : 'end')
      answers.push(() => socket.write(ok(frame.id)))
      begun.resolve()
      if (sent.length > 1) answers.at(-1)?.()
    })
    const late = new AbortController()
    const write = (text: string, signal?: AbortSignal) =>
      client.processes.writeStdin(5, Buffer.from(text), signal)
    const givenUp = [codeOf(write('first', late.signal)), codeOf(write('second', late.signal))]
    await begun.promise
    const kept = write('third')
    late.abort(new PlatformError('unavailable', 'it does not read'))
    expect(await Promise.all(givenUp)).toEqual(['unavailable', 'unavailable'])
    const ended = client.processes.closeStdin(5)
    answers[0]?.()
    await kept
    await ended
    expect(sent).toEqual(['first', 'third', 'end'])
  })

  test('what waits for an answer is bounded in bytes, and there is room again after the answers', async () => {
    const answers: (() => void)[] = []
    let answering = false
    played.play((frame, socket) => {
      if (frame.type !== FrameType.stdin) return
      const answer = () => socket.write(ok(frame.id))
      if (answering) answer()
      else answers.push(answer)
    })
    const part = new Uint8Array(65_536)
    const writes = Array.from({ length: 600 }, (_, index) =>
      codeOf(client.processes.writeStdin(index + 1, part)),
    )
    expect(await writes.at(-1)).toBe('too_many_requests')
    answering = true
    for (const answer of answers) answer()
    const codes = await Promise.all(writes)
    const bytes = codes.filter((code) => code === '').length * part.length
    expect(bytes).toBeGreaterThan(16 * 1024 * 1024)
    expect(bytes).toBeLessThanOrEqual(32 * 1024 * 1024)
    expect(await codeOf(client.processes.writeStdin(1, part))).toBe('')
  })

  test('closing ends whoever waits', async () => {
    const { PlatformError } = await import('../errors.ts')
    played.play((frame, socket) => {
      if (frame.type === FrameType.spawn) socket.write(spawned(frame.id))
    })
    await client.processes.spawn(spec(5))
    const waiting = codeOf(client.processes.wait(5))
    const signalling = codeOf(client.processes.signal(5, 15, 'process'))
    client.close(new PlatformError('unavailable', 'The sandbox ended'))
    expect(await Promise.all([waiting, signalling])).toEqual(['unavailable', 'unavailable'])
    expect(await codeOf(client.processes.list())).toBe('unavailable')
    expect(await codeOf(client.files.stat('/x'))).toBe('unavailable')
  })
})
