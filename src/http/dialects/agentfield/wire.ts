import { keptAlive } from '../../run/bodies.ts'

export const tag = 'agentfield'

/** As this protocol writes moments: to the second. */
export function timeText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}

const keepaliveMs = 15_000

/** Server-sent events, of JSON each. `onEnd` is called once nobody reads them any more. */
export function eventStream(
  events: AsyncIterable<{ event?: string; id?: string; data: object }>,
  onEnd: () => void,
): Response {
  const text = async function* () {
    for await (const { event, id, data } of events) {
      const name = event === undefined ? '' : `event: ${event}\n`
      const number = id === undefined ? '' : `id: ${id}\n`
      yield `${number}${name}data: ${JSON.stringify(data)}\n\n`
    }
  }
  const body = keptAlive(text(), { text: ': keepalive\n\n', everyMs: keepaliveMs }, onEnd)
  return new Response(body, {
    headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-cache', 'x-accel-buffering': 'no' },
  })
}

/** A body of what comes, as it is asked for. */
export function streamOf(chunks: AsyncGenerator<Uint8Array>): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await chunks.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
    cancel: () => void chunks.return(undefined),
  })
}

export function jsonOf(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value))
}

export function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes)
}
