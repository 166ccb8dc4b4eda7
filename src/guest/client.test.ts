import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { type SpawnSpec, watchesMax } from '../spec/guest.ts'
import {
  type Frame,
  FrameReader,
  FrameType,
  FrameWriter,
  framePayloadBytesMax,
  protocolVersion,
} from './frame.ts'
import { GuestClient, KeeperChannel } from './index.ts'

/** The client against a guest that is played by the test, and that lies. */

const anyFrames = Object.fromEntries(Object.values(FrameType).map((type) => [type, framePayloadBytesMax]))
const writer = (type: FrameType, id = 0) => new FrameWriter(type, id)
const ok = (id: number) => writer(FrameType.ok, id).finish()
const helloOk = writer(FrameType.helloOk).u32(protocolVersion).u64(1).finish()
const errorFrame = (id: number, errno: number) => writer(FrameType.error, id).u32(errno).str('why').finish()
const processFrame = (
  type: FrameType,
  id: number,
  state: number,
  more: { code?: number; frameId?: number } = {},
) =>
  writer(type, more.frameId ?? id)
    .u32(id)
    .u32(100 + id)
    .u8(state)
    .u32(more.code ?? 0)
    .u64(1_000)
    .u64(state === 1 ? 0 : 2_000)
    .u64(0)
    .finish()
const spawned = (id: number) =>
  writer(FrameType.spawned, id)
    .u32(100 + id)
    .u64(1_000)
    .finish()
const end = (id = 0) => writer(FrameType.end, id).finish()

interface PlayedGuest {
  onFrame: (frame: Frame, socket: Socket) => void
  sockets: Socket[]
  received: Frame[]
}

let dir: string
let server: Server
let played: PlayedGuest
let client: GuestClient

/** Greets, lists nothing, and leaves the rest to `onFrame`. */
beforeEach(async () => {
  dir = mkdtempSync(`${tmpdir()}/hutch-client-`)
  mkdirSync(`${dir}/log`)
  played = { onFrame: () => {}, sockets: [], received: [] }
  server = createServer((socket) => {
    played.sockets.push(socket)
    const reader = new FrameReader(anyFrames)
    socket.on('error', () => {})
    socket.on('data', (chunk: Uint8Array) => {
      for (const frame of reader.push(chunk)) {
        played.received.push({ ...frame, payload: frame.payload.slice() })
        if (frame.type === FrameType.hello) socket.write(helloOk)
        played.onFrame(frame, socket)
      }
    })
  })
  await new Promise<void>((resolve) => server.listen(`${dir}/guest.sock`, resolve))
  client = open()
})
afterEach(async () => {
  const { PlatformError } = await import('../errors.ts')
  client.close(new PlatformError('unavailable', 'closed'))
  for (const socket of played.sockets) socket.destroy()
  await new Promise((resolve) => server.close(resolve))
  rmSync(dir, { recursive: true, force: true })
})

function open(more: Partial<ConstructorParameters<typeof GuestClient>[0]> = {}) {
  const options = { socketPath: `${dir}/guest.sock`, logDir: `${dir}/log`, log: silentLogger }
  return new GuestClient({ ...options, requestTimeoutMs: 60_000, stallMsMax: 60_000, ...more })
}

/** Answers LIST with nothing, everything else by `serve`. */
function play(serve: (frame: Frame, socket: Socket) => void) {
  played.onFrame = (frame, socket) => {
    if (frame.type === FrameType.list) socket.write(end(frame.id))
    else serve(frame, socket)
  }
}

const spec = (id: number, more: Partial<SpawnSpec> = {}): SpawnSpec => ({
  id,
  argv: ['program'],
  env: {},
  workingDir: '/',
  stdin: 'null',
  ...more,
})

async function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => '',
    (error) => error.code,
  )
}

describe('a guest that does not do its part', () => {
  test('and answers nothing: the request fails in time, the next one gets a new connection', async () => {
    client = open({ requestTimeoutMs: 2_000 })
    let silent = true
    play((frame, socket) => {
      if (frame.type === FrameType.signal && !silent) socket.write(ok(frame.id))
    })
    expect(await codeOf(client.processes.signal(1, 15, 'process'))).toBe('gateway_timeout')
    silent = false
    expect(await codeOf(client.processes.signal(1, 15, 'process'))).toBe('')
    expect(played.sockets.length).toBe(2)
  })

  test('and does not greet: connecting fails in time', async () => {
    server.removeAllListeners('connection')
    server.on('connection', (socket) => played.sockets.push(socket))
    const { Connection } = await import('./connection.ts')
    const handler = { onFrame() {}, onClose() {} }
    const opening = Connection.open({ path: `${dir}/guest.sock`, role: 'control', timeoutMs: 50 }, handler)
    expect(await codeOf(opening)).toBe('unavailable')
  })

  test('while it is frozen: nothing times out, and it answers afterwards', async () => {
    client = open({ requestTimeoutMs: 2_000 })
    play((frame, socket) => void socket.write(ok(frame.id)))
    await client.open()
    client.suspend()
    const signalling = codeOf(client.processes.signal(1, 15, 'process'))
    await new Promise((resolve) => setTimeout(resolve, 2_200))
    client.resume()
    expect(await signalling).toBe('')
  })

  test('and answers with nonsense: that request fails and the connection is closed', async () => {
    play((_, socket) => socket.write(Buffer.from('HTTP/1.1 200 OK\r\n\r\n')))
    expect(await codeOf(client.processes.signal(1, 15, 'process'))).toBe('bad_gateway')
    expect(await codeOf(client.files.stat('/x'))).toBe('bad_gateway')
    await eventually(() => played.sockets.every((socket) => socket.destroyed))
  })

  test('and answers with another type: the files operation fails and its connection is not used again', async () => {
    play((frame, socket) => {
      if (frame.type === FrameType.stat) socket.write(end())
    })
    expect(await codeOf(client.files.stat('/x'))).toBe('bad_gateway')
    await eventually(() => played.sockets[0]?.destroyed === true)
  })

  test('and speaks of processes that nobody started: they are not remembered, and a flood ends the connection', async () => {
    play(() => {})
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
    play((frame, socket) => {
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
    play((frame, socket) => {
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
    play((frame, socket) => {
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
    play(() => {})
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
    play((frame, socket) => {
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
    play((frame, socket) => {
      if (frame.type === FrameType.spawn) socket.write(spawned(frame.id))
    })
    await client.processes.spawn(spec(5))
    const waiting = codeOf(client.processes.wait(5))
    played.sockets[0]?.destroy()
    expect(await waiting).toBe('not_found')
  })

  test('a refusal carries what the guest said, without control characters', async () => {
    play((frame, socket) => {
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
    play(() => {})
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
    play((frame, socket) => {
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
    play((frame, socket) => {
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
    play((frame, socket) => {
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
    play((frame, socket) => {
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

describe('files', () => {
  test('a move that overwrites nothing is refused by the kernel, not after a look: something may come in between', async () => {
    play((frame, socket) => {
      if (frame.type === FrameType.stat) socket.write(errorFrame(frame.id, 2))
      if (frame.type === FrameType.rename) socket.write(ok(frame.id))
      if (frame.type === FrameType.renameNew) socket.write(errorFrame(frame.id, 17))
    })
    expect(await codeOf(client.files.move('/a', '/b', { exclusive: true }))).toBe('already_exists')
    expect(await codeOf(client.files.move('/a', '/b'))).toBe('')
  })

  test('an idle connection is closed, so that an idle sandbox has no worker', async () => {
    client = open({ idleMsMax: 20 })
    play((frame, socket) => {
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
    play((frame, socket) => {
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
      play((frame, socket) => {
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
    play((frame, socket) => {
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
      play((frame, socket) => {
        if (frame.type === FrameType.watch) socket.write(errorFrame(frame.id, errno))
      })
      const refusal = await refusalOf(client.files.watch('/x'))
      expect(refusal.code).toBe('too_many_requests')
      expect(refusal.message).toContain(`fs.inotify.${setting}`)
    }
  })

  test('a refusal in the middle of a write ends it, without the rest being sent', async () => {
    play((frame, socket) => {
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
      play((frame, socket) => {
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
    play((frame, socket) => {
      // The test itself would keep it.
      played.received = []
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
    play((frame, socket) => {
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

describe('the keeper', () => {
  const keeperOf = (onEnd: (state: unknown) => void) =>
    new KeeperChannel({ socketPath: `${dir}/guest.sock`, log: silentLogger, onEnd })
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
    server.close()
    rmSync(`${dir}/guest.sock`, { force: true })
    played.sockets[0]?.destroy()
    await eventually(() => ends.length > 0)
    expect(ends).toEqual([null])
  })
})
