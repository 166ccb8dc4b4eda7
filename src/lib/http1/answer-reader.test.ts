import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { type AnswerHead, BadAnswer, headersMax } from './answer-head.ts'
import { AnswerReader, headBytesMax } from './answer-reader.ts'

interface Read {
  head: AnswerHead | null
  body: string
  ended: boolean
  /** Bytes behind the answer. */
  left: number
}

/** What a reader makes of these bytes, in these pieces, and of the end of the connection if `closes`. */
function read(pieces: (string | Uint8Array)[], { method = 'GET', closes = false } = {}): Read {
  const seen: Read = { head: null, body: '', ended: false, left: 0 }
  const reader = new AnswerReader(method, {
    head(head) {
      seen.head = head
    },
    body(bytes) {
      seen.body += Buffer.from(bytes).toString('latin1')
    },
    end() {
      seen.ended = true
    },
  })
  for (const piece of pieces) {
    const bytes = typeof piece === 'string' ? Buffer.from(piece, 'latin1') : Buffer.from(piece)
    seen.left += bytes.length - reader.push(bytes)
  }
  if (closes) reader.close()
  expect(reader.over).toBe(seen.ended)
  return seen
}

/** Why it is refused, null when it is not. */
function refusal(...given: Parameters<typeof read>): string | null {
  try {
    read(...given)
    return null
  } catch (error) {
    if (error instanceof BadAnswer) return error.message
    throw error
  }
}

/** Cuts bytes at the given places. */
function cut(bytes: Buffer, places: number[]): Buffer[] {
  const at = [...new Set(places.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b)
  return [0, ...at].map((start, index) => bytes.subarray(start, at[index] ?? bytes.length))
}

const ok = 'HTTP/1.1 200 OK\r\n'
const token = fc.stringMatching(/^[a-z][a-z0-9-]{0,12}$/).map((name) => `x-${name}`)
const value = fc.stringMatching(/^[!-~\x80-\xff](?:[ -~\x80-\xff]{0,20}[!-~\x80-\xff])?$/)
const anyBody = fc.uint8Array({ maxLength: 200 })
const places = fc.array(fc.nat(), { maxLength: 12 })

describe('an answer comes out as it was written', () => {
  test('however it is framed, and wherever it is cut', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 200, max: 599 }).filter((status) => status !== 204 && status !== 304),
        fc.array(fc.tuple(token, value), { maxLength: 5 }),
        fc.array(anyBody, { maxLength: 4 }),
        fc.constantFrom('length', 'chunked', 'close'),
        fc.boolean(),
        places,
        (status, headers, chunks, framing, interim, at) => {
          const body = Buffer.concat(chunks)
          const lines = headers.map(([name, text]) => `${name}: ${text}\r\n`).join('')
          const told = {
            length: `Content-Length: ${body.length}\r\n`,
            chunked: 'Transfer-Encoding: Chunked\r\n',
            close: '',
          }[framing]
          const sent = chunks
            .filter(({ length }) => length > 0)
            .flatMap((chunk) => [`${chunk.length.toString(16)};a="b"\r\n`, chunk, '\r\n'])
          const parts = framing === 'chunked' ? [...sent, '0\r\nx-trailer: t\r\n\r\n'] : [body]
          const bytes = Buffer.concat(
            [
              interim ? 'HTTP/1.1 103 Early\r\nlink: a\r\n\r\n' : '',
              `HTTP/1.1 ${status} Why\r\n${lines}${told}\r\n`,
              ...parts,
            ].map((part) => (typeof part === 'string' ? Buffer.from(part, 'latin1') : Buffer.from(part))),
          )
          const { head, body: came, ended, left } = read(cut(bytes, at), { closes: framing === 'close' })
          expect([head?.status, head?.statusText, came, ended, left]).toEqual([
            status,
            'Why',
            body.toString('latin1'),
            true,
            0,
          ])
          expect(head?.headers.slice(0, headers.length * 2)).toEqual(headers.flat())
          expect(head?.persistent).toBe(framing !== 'close')
        },
      ),
    )
  })

  test('what follows it is not its own', () => {
    expect(read([`${ok}content-length: 2\r\n\r\nhiHTTP/1.1 200`])).toMatchObject({ body: 'hi', left: 12 })
    expect(read([`${ok}transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nrest`])).toMatchObject({
      body: 'hi',
      left: 4,
    })
  })

  test('without a body where there can be none, whatever its head says', () => {
    const said = 'content-length: 5\r\n\r\n'
    expect(read([`${ok}${said}`], { method: 'HEAD' })).toMatchObject({ ended: true, body: '' })
    for (const status of [204, 304]) {
      expect(read([`HTTP/1.1 ${status} x\r\n${said}`])).toMatchObject({ ended: true, body: '' })
    }
  })

  test('as simple programs write it', () => {
    expect(read(['HTTP/1.0 200\n\nhi'], { closes: true })).toMatchObject({
      body: 'hi',
      head: { status: 200, statusText: '', persistent: false },
    })
    expect(read([`${ok}X-Empty:\r\nA:  b\t\r\nContent-Length: 0\r\n\r\n`]).head?.headers).toEqual([
      ...['x-empty', '', 'a', 'b', 'content-length', '0'],
    ])
  })

  test('its connection is used again only where both sides know that it is over', () => {
    const persistent = (text: string) => read([text]).head?.persistent
    const length = 'content-length: 0\r\n'
    expect(persistent(`${ok}${length}\r\n`)).toBe(true)
    expect(persistent(`${ok}${length}connection: Close\r\n\r\n`)).toBe(false)
    expect(persistent(`${ok}${length}connection: x, close\r\n\r\n`)).toBe(false)
    expect(persistent(`HTTP/1.0 200 OK\r\n${length}\r\n`)).toBe(false)
    expect(persistent(`HTTP/1.0 200 OK\r\n${length}connection: keep-alive\r\n\r\n`)).toBe(true)
    expect(persistent(`${ok}${length}transfer-encoding: chunked\r\n\r\n0\r\n\r\n`)).toBe(false)
  })
})

describe('what is no answer is refused', () => {
  const chunked = `${ok}transfer-encoding: chunked\r\n\r\n`
  const cases: Record<string, string> = {
    'another protocol': 'SSH-2.0-x\r\n\r\n',
    'HTTP/2': 'HTTP/2 200 OK\r\n\r\n',
    'a status of two digits': 'HTTP/1.1 20 OK\r\n\r\n',
    'a protocol that nobody asked for': 'HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n',
    'a header without a name': `${ok}: x\r\n\r\n`,
    'a header without a colon': `${ok}x\r\n\r\n`,
    'a blank before the colon': `${ok}content-length : 1\r\n\r\n`,
    'a header that goes on in the next line': `${ok}a: b\r\n c\r\n\r\n`,
    'a carriage return that ends nothing': `${ok}a: b\rc: d\r\n\r\n`,
    'a zero byte': `${ok}a: b\0\r\n\r\n`,
    'two lengths': `${ok}content-length: 1\r\ncontent-length: 2\r\n\r\n`,
    'a length with a sign': `${ok}content-length: +1\r\n\r\n`,
    'a length that is two': `${ok}content-length: 1, 1\r\n\r\n`,
    'a length that no number holds': `${ok}content-length: ${'9'.repeat(16)}\r\n\r\n`,
    'another coding': `${ok}transfer-encoding: gzip, chunked\r\n\r\n`,
    'chunked twice': `${ok}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n`,
    'a chunk without a size': `${chunked}\r\n`,
    'a size that is no number': `${chunked}0x5\r\n`,
    'a size that no number holds': `${chunked}${'f'.repeat(14)}\r\n`,
    'a size that a line feed ends': `${chunked}5\nhello\r\n`,
    'a chunk longer than its size': `${chunked}2\r\nhello\r\n`,
    'too many headers': `${ok}${'a: b\r\n'.repeat(headersMax + 1)}\r\n`,
    'too many lines without an end': `${ok}${'a: b\n'.repeat(headersMax + 10)}`,
    'a head without an end': `${ok}a: ${'b'.repeat(headBytesMax)}`,
    'interim answers without an end': `HTTP/1.1 100 Continue\r\na: ${'b'.repeat(1000)}\r\n\r\n`.repeat(100),
    'a size line without an end': `${chunked}1;${'x'.repeat(2000)}`,
    'a trailer without an end': `${chunked}0\r\n${'a: b\r\n'.repeat(5000)}`,
  }
  for (const [what, text] of Object.entries(cases)) {
    test(what, () => {
      expect(refusal([text])).toBeString()
      // As it comes in bytes, which is also when what has no end is noticed.
      if (text.length < 500) expect(refusal([...text])).toBeString()
    })
  }

  test('an end in its midst', () => {
    for (const text of ['', ok, `${ok}content-length: 2\r\n\r\nh`, `${chunked}5\r\nhel`, `${chunked}0\r\n`]) {
      expect(refusal([text], { closes: true })).toBe('it broke off')
    }
  })

  test('whatever is sent, nothing else is thrown', () => {
    const piece = fc.oneof(
      fc.constantFrom(
        ok,
        'HTTP/1.1 100 x\r\n\r\n',
        'content-length: 3\r\n',
        'transfer-encoding: chunked\r\n',
        '\r\n',
        '\n',
      ),
      fc.constantFrom('connection: close\r\n', 'abc', '3\r\nabc\r\n', '0\r\n', 'a: b\r\n', ';', ':', ' '),
      fc.uint8Array({ maxLength: 20 }),
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), fc.boolean(), (pieces, closes) => {
        refusal(pieces, { closes })
      }),
      { numRuns: 1000 },
    )
  })
})
