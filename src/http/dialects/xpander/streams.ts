/** A task as it goes on, told as events. */
import type { JsonObject, Task, TaskEvent, Threads } from '../../../threads/index.ts'
import { hasEnded } from '../../../threads/index.ts'
import { eventStream } from '../event-stream.ts'
import { eventView, taskView } from './view.ts'

/** From the task as it is now to its end. `gone` is aborted once nobody reads it any more. */
export function taskStream(
  threads: Threads,
  { task, events }: { task: Task; events: AsyncIterable<TaskEvent> },
  gone: AbortController,
): Response {
  const told = async function* (): AsyncGenerator<{ data: JsonObject }> {
    const view = (type: string, at: number, current: Task) => ({
      data: eventView(current, type, at, taskView(current)),
    })
    yield view('task_created', task.createdAt, task)
    if (hasEnded(task.body)) {
      yield view('task_finished', task.updatedAt, task)
      return
    }
    for await (const { type, at, data, task: current } of events) {
      if (current === undefined) yield { data: eventView(task, type, at, data) }
      else {
        yield view(type, at, current)
        if (type === 'task_finished') return
      }
    }
    // Too much was told for who reads slowly: at least how it ended.
    if (gone.signal.aborted) return
    const last = await threads.get(task.workspace, task.name)
    if (hasEnded(last.body)) yield view('task_finished', last.updatedAt, last)
  }
  return eventStream(told(), () => gone.abort())
}
