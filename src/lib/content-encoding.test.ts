import { describe, expect, test } from 'bun:test'
import { brotliCompressSync, deflateSync, gzipSync, zstdCompressSync } from 'node:zlib'
import { unpacked } from './content-encoding.ts'

const text = 'an answer that its program packed '.repeat(5000)
const packers: Record<string, (bytes: Uint8Array) => Uint8Array> = {
  gzip: gzipSync,
  'x-gzip': gzipSync,
  deflate: deflateSync,
  br: brotliCompressSync,
  zstd: zstdCompressSync,
}

function answer(body: Uint8Array, encoding: string): Response {
  return new Response(body as BodyInit, {
    headers: {
      'content-encoding': encoding,
      'content-length': String(body.length),
      'content-type': 'text/x',
    },
  })
}

async function whyNot(response: Response): Promise<unknown> {
  try {
    return await response.text()
  } catch (error) {
    return error
  }
}

describe('a packed answer', () => {
  test.each(Object.keys(packers))('is what was packed by %s', async (encoding) => {
    const packed = packers[encoding]?.(Buffer.from(text)) ?? new Uint8Array()
    const plain = unpacked(answer(packed, encoding))
    expect(plain.headers.get('content-encoding')).toBeNull()
    expect(plain.headers.get('content-length')).toBeNull()
    expect(plain.headers.get('content-type')).toBe('text/x')
    expect(await plain.text()).toBe(text)
  })

  test('was packed more than once, the last first', async () => {
    const packed = brotliCompressSync(gzipSync(Buffer.from(text)))
    expect(await unpacked(answer(packed, ' GZIP ,identity, br')).text()).toBe(text)
  })

  test('is left as it is in an encoding that is not known, in too many, and in none', () => {
    for (const encoding of ['compress', 'gzip, compress', 'gzip, gzip, gzip, gzip', 'identity', '']) {
      const response = answer(gzipSync(Buffer.from(text)), encoding)
      expect(unpacked(response)).toBe(response)
    }
    const bodiless = new Response(null, { status: 204, headers: { 'content-encoding': 'gzip' } })
    expect(unpacked(bodiless)).toBe(bodiless)
  })

  test('that is cut off, or is something else, fails', async () => {
    const packed = gzipSync(Buffer.from(text))
    expect(await whyNot(unpacked(answer(packed.subarray(0, -20), 'gzip')))).toBeInstanceOf(Error)
    expect(await whyNot(unpacked(answer(Buffer.from(text), 'br')))).toBeInstanceOf(Error)
  })

  test('unfolds only as far as it is read', async () => {
    const packed = gzipSync(Buffer.alloc(64 * 1024 * 1024))
    const unfolding = unpacked(answer(packed, 'gzip'))
    let bytes = 0
    for await (const piece of unfolding.body ?? []) {
      bytes += piece.length
      if (bytes > 1024 * 1024) break
    }
    expect(bytes).toBeLessThan(2 * 1024 * 1024)
  })
})
