import { free } from '../../lib/spent.ts'

/** What has a body piece by piece, as the reader of a stream does. */
export type Pieces = Pick<ReadableStreamDefaultReader<Uint8Array>, 'read' | 'cancel'>

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
 * A stream of it, with `onEnd` called once when it ended, failed or was cancelled. Reads are guarded: a peer that goes
 * away never becomes an unhandled rejection. A failure cuts the answer off without its reason, since the server would
 * print that on stderr, addresses and all. `passed` is told of each piece; `freeing`: they are freed as of `freeing()`.
 */
export function onceEnded(
  body: Pieces,
  onEnd: () => void,
  options: { freeing: boolean; passed: ((bytes: number) => void) | undefined },
): ReadableStream<Uint8Array> {
  return relay(body, onEnd, null, options.freeing, options.passed)
}

/** The same stream; `passed` is told of each chunk, and what it throws ends it. */
export function counted(
  body: ReadableStream<Uint8Array>,
  passed: (bytes: number) => void,
): ReadableStream<Uint8Array> {
  const reader = body.getReader()
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await reader.read()
      if (done) return controller.close()
      passed(value.byteLength)
      controller.enqueue(value)
    },
    cancel: (reason) => reader.cancel(reason).catch(() => {}),
  })
}

/**
 * `onceEnded`, with the first bytes at hand: what fails before them still gets an answer of its own, and the headers
 * of the answer leave in one piece. `freeing`: as of `freeing()`.
 */
export async function begunAndOnceEnded(
  body: ReadableStream<Uint8Array>,
  onEnd: () => void,
  options: { freeing: boolean },
): Promise<ReadableStream<Uint8Array>> {
  const reader = body.getReader()
  return relay(reader, onEnd, await reader.read(), options.freeing)
}

/**
 * The same chunks, each freed when the next one is asked for: for chunks that nobody else holds, and a reader that is
 * done with what it got before it asks for more, as the server is and a `write` of files.
 */
export async function* freeing(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    yield chunk
    free(chunk)
  }
}

type Read = Awaited<ReturnType<ReadableStreamDefaultReader<Uint8Array>['read']>>

function relay(
  reader: Pieces,
  onEnd: () => void,
  first: Read | null,
  freesChunks: boolean,
  passed?: (bytes: number) => void,
): ReadableStream<Uint8Array> {
  let ended = false
  let given: Uint8Array | undefined
  const end = () => {
    if (!ended) onEnd()
    ended = true
  }
  const pass = (controller: ReadableStreamDefaultController<Uint8Array>, { done, value }: Read) => {
    given = value
    if (!done) {
      passed?.(value.byteLength)
      return controller.enqueue(value)
    }
    end()
    controller.close()
  }
  const source: UnderlyingDefaultSource<Uint8Array> = {
    start(controller) {
      if (first !== null) pass(controller, first)
    },
    async pull(controller) {
      if (freesChunks && given !== undefined) free(given)
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
  }
  return new ReadableStream(source, freesChunks ? onDemand : undefined)
}

/** Nothing is taken ahead: what is asked for is what is read. */
const onDemand = { highWaterMark: 0 }

/** A stream of what an iterable gives, as it is read. Cancelling it returns the iterable. */
export function streamOf(chunks: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]()
  const source: UnderlyingDefaultSource<Uint8Array> = {
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
  }
  return new ReadableStream(source, onDemand)
}

export interface Keepalive {
  text: string
  everyMs: number
}

/** Until then an answer without output keeps its header back, since headers leave with the first bytes. */
const firstKeepaliveMs = 100

/**
 * A stream with a keepalive whenever there was nothing for a while, the first one soon. `isAhead: false`: nothing is taken
 * before it is asked for.
 */
export function keptAlive(
  chunks: AsyncIterable<Uint8Array | string>,
  keepalive: Keepalive,
  onEnd: () => void,
  { isAhead = true }: { isAhead?: boolean } = {},
): ReadableStream<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]()
  const encoder = new TextEncoder()
  const bytesOf = (chunk: Uint8Array | string) => (typeof chunk === 'string' ? encoder.encode(chunk) : chunk)
  let next: Promise<IteratorResult<Uint8Array | string>> | null = null
  let quietMs = firstKeepaliveMs
  let timer: ReturnType<typeof setTimeout> | undefined
  const source: UnderlyingDefaultSource<Uint8Array> = {
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
  }
  return new ReadableStream(source, isAhead ? undefined : onDemand)
}
