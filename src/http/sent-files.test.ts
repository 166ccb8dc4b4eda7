import { afterEach, beforeEach, expect, test } from 'bun:test'
import {
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { OpenFile } from '../spec/guest.ts'
import { type HttpServer, startServer } from './server.ts'

/** More than the sockets of both sides take together, so that a client that does not read holds the file open. */
const largeBytes = 64 * 1024 * 1024

let dir: string
let path: string
let server: HttpServer
let revoked: boolean
let begun: number
let ended: number

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-sent-'))
  path = join(dir, 'f')
  revoked = false
  begun = 0
  ended = 0
  server = startServer({
    port: 0,
    hosts: ['127.0.0.1'],
    log: silentLogger,
    app: {
      async fetch(request, connection) {
        if (request.url.endsWith('/other')) return new Response('other')
        // The answer comes later than the request's own turn, as a file from a sandbox does.
        await new Promise((resolve) => setImmediate(resolve))
        begun++
        const headers = new Headers({ 'content-type': 'text/x-sent' })
        return connection!.sendFile!(openFile(), headers, () => ended++)
      },
    },
  })
})
afterEach(async () => {
  await server.stop()
  expect(openFiles()).toBe(0)
  expect(ended).toBe(begun)
  rmSync(dir, { recursive: true })
})

function openFile(): OpenFile {
  const descriptor = openSync(path, 'r')
  return {
    descriptor,
    bytes: fstatSync(descriptor).size,
    get revoked() {
      return revoked
    },
    [Symbol.dispose]: () => closeSync(descriptor),
  }
}

/** How often the file is open in this process. */
function openFiles(): number {
  const targets = readdirSync('/proc/self/fd').map((entry) => {
    try {
      return readlinkSync(`/proc/self/fd/${entry}`)
    } catch {
      return ''
    }
  })
  return targets.filter((target) => target.startsWith(dir)).length
}

/** A client that reads only when it is told to. */
async function slowClient(): Promise<{
  socket: Socket
  bytes: () => number
  text: () => string
  closed: () => boolean
}> {
  const socket = connect(server.port, '127.0.0.1')
  let bytes = 0
  let text = ''
  let closed = false
  socket.on('data', (chunk) => {
    bytes += chunk.length
    text = (text + chunk.toString('latin1')).slice(-2_000)
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    closed = true
  })
  socket.write('GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await eventually(() => bytes > 0)
  socket.pause()
  return { socket, bytes: () => bytes, text: () => text, closed: () => closed }
}

test('a file is sent whole, with its length and the headers of the answer, and closed soon after', async () => {
  for (const bytes of [0, 1, 100_000, 3_000_000]) {
    const content = Buffer.alloc(bytes, 'content ')
    writeFileSync(path, content)
    const response = await fetch(`${server.url}/file`)
    expect(response.status).toBe(200)
    expect(response.headers.get('content-type')).toBe('text/x-sent')
    expect(response.headers.get('content-length')).toBe(String(bytes))
    expect(Math.abs(Date.parse(response.headers.get('date')!) - Date.now())).toBeLessThan(60_000)
    expect(Buffer.from(await response.arrayBuffer()).equals(content)).toBe(true)
    await eventually(() => openFiles() === 0)
    expect(ended).toBe(begun)
  }
})

test('many are sent at once over connections that are used again', async () => {
  const content = Buffer.alloc(300_000, 'content ')
  writeFileSync(path, content)
  const client = async () => {
    for (let round = 0; round < 20; round++) {
      const back = await (await fetch(`${server.url}/file`)).arrayBuffer()
      expect(Buffer.from(back).equals(content)).toBe(true)
      expect(await (await fetch(`${server.url}/other`)).text()).toBe('other')
    }
  }
  await Promise.all(Array.from({ length: 8 }, client))
  await eventually(() => openFiles() === 0)
})

test('a slow client keeps its file open, and gets all of it', async () => {
  writeFileSync(path, Buffer.alloc(largeBytes, 'content '))
  const client = await slowClient()
  // Longer than files are looked at, and than other answers take.
  for (let round = 0; round < 10; round++) await (await fetch(`${server.url}/other`)).text()
  await Bun.sleep(100)
  expect(openFiles()).toBe(1)
  expect(ended).toBe(0)
  client.socket.resume()
  await eventually(() => client.bytes() > largeBytes)
  await eventually(() => ended === 1)
  client.socket.write('GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await eventually(() => client.text().endsWith('other'))
  client.socket.destroy()
})

test('a client that goes away lets go of its file', async () => {
  writeFileSync(path, Buffer.alloc(largeBytes))
  const client = await slowClient()
  expect(openFiles()).toBe(1)
  client.socket.destroy()
  await eventually(() => openFiles() === 0)
})

test('a file that becomes shorter while it is sent ends the connection, and only that one', async () => {
  writeFileSync(path, Buffer.alloc(largeBytes))
  const client = await slowClient()
  truncateSync(path, 32)
  client.socket.resume()
  await eventually(client.closed)
  expect(client.bytes()).toBeLessThan(largeBytes)
  expect(await (await fetch(`${server.url}/other`)).text()).toBe('other')
})

test('a file that grows or is replaced while it is sent is sent as long as it was', async () => {
  writeFileSync(path, Buffer.alloc(largeBytes, 'a'))
  const client = await slowClient()
  truncateSync(path, 2 * largeBytes)
  client.socket.resume()
  await eventually(() => ended === 1)
  client.socket.write('GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await eventually(() => client.text().endsWith('other'))
  expect(client.bytes()).toBeLessThan(largeBytes + 1_000)
  client.socket.destroy()
})

test('what is revoked ends with its connection, begun or not', async () => {
  writeFileSync(path, Buffer.alloc(largeBytes))
  const client = await slowClient()
  revoked = true
  client.socket.resume()
  await eventually(client.closed)
  expect(client.bytes()).toBeLessThan(largeBytes)
  await eventually(() => openFiles() === 0)
  const late = await slowClient()
  late.socket.resume()
  await eventually(late.closed)
})

test('stopping the server lets go of every file', async () => {
  writeFileSync(path, Buffer.alloc(largeBytes))
  await slowClient()
  await slowClient()
  await server.stop()
  expect(openFiles()).toBe(0)
  expect(ended).toBe(2)
})
