/**
 * The writer's thread: the only connection that writes. Every message is one transaction and one fsync; every
 * mutation in it stands or falls alone behind its savepoint.
 *
 * Plain prepared statements instead of drizzle: the thread has an engine of its own, and this keeps 3 MB out of it.
 */
import { commitGroup, openWriter } from './commit.ts'
import type { FromWriter, ToWriter } from './protocol.ts'

declare const self: {
  onmessage: ((event: MessageEvent<ToWriter>) => void) | null
  postMessage(message: FromWriter): void
}

let writer: ReturnType<typeof openWriter> | null = null
let target: Extract<ToWriter, { type: 'open' }> | null = null

self.onmessage = ({ data }) => {
  switch (data.type) {
    case 'open':
      target = data
      return
    case 'commit':
      try {
        writer ??= openWriter(target!.path, target!.synchronous)
        self.postMessage({ type: 'committed', outcomes: commitGroup(writer, data.mutations) })
      } catch (error) {
        const failed = { ok: false, step: 0, reason: 'failed', detail: String(error) } as const
        self.postMessage({ type: 'committed', outcomes: data.mutations.map(() => failed) })
      }
      return
    case 'close':
      writer?.close()
      writer = null
      self.postMessage({ type: 'closed' })
  }
}
