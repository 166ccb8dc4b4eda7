import type { Clock } from '../lib/clock.ts'
import type { Execution, ExecutionEvent } from './execution.ts'

/** What is kept for who comes back with the number of the last event it saw. */
const keptEventsMax = 2048
const keptBytesMax = 8 * 1024 * 1024
/** Of one who watches and is slow: the oldest go first, so that how it ended is heard in any case. */
const unreadEventsMax = 1024
const eventBytes = 1024

export interface WatchFilter {
  workspace: string
  id?: string
  group?: string
  source?: string
}

/** What happens to executions, told in order to whoever watches. Only what lies a short while back is kept, in memory. */
export class ExecutionEvents {
  readonly #clock: Clock
  readonly #isHidden: (source: string) => boolean
  readonly #watchers = new Set<Watcher>()
  #kept: { event: ExecutionEvent; bytes: number }[] = []
  #keptBytes = 0
  #last = 0

  constructor(options: { clock: Clock; isHidden: (source: string) => boolean }) {
    this.#clock = options.clock
    this.#isHidden = options.isHidden
  }

  tell(type: ExecutionEvent['type'], execution: Execution, progress?: Record<string, unknown>): void {
    const at = this.#clock.now()
    // Above what an earlier process gave out, however many it did.
    this.#last = Math.max(this.#last + 1, at * 1000)
    const event: ExecutionEvent = {
      number: this.#last,
      at,
      type,
      execution,
      ...(progress ? { progress } : {}),
    }
    if (!this.#isHidden(execution.source)) this.#keep(event)
    for (const watcher of this.#watchers) if (this.#wants(watcher.filter, event)) watcher.push(event)
  }

  /** From this very call on, also when iterating begins later; after what is kept of events after `since`. */
  watch(filter: WatchFilter, signal: AbortSignal, since?: number): AsyncIterable<ExecutionEvent> {
    const watcher = new Watcher({ ...filter }, () => {
      this.#watchers.delete(watcher)
      signal.removeEventListener('abort', watcher.end)
    })
    if (since !== undefined) for (const event of this.since(filter, since)) watcher.push(event)
    if (signal.aborted) watcher.end()
    else {
      this.#watchers.add(watcher)
      signal.addEventListener('abort', watcher.end, { once: true })
    }
    return watcher
  }

  since(filter: WatchFilter, number: number): ExecutionEvent[] {
    return this.#kept
      .map(({ event }) => event)
      .filter((event) => event.number > number && this.#wants(filter, event))
  }

  close(): void {
    for (const watcher of this.#watchers) watcher.end()
    this.#kept = []
  }

  #wants({ workspace, id, group, source }: WatchFilter, { execution }: ExecutionEvent): boolean {
    if (execution.workspace !== workspace) return false
    if (id !== undefined) return execution.id === id
    if (group !== undefined) return execution.group === group || execution.id === group
    return source === undefined ? !this.#isHidden(execution.source) : execution.source === source
  }

  #keep(event: ExecutionEvent): void {
    const { note, error } = event.execution
    const said = event.progress ? JSON.stringify(event.progress).length : 0
    const noted = Object.keys(note).length > 0 || error ? JSON.stringify([note, error]).length : 0
    const bytes = eventBytes + said + noted
    this.#kept.push({ event, bytes })
    this.#keptBytes += bytes
    if (this.#kept.length < keptEventsMax * 2 && this.#keptBytes < keptBytesMax) return
    // Half at once, so that dropping costs little each time.
    const dropped = this.#kept.splice(0, Math.ceil(this.#kept.length / 2))
    for (const { bytes: less } of dropped) this.#keptBytes -= less
  }
}

class Watcher implements AsyncIterableIterator<ExecutionEvent> {
  readonly filter: WatchFilter
  readonly #onEnd: () => void
  readonly #unread: ExecutionEvent[] = []
  readonly #waiting: ((result: IteratorResult<ExecutionEvent>) => void)[] = []
  #ended = false

  constructor(filter: WatchFilter, onEnd: () => void) {
    this.filter = filter
    this.#onEnd = onEnd
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  push(event: ExecutionEvent): void {
    const waiting = this.#waiting.shift()
    if (waiting) {
      waiting({ done: false, value: event })
      return
    }
    if (this.#unread.length >= unreadEventsMax) this.#unread.shift()
    this.#unread.push(event)
  }

  readonly end = (): void => {
    if (this.#ended) return
    this.#ended = true
    this.#unread.length = 0
    this.#onEnd()
    for (const waiting of this.#waiting.splice(0)) waiting({ done: true, value: undefined })
  }

  async next(): Promise<IteratorResult<ExecutionEvent>> {
    if (this.#ended) return { done: true, value: undefined }
    const event = this.#unread.shift()
    if (event) return { done: false, value: event }
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  async return(): Promise<IteratorResult<ExecutionEvent>> {
    this.end()
    return { done: true, value: undefined }
  }
}
