import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { MultipartReader, multipartBoundary } from './multipart.ts'

function bodyOf(bytes: Uint8Array, cuts: number[]): ReadableStream<Uint8Array> {
  const places = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b)
  return new ReadableStream({
    start(controller) {
      let from = 0
      for (const to of [...places, bytes.length]) {
        if (to > from) controller.enqueue(bytes.slice(from, to))
        from = to
      }
      controller.close()
    },
  })
}

async function readAll(reader: MultipartReader): Promise<[string, string | null, string][]> {
  const parts: [string, string | null, string][] = []
  for (let part = await reader.next(); part; part = await reader.next()) {
    const chunks: Uint8Array[] = []
    for await (const chunk of reader.chunks()) chunks.push(chunk)
    parts.push([part.name, part.filename, Buffer.concat(chunks).toString('latin1')])
  }
  return parts
}

test('parts come out byte for byte, wherever the body is cut', async () => {
  // Line ends, dashes and the boundary's own beginning are what a reader may mistake.
  const content = fc.array(fc.constantFrom('\r\n', '--', '\r\n--', '\r\n--b', 'b', 'x', '\r', '\n', '\xff'), {
    maxLength: 12,
  })
  await fc.assert(
    fc.asyncProperty(
      fc.array(content, { maxLength: 4 }),
      fc.array(fc.nat(), { maxLength: 12 }),
      async (parts, cuts) => {
        const contents = parts.map((pieces) => pieces.join(''))
        fc.pre(contents.every((text) => !`\r\n${text}\r\n`.includes('\r\n--bound')))
        const text = contents
          .map(
            (body, at) =>
              `--bound\r\nContent-Disposition: form-data; name="p${at}"; filename="f"\r\n\r\n${body}\r\n`,
          )
          .join('')
        const bytes = Buffer.from(`preamble\r\n${text}--bound--\r\nepilogue`, 'latin1')
        const read = await readAll(new MultipartReader(bodyOf(bytes, cuts), 'bound'))
        const expected = contents.map((body, at): [string, string, string] => [`p${at}`, 'f', body])
        expect(read).toEqual(expected)
        for (const preamble of ['', 'preamble\r\n', '\r\n']) {
          const whole = Buffer.from(`${preamble}${text}--bound--\r\n`, 'latin1')
          expect(await readAll(new MultipartReader(whole, 'bound'))).toEqual(expected)
        }
      },
    ),
    { numRuns: 300 },
  )
})

test('what a reader skips does not come out later', async () => {
  const text =
    '--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nskipped\r\n--b\r\nContent-Disposition: form-data; name="c"\r\n\r\nread\r\n--b--'
  const reader = new MultipartReader(bodyOf(Buffer.from(text), []), 'b')
  expect((await reader.next())?.name).toBe('a')
  expect((await reader.next())?.name).toBe('c')
  expect(await reader.text(100)).toBe('read')
  expect(await reader.next()).toBeNull()
})

test.each([
  ['nothing', ''],
  ['a part without an end', '--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx'],
  ['a part without a name', '--b\r\n\r\nx\r\n--b--'],
  ['an endless header', `--b\r\nContent-Disposition: ${'x'.repeat(40_000)}`],
])('%s is refused', async (_, text) => {
  for (const body of [bodyOf(Buffer.from(text), [7]), Buffer.from(text)]) {
    await expect(readAll(new MultipartReader(body, 'b'))).rejects.toMatchObject({ code: 'bad_request' })
  }
})

test('the boundary is read from the content type, quoted or not', () => {
  expect(multipartBoundary('multipart/form-data; boundary="a b"')).toBe('a b')
  expect(multipartBoundary('Multipart/Form-Data; charset=x; boundary=abc')).toBe('abc')
  expect(multipartBoundary('application/json')).toBeNull()
  expect(() => multipartBoundary('multipart/form-data')).toThrow('no boundary')
})
