import { type ResourceEvent, type ResourceKey, watchBufferMax } from '../../spec/store.ts'
import { decodeRow } from './resources.ts'
import type { ResourceRow } from './schema.ts'

/** A committed change, still in text, so that every watcher decodes a copy of its own. */
export type Change =
  | { type: 'created' | 'updated'; row: ResourceRow }
  | { type: 'removed'; key: ResourceKey; id: string }

interface Filter {
  kind?: string
  workspace?: string
}

/** Hands every committed change to every watcher that wants it, in order. */
export class ChangeFeed {
  readonly #watchers = new Set<Watcher>()

  emit(change: Change): void {
    const { kind, workspace } = change.type === 'removed' ? change.key : change.row
    for (const watcher of this.#watchers) {
      const { filter } = watcher
      if (filter.kind !== undefined && filter.kind !== kind) continue
      if (filter.workspace !== undefined && filter.workspace !== workspace) continue
      watcher.push(change)
    }
  }

  /** Changes may have been committed that nobody heard of. */
  lose(): void {
    for (const watcher of this.#watchers) watcher.lose()
  }

  /** Watches from this very call on, also when iterating begins later. */
  watch(filter: Filter, signal: AbortSignal): AsyncIterable<ResourceEvent> {
    const watcher = new Watcher({ ...filter }, () => {
      this.#watchers.delete(watcher)
      signal.removeEventListener('abort', watcher.end)
    })
    if (signal.aborted) {
      watcher.end()
    } else {
      this.#watchers.add(watcher)
      signal.addEventListener('abort', watcher.end, { once: true })
    }
    return watcher
  }

  close(): void {
    for (const watcher of this.#watchers) watcher.end()
  }
}

class Watcher implements AsyncIterableIterator<ResourceEvent> {
  readonly filter: Filter
  readonly #onEnd: () => void
  #buffer: (Change | { type: 'lost' })[] = []
  /** Index of the next one to hand out: shifting a long array would cost its length each time. */
  #head = 0
  #waiting: ((result: IteratorResult<ResourceEvent>) => void)[] = []
  #ended = false

  constructor(filter: Filter, onEnd: () => void) {
    this.filter = filter
    this.#onEnd = onEnd
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  push(change: Change | { type: 'lost' }): void {
    const waiting = this.#waiting.shift()
    if (waiting) waiting({ done: false, value: decodeChange(change) })
    else if (this.#buffer.length - this.#head >= watchBufferMax) this.lose()
    else this.#buffer.push(change)
  }

  lose(): void {
    this.#buffer = []
    this.#head = 0
    this.push({ type: 'lost' })
  }

  readonly end = (): void => {
    if (this.#ended) return
    this.#ended = true
    this.#buffer = []
    this.#head = 0
    this.#onEnd()
    for (const waiting of this.#waiting.splice(0)) waiting({ done: true, value: undefined })
  }

  async next(): Promise<IteratorResult<ResourceEvent>> {
    if (this.#ended) return { done: true, value: undefined }
    const change = this.#buffer[this.#head]
    if (change === undefined) return new Promise((resolve) => this.#waiting.push(resolve))
    this.#head++
    if (this.#head >= 256 || this.#head === this.#buffer.length) {
      this.#buffer.splice(0, this.#head)
      this.#head = 0
    }
    return { done: false, value: decodeChange(change) }
  }

  async return(): Promise<IteratorResult<ResourceEvent>> {
    this.end()
    return { done: true, value: undefined }
  }
}

function decodeChange(change: Change | { type: 'lost' }): ResourceEvent {
  if (change.type === 'lost') return { type: 'lost' }
  if (change.type === 'removed') return { type: 'removed', key: { ...change.key }, id: change.id }
  return { type: change.type, resource: decodeRow(change.row) }
}
