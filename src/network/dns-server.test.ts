import { afterAll, expect, test } from 'bun:test'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { DnsServer } from './dns-server.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-dns-'))
const opened: DnsServer[] = []
afterAll(() => {
  for (const server of opened) server.close()
  rmSync(dir, { recursive: true, force: true })
})

type Answer = (instanceId: string, query: Uint8Array) => Promise<Uint8Array | null>

async function connected(answer: Answer): Promise<Socket> {
  const server = new DnsServer({ dir: mkdtempSync(join(dir, 's')), log: silentLogger, answer })
  opened.push(server)
  const socket = connect(server.path())
  await once(socket, 'connect')
  socket.write(server.preamble('one'))
  return socket
}

/** With its length before it. */
const message = (bytes: Uint8Array) => Buffer.concat([Uint8Array.of(bytes.length >> 8, bytes.length), bytes])

test('queries that come together, or in parts, are answered one by one', async () => {
  const asked: string[] = []
  const socket = await connected(async (instanceId, query) => {
    asked.push(`${instanceId}: ${Buffer.from(query)}`)
    return Buffer.from(`answer to ${Buffer.from(query)}`)
  })
  const queries = Buffer.concat([message(Buffer.from('first')), message(Buffer.from('second'))])
  socket.write(queries.subarray(0, 9))
  socket.write(queries.subarray(9))
  const expected = Buffer.concat([
    message(Buffer.from('answer to first')),
    message(Buffer.from('answer to second')),
  ])
  let got = Buffer.alloc(0)
  for await (const chunk of socket) {
    got = Buffer.concat([got, chunk as Buffer])
    if (got.length >= expected.length) break
  }
  expect(got.toString()).toBe(expected.toString())
  expect(asked).toEqual(['one: first', 'one: second'])
})

test('who takes no answers loses the connection before they pile up', async () => {
  let answered = Promise.withResolvers<void>()
  const socket = await connected(async () => {
    answered.resolve()
    return new Uint8Array(60_000)
  })
  socket.pause()
  let ended = false
  // A socket that is not read notices its end only when it writes again, which the one unanswered query leads to.
  socket.on('error', () => {
    ended = true
  })
  let queries = 0
  for (; !ended && queries < 2000; queries++) {
    answered = Promise.withResolvers()
    socket.write(message(Buffer.from('query')))
    await Promise.race([answered.promise, Bun.sleep(100)])
  }
  // What the kernel holds, and then not many more.
  expect(queries).toBeLessThan(1000)
})

test('a query that is longer than one may be ends the connection', async () => {
  const socket = await connected(async () => new Uint8Array(1))
  socket.resume()
  socket.write(Uint8Array.of(0xff, 0xff))
  await once(socket, 'close')
})
