/** What is told of threads while they are worked on, in this process: to whoever watches, in order. */
import type { Json, Thread } from './record.ts'

/** Events that a watcher may be behind; one that reads slower is let go. */
const behindMax = 2048
/** As JSON, all of them together; a single one may be larger. */
const behindCharsMax = 8 * 1024 * 1024

export interface ThreadEvent {
  type: string
  at: number
  data: Json
  /** Of what happens to the thread itself: how it stood then. */
  thread?: Thread
}

interface Watcher {
  queue: { event: ThreadEvent; chars: number }[]
  chars: number
  wake: () => void
  lost: boolean
}

export class ThreadEvents {
  readonly #watchers = new Map<string, Set<Watcher>>()

  tell(workspace: string, threadId: string, event: ThreadEvent): void {
    const watchers = this.#watchers.get(`${workspace}/${threadId}`)
    if (watchers === undefined) return
    const chars = JSON.stringify([event.data, event.thread?.body]).length
    for (const watcher of watchers) {
      const { queue } = watcher
      if (queue.length >= behindMax || (queue.length > 0 && watcher.chars + chars > behindCharsMax))
        watcher.lost = true
      if (!watcher.lost) {
        queue.push({ event, chars })
        watcher.chars += chars
      }
      watcher.wake()
    }
  }

  /** Whether somebody watches it. */
  isWatched(workspace: string, threadId: string): boolean {
    return this.#watchers.has(`${workspace}/${threadId}`)
  }

  /** From now on, not from the first look at it: events between are kept. Ends with the signal, or when it is too far behind. */
  watch(workspace: string, threadId: string, signal: AbortSignal): AsyncIterable<ThreadEvent> {
    const key = `${workspace}/${threadId}`
    const watcher: Watcher = { queue: [], chars: 0, wake: () => {}, lost: false }
    const watchers = this.#watchers.get(key) ?? new Set()
    watchers.add(watcher)
    this.#watchers.set(key, watchers)
    const leave = () => {
      watchers.delete(watcher)
      if (watchers.size === 0 && this.#watchers.get(key) === watchers) this.#watchers.delete(key)
      watcher.wake()
    }
    signal.addEventListener('abort', leave, { once: true })
    if (signal.aborted) leave()
    return read(watcher, signal, leave)
  }
}

async function* read(watcher: Watcher, signal: AbortSignal, leave: () => void): AsyncIterable<ThreadEvent> {
  try {
    while (!signal.aborted) {
      const next = watcher.queue.shift()
      if (next !== undefined) {
        watcher.chars -= next.chars
        yield next.event
      } else if (watcher.lost) return
      else {
        const { promise, resolve } = Promise.withResolvers<void>()
        watcher.wake = resolve
        await promise
      }
    }
  } finally {
    signal.removeEventListener('abort', leave)
    leave()
  }
}
