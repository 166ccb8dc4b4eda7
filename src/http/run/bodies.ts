/** All of a stream of known, small size. */
export async function collect(body: ReadableStream<Uint8Array>): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = []
  const reader = body.getReader()
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return (chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)) as Uint8Array<ArrayBuffer>
    chunks.push(value)
  }
}

/**
 * Bytes whose type nobody told. As they are, the server would call them `application/octet-stream`, which a browser
 * downloads instead of looking what they are; about a stream it says nothing.
 */
export function untyped(bytes: Uint8Array): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>({
    start(controller) {
      if (bytes.byteLength > 0) controller.enqueue(bytes)
      controller.close()
    },
  })
}

/**
 * The same stream, with `onEnd` called once when it ended, failed or was cancelled. Reads are guarded: a peer that goes
 * away never becomes an unhandled rejection. A failure cuts the answer off without its reason, since the server would
 * print that on stderr, addresses and all.
 */
export function onceEnded(body: ReadableStream<Uint8Array>, onEnd: () => void): ReadableStream<Uint8Array> {
  return relay(body.getReader(), onEnd, null)
}

/**
 * `onceEnded`, with the first bytes at hand: what fails before them still gets an answer of its own, and the headers
 * of the answer leave in one piece.
 */
export async function begunAndOnceEnded(
  body: ReadableStream<Uint8Array>,
  onEnd: () => void,
): Promise<ReadableStream<Uint8Array>> {
  const reader = body.getReader()
  return relay(reader, onEnd, await reader.read())
}

type Read = Awaited<ReturnType<ReadableStreamDefaultReader<Uint8Array>['read']>>

function relay(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  onEnd: () => void,
  first: Read | null,
): ReadableStream<Uint8Array> {
  let ended = false
  const end = () => {
    if (!ended) onEnd()
    ended = true
  }
  const pass = (controller: ReadableStreamDefaultController<Uint8Array>, { done, value }: Read) => {
    if (!done) return controller.enqueue(value)
    end()
    controller.close()
  }
  return new ReadableStream<Uint8Array>({
    start(controller) {
      if (first !== null) pass(controller, first)
    },
    async pull(controller) {
      try {
        pass(controller, await reader.read())
      } catch {
        end()
        controller.error()
      }
    },
    async cancel(reason) {
      end()
      await reader.cancel(reason).catch(() => {})
    },
  })
}

/** A stream of what an iterable gives, as fast as it is read. Cancelling it returns the iterable. */
export function streamOf(chunks: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]()
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { done, value } = await iterator.next()
        if (done) controller.close()
        else controller.enqueue(value)
      } catch (error) {
        controller.error(error)
      }
    },
    async cancel() {
      await iterator.return?.()
    },
  })
}

export interface Keepalive {
  text: string
  everyMs: number
}

/** Until then an answer without output keeps its header back, since headers leave with the first bytes. */
const firstKeepaliveMs = 100

/** A stream with a keepalive whenever there was nothing for a while, the first one soon. */
export function keptAlive(
  chunks: AsyncIterable<Uint8Array | string>,
  keepalive: Keepalive,
  onEnd: () => void,
): ReadableStream<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]()
  const encoder = new TextEncoder()
  const bytesOf = (chunk: Uint8Array | string) => (typeof chunk === 'string' ? encoder.encode(chunk) : chunk)
  let next: Promise<IteratorResult<Uint8Array | string>> | null = null
  let quietMs = firstKeepaliveMs
  let timer: ReturnType<typeof setTimeout> | undefined
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      next ??= iterator.next()
      try {
        const quiet = new Promise<null>((resolve) => {
          timer = setTimeout(resolve, quietMs, null)
        })
        const result = await Promise.race([next, quiet])
        clearTimeout(timer)
        quietMs = keepalive.everyMs
        if (result === null) return controller.enqueue(bytesOf(keepalive.text))
        next = null
        if (!result.done) return controller.enqueue(bytesOf(result.value))
        onEnd()
        controller.close()
      } catch {
        clearTimeout(timer)
        onEnd()
        controller.error()
      }
    },
    async cancel() {
      clearTimeout(timer)
      onEnd()
      next?.catch(() => {})
    },
  })
}
