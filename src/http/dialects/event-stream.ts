import { keptAlive } from '../run/bodies.ts'

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
  return eventStreamOf(text(), onEnd)
}

/** As `eventStream`, of events that are written already. */
export function eventStreamOf(events: AsyncIterable<Uint8Array | string>, onEnd: () => void): Response {
  const body = keptAlive(events, { text: ': keepalive\n\n', everyMs: keepaliveMs }, onEnd)
  return new Response(body, {
    headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-cache', 'x-accel-buffering': 'no' },
  })
}
