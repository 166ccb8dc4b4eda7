/** A task as it goes on, told as events. */
import type { JsonObject, Thread, ThreadEvent, Threads } from '../../../threads/index.ts'
import { hasEnded } from '../../../threads/index.ts'
import { eventStream } from '../event-stream.ts'
import { eventView, taskView } from './view.ts'

/** From the task as it is now to its end. `gone` is aborted once nobody reads it any more. */
export function taskStream(
  threads: Threads,
  { thread, events }: { thread: Thread; events: AsyncIterable<ThreadEvent> },
  gone: AbortController,
): Response {
  const told = async function* (): AsyncGenerator<{ data: JsonObject }> {
    const view = (type: string, at: number, current: Thread) => ({
      data: eventView(current, type, at, taskView(current)),
    })
    yield view('task_created', thread.createdAt, thread)
    if (hasEnded(thread.body)) {
      yield view('task_finished', thread.updatedAt, thread)
      return
    }
    for await (const { type, at, data, thread: current } of events) {
      if (current === undefined) yield { data: eventView(thread, type, at, data) }
      else {
        yield view(type, at, current)
        if (type === 'task_finished') return
      }
    }
    // Too much was told for who reads slowly: at least how it ended.
    if (gone.signal.aborted) return
    const last = await threads.get(thread.workspace, thread.name)
    if (hasEnded(last.body)) yield view('task_finished', last.updatedAt, last)
  }
  return eventStream(told(), () => gone.abort())
}
