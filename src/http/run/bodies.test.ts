import { expect, test } from 'bun:test'
import { begunAndOnceEnded, freeing, streamOf } from './bodies.ts'

const chunkBytes = 100_000

/** Chunks that are filled with their number, and how many of them were asked for. */
function numbered(count: number): { chunks: AsyncGenerator<Uint8Array>; given: Uint8Array[] } {
  const given: Uint8Array[] = []
  const chunks = async function* () {
    for (let at = 1; at <= count; at++) {
      const chunk = new Uint8Array(chunkBytes).fill(at)
      given.push(chunk)
      yield chunk
    }
  }
  return { chunks: chunks(), given }
}

test('chunks that are freed are gone once the next one is asked for, and not before', async () => {
  const { chunks, given } = numbered(4)
  const reader = streamOf(freeing(chunks)).getReader()
  for (let at = 1; at <= 4; at++) {
    const { value } = await reader.read()
    expect([value?.length, value?.[0], given.length]).toEqual([chunkBytes, at, at])
    expect(given.slice(0, -1).map(({ length }) => length)).toEqual(Array(at - 1).fill(0))
  }
  expect((await reader.read()).done).toBe(true)
  expect(given.map(({ length }) => length)).toEqual([0, 0, 0, 0])
})

for (const freed of [true, false]) {
  test(`an answer ${freed ? 'frees what it passed on' : 'leaves its chunks to whoever reads it'}`, async () => {
    const { chunks, given } = numbered(3)
    let ends = 0
    const body = await begunAndOnceEnded(streamOf(chunks), () => ends++, { freeing: freed })
    expect(given.length).toBe(1)
    const reader = body.getReader()
    for (let at = 1; at <= 3; at++) {
      const { value } = await reader.read()
      expect([value?.length, value?.[0]]).toEqual([chunkBytes, at])
    }
    expect((await reader.read()).done).toBe(true)
    const left = freed ? 0 : chunkBytes
    expect(given.map(({ length }) => length)).toEqual([left, left, left])
    expect(ends).toBe(1)
  })
}

test('a server that frees what it sends sends all of it, also to a client that is slow', async () => {
  const source = crypto.getRandomValues(new Uint8Array(60_000))
  const sent = new Bun.CryptoHasher('sha1')
  let bytes = 0
  const chunks = async function* () {
    for (let at = 0; at < 400; at++) {
      // Of many sizes, so that none fits the server's own buffers by luck.
      const chunk = source.slice(0, 1 + ((at * 7919) % source.length))
      sent.update(chunk)
      bytes += chunk.length
      yield chunk
    }
  }
  await using server = Bun.serve({
    port: 0,
    fetch: async () => new Response(await begunAndOnceEnded(streamOf(chunks()), () => {}, { freeing: true })),
  })
  const { body } = await fetch(server.url)
  const received = new Bun.CryptoHasher('sha1')
  let count = 0
  let turns = 0
  for await (const chunk of body ?? []) {
    received.update(chunk)
    count += chunk.length
    // The server meanwhile fills what the sockets hold, and has to wait.
    if (turns++ < 5) await new Promise((resolve) => setTimeout(resolve, 20))
  }
  expect(count).toBe(bytes)
  expect(received.digest('hex')).toBe(sent.digest('hex'))
})
