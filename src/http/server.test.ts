import { afterAll, beforeAll, expect, test } from 'bun:test'
import { connect } from 'node:net'
import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import { hasIpv6 } from '../lib/test-ports.ts'
import { route } from './route.ts'
import { type HttpServer, loopbackHosts, startServer } from './server.ts'
import { TestPlatform } from './testing/test-platform.ts'

let platform: TestPlatform
let server: HttpServer
beforeAll(async () => {
  const shared = { errors: 'control', access: 'public', tag: 'samples', summary: 'A sample' } as const
  platform = await TestPlatform.open({
    routes: [
      route({
        ...shared,
        method: 'POST',
        path: '/sample/count',
        async handle({ request }) {
          let bytes = 0
          for await (const chunk of request.body ?? []) bytes += chunk.length
          return { bytes }
        },
      }),
      route({
        ...shared,
        method: 'POST',
        path: '/sample/small',
        body: z.object({ text: z.string() }),
        handle: () => ({}),
      }),
      route({
        ...shared,
        method: 'GET',
        path: '/sample/quiet',
        handle: () =>
          new Response(
            new ReadableStream({
              async start(controller) {
                controller.enqueue('first')
                await Bun.sleep(20)
                controller.enqueue('last')
                controller.close()
              },
            }),
          ),
      }),
    ],
  })
  server = startServer({ app: platform.app, port: 0, log: platform.log })
})
afterAll(async () => {
  await server.stop()
  await platform[Symbol.asyncDispose]()
})

for (const host of loopbackHosts) {
  const run = hasIpv6 || !host.includes(':') ? test : test.skip
  run(`${host} is served, on the same port as other loopback addresses, where the host has it`, async () => {
    const authority = host.includes(':') ? `[${host}]` : host
    expect((await fetch(`http://${authority}:${server.port}/healthz`)).status).toBe(200)
  })
}

test('a taken port is named', () => {
  const attempt = () => startServer({ app: platform.app, port: server.port, log: platform.log })
  expect(attempt).toThrow(PlatformError)
  expect(attempt).toThrow(`Port ${server.port} on 127.0.0.1 is taken`)
})

test('a Host that is not ours gets 421 over the wire, and no Host at all 400', async () => {
  expect(
    await exchange('GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n'),
  ).toStartWith('HTTP/1.1 421')
  expect(await exchange('GET /healthz HTTP/1.0\r\n\r\n')).toMatch(/^HTTP\/1\.[01] 400/)
})

test('CONNECT and TRACE are refused', async () => {
  const host = `Host: localhost:${server.port}\r\nConnection: close\r\n\r\n`
  expect(await exchange(`TRACE /healthz HTTP/1.1\r\n${host}`)).toStartWith('HTTP/1.1 405')
  expect(await exchange(`CONNECT example.com:443 HTTP/1.1\r\n${host}`)).toMatch(/^HTTP\/1\.1 4\d\d/)
})

test('a large body streams to its reader, a large JSON body is cut short', async () => {
  const body = new Uint8Array(10 * 1024 * 1024).fill(0x20)
  const counted = await fetch(`${server.url}/sample/count`, { method: 'POST', body })
  expect(await counted.json()).toEqual({ bytes: body.length })
  const refused = await fetch(`${server.url}/sample/small`, { method: 'POST', body })
  expect(refused.status).toBe(413)
  expect(await (await fetch(`${server.url}/healthz`)).json()).toEqual({ status: 'ok' })
})

test('a stream may pause', async () => {
  expect(await (await fetch(`${server.url}/sample/quiet`)).text()).toBe('firstlast')
})

test('a WebSocket is taken over with a token in its query, and refused without', async () => {
  const url = `ws://127.0.0.1:${server.port}/main/sandboxes/box/terminal/ws`
  const socket = new WebSocket(`${url}?token=${platform.adminKey}`)
  const messages: unknown[] = []
  const echoed = Promise.withResolvers<void>()
  socket.onmessage = ({ data }) => {
    messages.push(data)
    if (messages.length === 1) socket.send('echo')
    else echoed.resolve()
  }
  await echoed.promise
  expect(messages).toEqual(['hello', 'echo'])
  socket.close()
  const refused = new WebSocket(url)
  expect(await new Promise((resolve) => (refused.onerror = () => resolve('refused')))).toBe('refused')
  const plain = await fetch(`${url.replace('ws:', 'http:')}?token=${platform.adminKey}`)
  expect(plain.status).toBe(400)
})

test('a stopped server lets its port go', async () => {
  const first = startServer({ app: platform.app, port: 0, log: platform.log })
  expect((await fetch(`${first.url}/healthz`)).status).toBe(200)
  await first.stop(1000)
  await using second = startServer({ app: platform.app, port: first.port, log: platform.log })
  expect((await fetch(`${second.url}/healthz`)).status).toBe(200)
})

function exchange(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(server.port, '127.0.0.1', () => socket.write(text))
    let received = ''
    socket.on('data', (data) => {
      received += String(data)
    })
    socket.on('close', () => resolve(received))
    socket.on('error', reject)
  })
}

for (const afterMs of [0, 20]) {
  test(`a body that breaks off after ${afterMs} ms ends the connection and prints nothing past the logger`, async () => {
    const program = `
      import { onceEnded } from ${JSON.stringify(`${import.meta.dir}/run/bodies.ts`)}
      import { startServer } from ${JSON.stringify(`${import.meta.dir}/server.ts`)}
      const log = { debug() {}, info() {}, warn() {}, error() {} }
      const broken = () => new ReadableStream({
        start(controller) { controller.enqueue(new Uint8Array(10)) },
        async pull(controller) {
          if (${afterMs} > 0) await Bun.sleep(${afterMs})
          controller.error(new Error('GET /x?key=the-secret broke off'))
        },
      })
      const options = { freeing: true, passed: undefined }
      const app = { fetch: async () => new Response(onceEnded(broken().getReader(), () => {}, options)) }
      const server = startServer({ app, port: 0, hosts: ['127.0.0.1'], log })
      console.log(await fetch(server.url).then((answer) => answer.text()).catch(() => 'broken'))
      await server.stop()`
    const child = Bun.spawn([process.execPath, '-e', program], { stdout: 'pipe', stderr: 'pipe' })
    const [out, err] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ])
    expect(out.trim()).toBe('broken')
    expect(err).toBe('')
  })
}
