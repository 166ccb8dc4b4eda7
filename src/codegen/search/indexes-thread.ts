import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import { WorkerThread } from '../../lib/worker-thread.ts'
import type { FromIndexes, ToIndexes } from './protocol.ts'

export type Answer = Extract<FromIndexes, { ok: true }>
/** Without what this side adds. */
export type Asked = ToIndexes extends infer Message
  ? Message extends ToIndexes
    ? Omit<Message, 'id'>
    : never
  : never

/** A step that takes longer has met a text that was made for it. */
const answerMsMax = 20_000
/** So long after its last use the thread goes, and its memory with it. */
const idleMsMax = 10 * 60_000

interface Pending {
  resolve(answer: Answer): void
  reject(error: unknown): void
  timer: ReturnType<typeof setTimeout>
}

/** The thread of the indexes, there while it is used. When it goes, every index in it is gone. */
export class IndexesThread {
  readonly #log: Logger
  readonly #thread: WorkerThread<ToIndexes, FromIndexes>
  readonly #pending = new Map<number, Pending>()
  #idle: ReturnType<typeof setTimeout> | undefined
  #nextId = 1
  #generation = 0

  constructor(options: { startWorker: () => Bun.Worker; log: Logger }) {
    this.#log = options.log
    this.#thread = new WorkerThread({
      start: options.startWorker,
      onMessage: (answer) => this.#onAnswer(answer),
      onDied: (reason) => this.#lost(reason),
    })
  }

  /** Another number than before: what was in the indexes is lost. */
  get generation(): number {
    return this.#generation
  }

  /** @throws unavailable when the thread ended before it answered */
  ask(asked: Asked): Promise<Answer> {
    clearTimeout(this.#idle)
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#end('did not answer in time'), answerMsMax)
      this.#pending.set(id, { resolve, reject, timer })
      const message = { ...asked, id } as ToIndexes
      const moved =
        message.type === 'update' ? message.add.map(({ bytes }) => bytes.buffer as ArrayBuffer) : []
      this.#thread.send(message, moved)
    })
  }

  close(): void {
    this.#end(null)
  }

  #onAnswer(answer: FromIndexes): void {
    const pending = this.#pending.get(answer.id)
    if (!pending) return
    this.#pending.delete(answer.id)
    clearTimeout(pending.timer)
    if (answer.ok) pending.resolve(answer)
    else pending.reject(failure(answer.reason))
    if (this.#pending.size > 0) return
    this.#idle = setTimeout(() => this.#end(null), idleMsMax)
    this.#idle.unref()
  }

  #end(reason: string | null): void {
    if (!this.#thread.isThere) return
    this.#thread.end()
    this.#lost(reason)
  }

  #lost(reason: string | null): void {
    clearTimeout(this.#idle)
    this.#generation++
    if (reason !== null) this.#log.warn('the index of source files was ended', { reason })
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer)
      reject(failure(reason ?? 'closed'))
    }
    this.#pending.clear()
  }
}

function failure(reason: string): PlatformError {
  return new PlatformError('unprocessable', 'the search failed: try again, or search a smaller directory', {
    cause: reason,
  })
}

/** Where the thread's program is, in the sources and in the executable. */
export function startIndexesWorker(): Bun.Worker {
  const compiled = import.meta.url.startsWith('file:///$bunfs/')
  const module = compiled
    ? '/$bunfs/root/codegen/search/indexes.worker.ts'
    : new URL('./indexes.worker.ts', import.meta.url).href
  return new Worker(module) as unknown as Bun.Worker
}
