import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually } from '../test-eventually.ts'
import { BadAnswer } from './answer-head.ts'
import { BrokenConnection, type Call } from './call.ts'
import { Connections, type SendOptions } from './connections.ts'
import { testCertificate } from './test-certificate.ts'

/** A server of one's own words: what each connection said, and what is answered. */
let dir: string
let server: Server | null = null
let said: string[] = []
let sockets: Socket[] = []
const unix = () => join(dir, 'server')

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-http1-'))
})

afterEach(async () => {
  for (const socket of sockets) socket.destroy()
  await new Promise((resolve) => (server === null ? resolve(null) : server.close(resolve)))
  server = null
  rmSync(unix(), { force: true })
})

afterAll(() => rmSync(dir, { recursive: true, force: true }))

/** `heard` is called with all that a connection said so far, as often as it says something. */
async function serve(heard: (socket: Socket, text: string, index: number) => void): Promise<void> {
  said = []
  sockets = []
  connections = new Connections()
  server = createServer((socket) => {
    const index = sockets.push(socket) - 1
    said[index] = ''
    socket.on('error', () => {})
    socket.on('data', (bytes) => {
      said[index] += bytes.toString('latin1')
      heard(socket, said[index] ?? '', index)
    })
  })
  await new Promise<void>((resolve) => server?.listen(unix(), resolve))
}

/** Of the test: nothing of one is left to the next. */
let connections = new Connections()
const hello = 'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi'
const get = 'GET / HTTP/1.1\r\nhost: a\r\n\r\n'

function send(options: SendOptions = {}): Call {
  return connections.send(
    { origin: 'http://a', unix: unix() },
    { method: 'GET', head: get, body: null, bodyBytes: null },
    options,
  )
}

function post(body: ReadableStream<Uint8Array>, bodyBytes: number | null): Call {
  const told = bodyBytes === null ? 'transfer-encoding: chunked' : `content-length: ${bodyBytes}`
  const head = `POST / HTTP/1.1\r\nhost: a\r\n${told}\r\n\r\n`
  return connections.send({ origin: 'http://a', unix: unix() }, { method: 'POST', head, body, bodyBytes })
}

async function textOf(call: Call): Promise<string> {
  await call.answered
  return Buffer.from(await call.bytes()).toString('latin1')
}

function ended(socket: Socket | undefined): Promise<unknown> {
  return eventually('the connection ends', () => socket?.destroyed || socket?.readableEnded)
}

async function failureOf(work: Promise<unknown>): Promise<unknown> {
  try {
    await work
  } catch (error) {
    return error
  }
  throw new Error('nothing was thrown')
}

test('a connection is used for one request after the other', async () => {
  await serve((socket) => socket.write(hello))
  for (let count = 1; count <= 3; count++) expect(await textOf(send())).toBe('hi')
  expect(said).toEqual([get.repeat(3)])
})

test('requests at once have a connection each', async () => {
  await serve(() => {
    if (said.every((text) => text !== '') && said.length === 2) for (const each of sockets) each.write(hello)
  })
  expect(await Promise.all([textOf(send()), textOf(send())])).toEqual(['hi', 'hi'])
})

test('one is not used again that its server ends, says more on than it was asked, or that was quiet for too long', async () => {
  const answers = [
    hello.replace('OK\r\n', 'OK\r\nconnection: close\r\n'),
    `${hello}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil`,
    hello,
  ]
  await serve((socket, _, index) => socket.write(answers[index] ?? hello))
  for (let count = 1; count <= 3; count++) expect(await textOf(send())).toBe('hi')
  expect(await textOf(send({ quietMsMax: 0 }))).toBe('hi')
  expect(await textOf(send({ fresh: true }))).toBe('hi')
  expect(said.length).toBe(5)
})

test('what an unused connection says ends it', async () => {
  await serve((socket) => socket.write(hello))
  await textOf(send())
  const [first] = sockets
  first?.write('HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil')
  await ended(first)
  expect(await textOf(send())).toBe('hi')
  expect(said.length).toBe(2)
})

test('an answer that its reader is slow to take waits, and comes whole though its server is gone', async () => {
  const sent = crypto.getRandomValues(new Uint8Array(60_000))
  const times = 200
  let written = 0
  await serve((socket) => {
    socket.write('HTTP/1.1 200 OK\r\n\r\n')
    const more = () => {
      while (written < times) {
        written++
        if (!socket.write(sent)) return
      }
      socket.end()
    }
    socket.on('drain', more)
    more()
  })
  const call = send()
  await call.answered
  // It gets no further than the buffers on the way.
  let before = -1
  await eventually('it stops', () => {
    const still = before === written
    before = written
    return still && written > 0
  })
  expect(written).toBeLessThan(times)
  const hash = new Bun.CryptoHasher('sha1')
  let bytes = 0
  for (let piece = await call.read(); !piece.done; piece = await call.read()) {
    hash.update(piece.value)
    bytes += piece.value.byteLength
    await new Promise((resolve) => setImmediate(resolve))
  }
  const whole = new Bun.CryptoHasher('sha1')
  for (let count = 0; count < times; count++) whole.update(sent)
  expect([bytes, hash.digest('hex')]).toEqual([sent.byteLength * times, whole.digest('hex')])
})

test('a body is sent in chunks, or as long as it was said to be', async () => {
  await serve((socket, text) => {
    if (text.endsWith('0\r\n\r\n') || text.endsWith('\r\n\r\nhello')) socket.write(hello)
  })
  const words = () =>
    new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(Buffer.from('he'))
        controller.enqueue(Buffer.from('llo'))
        controller.close()
      },
    })
  expect(await textOf(post(words(), null))).toBe('hi')
  expect(await textOf(post(words(), 5))).toBe('hi')
  const [first = ''] = said
  expect(first).toContain('\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\nPOST')
  expect(first).toEndWith('content-length: 5\r\n\r\nhello')
})

for (const [what, length] of [
  ['longer', 4],
  ['shorter', 6],
] as const) {
  test(`a body that is ${what} than it said ends its connection`, async () => {
    await serve(() => {})
    const body = new Blob(['hello']).stream()
    expect(String(await failureOf(post(body, length).answered))).toContain('not as long as it said')
    await ended(sockets[0])
  })
}

test('a large body goes as fast as it is taken', async () => {
  let received = 0
  const whole = 8_000_000
  await serve((socket, text) => {
    received = text.length
    if (received >= whole) socket.end(hello)
  })
  const chunk = new Uint8Array(100_000)
  let given = 0
  const body = new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        given += chunk.byteLength
        controller.enqueue(chunk)
        if (given >= whole) controller.close()
      },
    },
    { highWaterMark: 0 },
  )
  expect(await textOf(post(body, whole))).toBe('hi')
  expect([given, received > whole]).toEqual([whole, true])
})

test('a body that is not wanted to its end is not sent to its end', async () => {
  await serve((socket) => socket.write(hello))
  let cancelled = false
  const endless = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new Uint8Array(1000)),
    cancel() {
      cancelled = true
    },
  })
  expect(await textOf(post(endless, null))).toBe('hi')
  await eventually('it is cancelled', () => cancelled)
  await ended(sockets[0])
})

test('who gives up ends the connection, before the answer as after', async () => {
  await serve((socket, text) => {
    if (text.split('GET').length === 2) socket.write('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi')
  })
  const reading = send()
  await reading.answered
  expect(Buffer.from((await reading.read()).value ?? []).toString()).toBe('hi')
  const rest = failureOf(reading.read())
  reading.abort(new Error('enough'))
  expect(String(await rest)).toBe('Error: enough')
  await ended(sockets[0])
  const waiting = send()
  waiting.abort(new Error('enough'))
  expect(String(await failureOf(waiting.answered))).toBe('Error: enough')
})

test('what breaks off is told, and so is what is no answer', async () => {
  await serve((socket, _, index) => {
    if (index === 0) socket.destroy()
    else if (index === 1) socket.end('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi')
    else socket.write('hello\r\n\r\n')
  })
  expect(String(await failureOf(send().answered))).toContain('the connection ended')
  const second = send()
  await second.answered
  expect(String(await failureOf(second.bytes()))).toContain('the connection ended')
  expect(await failureOf(send().answered)).toBeInstanceOf(BadAnswer)
  await ended(sockets[2])
})

test('where nobody listens, that is told', async () => {
  expect(String(await failureOf(send().answered))).toContain('no connection could be made')
})

test('a server may have a shorter way to itself, which is tried first', async () => {
  await serve((socket) => void socket.write(hello))
  let asked = 0
  const request = { method: 'GET', head: get, body: null, bodyBytes: null }
  const by = (connect: () => Promise<number | null>) =>
    connections.send({ origin: 'http://a', unix: unix(), connect }, request, { fresh: true })
  const none = async () => {
    asked++
    return null
  }
  expect(await textOf(by(none))).toBe('hi')
  const refused = async () => {
    asked++
    throw new Error('nobody there')
  }
  const failure = await failureOf(by(refused).answered)
  expect(failure).toBeInstanceOf(BrokenConnection)
  expect((failure as Error).cause).toEqual(new Error('nobody there'))
  expect([asked, sockets.length]).toEqual([2, 1])
})

test('a connection for once is not used again, whoever would keep it', async () => {
  await serve((socket) => void socket.write(hello))
  expect(await textOf(send({ once: true }))).toBe('hi')
  await ended(sockets[0])
  expect(await textOf(send())).toBe('hi')
  expect(await textOf(send({ once: true }))).toBe('hi')
  expect(await textOf(send())).toBe('hi')
  expect(said.map((text) => text.split('GET').length - 1)).toEqual([1, 2, 1])
})

describe('an encrypted connection', () => {
  let heard: string[] = []
  let secure: ReturnType<typeof Bun.listen> | null = null
  afterEach(() => secure?.stop(true))

  /** Answers whatever it understands. */
  const listen = () => {
    heard = []
    secure = Bun.listen({
      unix: unix(),
      tls: testCertificate,
      socket: {
        data: (socket, bytes) => {
          heard.push(bytes.toString('latin1'))
          socket.write(hello)
        },
      },
    })
  }
  const sendTo = (tlsName: string) =>
    connections.send(
      { origin: 'http://a', unix: unix(), tlsName },
      { method: 'GET', head: get, body: null, bodyBytes: null },
      { once: true },
    )

  test('is made to who has a certificate of that name, which somebody vouches for, and to nobody else', async () => {
    listen()
    const script = `
      const { Connections } = await import(${JSON.stringify(join(import.meta.dir, 'connections.ts'))})
      for (const tlsName of ['good.test', '127.0.0.1', 'bad.test', '127.0.0.2']) {
        const server = { origin: 'http://a', unix: ${JSON.stringify(unix())}, tlsName }
        const request = { method: 'GET', head: ${JSON.stringify(get)}, body: null, bodyBytes: null }
        const call = new Connections().send(server, request, { once: true })
        const said = await call.answered.then(async () => Buffer.from(await call.bytes()).toString(), (error) => error.message)
        console.log(tlsName, said)
      }`
    const certificate = join(dir, 'certificate.pem')
    await Bun.write(certificate, testCertificate.cert)
    const child = Bun.spawn([process.execPath, '-e', script], {
      env: { ...process.env, NODE_EXTRA_CA_CERTS: certificate },
      stdout: 'pipe',
      stderr: 'inherit',
    })
    const told = (await new Response(child.stdout).text()).trim().split('\n')
    const none = 'no connection could be made'
    expect(told).toEqual(['good.test hi', '127.0.0.1 hi', `bad.test ${none}`, `127.0.0.2 ${none}`])
    // Nothing was said to a stranger.
    expect(heard).toEqual([get, get])
    const stranger = await failureOf(sendTo('good.test').answered)
    expect(String((stranger as Error).cause)).toContain('self signed certificate')
    expect(heard).toEqual([get, get])
  })

  test('that is not answered in its own tongue is none', async () => {
    await serve((socket) => void socket.end(hello))
    expect(await failureOf(sendTo('good.test').answered)).toBeInstanceOf(BrokenConnection)
    await ended(sockets[0])
    expect(said[0]).not.toContain('GET')
  })

  test('is given up together with the request, also before anybody said who they are', async () => {
    const greeted = Promise.withResolvers<void>()
    await serve(() => greeted.resolve())
    const call = sendTo('good.test')
    await greeted.promise
    call.abort(new Error('enough'))
    expect(String(await failureOf(call.answered))).toBe('Error: enough')
    await ended(sockets[0])
  })
})
