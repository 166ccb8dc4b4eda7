/** Answers whose programs packed them, as clients of HTTP unpack them. */
import { pipeline, Readable, type Transform } from 'node:stream'
import { createBrotliDecompress, createGunzip, createInflate, createZstdDecompress } from 'node:zlib'

const chunkBytes = 64 * 1024
/** One after the other around the same body. */
const encodingsMax = 3
const openers: Record<string, () => Transform> = {
  gzip: () => createGunzip({ chunkSize: chunkBytes }),
  'x-gzip': () => createGunzip({ chunkSize: chunkBytes }),
  deflate: () => createInflate({ chunkSize: chunkBytes }),
  br: () => createBrotliDecompress({ chunkSize: chunkBytes }),
  zstd: () => createZstdDecompress({ chunkSize: chunkBytes }),
}

/**
 * The same answer without its Content-Encoding; the same object where it has none, or one that is not known here. It is
 * unpacked as it is read, so that whoever counts what he reads can stop. A body that is not what it says fails there.
 */
export function unpacked(response: Response): Response {
  const { status, statusText, body } = response
  const steps = stepsOf(response.headers.get('content-encoding'))
  if (steps.length === 0 || body === null) return response
  const headers = new Headers(response.headers)
  headers.delete('content-encoding')
  headers.delete('content-length')
  return new Response(unpackedBody(body, steps), { status, statusText, headers })
}

/** Those that undo it, in their order; none for what is not known. */
function stepsOf(header: string | null): (() => Transform)[] {
  const names = (header ?? '')
    .split(',')
    .map((name) => name.trim().toLowerCase())
    .filter((name) => name !== '' && name !== 'identity')
  if (names.length > encodingsMax) return []
  const steps = names.flatMap((name) => (Object.hasOwn(openers, name) ? (openers[name] ?? []) : []))
  return steps.length === names.length ? steps.reverse() : []
}

function unpackedBody(
  body: ReadableStream<Uint8Array>,
  steps: readonly (() => Transform)[],
): ReadableStream<Uint8Array> {
  const source = Readable.from(body as unknown as AsyncIterable<Uint8Array>, { objectMode: false })
  let last: Readable = source
  for (const step of steps) {
    const next = step()
    // Its error reaches whoever reads.
    pipeline(last, next, () => {})
    last = next
  }
  const pieces = last[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await pieces.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
    async cancel() {
      last.destroy()
      source.destroy()
    },
  })
}
