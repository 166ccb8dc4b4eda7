export interface WorkerThreadOptions<From> {
  start: () => Bun.Worker
  /** It is there, and nothing was sent to it yet. */
  onStart?: () => void
  onMessage(message: From): void
  /** It ended by itself. Whoever waits for an answer of it gets none; the next message begins another. */
  onDied(reason: string): void
}

/** What a thread says that was asked to close. */
const closed = 'closed'

/** A thread that is begun when something is first sent to it, and again after it died. The program may end while it rests. */
export class WorkerThread<To, From> {
  readonly #options: WorkerThreadOptions<From>
  #worker: Bun.Worker | null = null
  #onClosed: (() => void) | null = null

  constructor(options: WorkerThreadOptions<From>) {
    this.#options = options
  }

  get isThere(): boolean {
    return this.#worker !== null
  }

  /** Unless it is there. */
  begin(): void {
    if (this.#worker === null) this.#begin()
  }

  /** `moved` is no longer here. @throws for what no thread can be given */
  send(message: To, moved: ArrayBuffer[] = []): void {
    const worker = this.#worker ?? this.#begin()
    worker.postMessage(message, moved)
  }

  /** The program waits for it from now on, until it rests. */
  works(): void {
    const worker = this.#worker ?? this.#begin()
    worker.ref()
  }

  rests(): void {
    this.#worker?.unref()
  }

  /** Has it end what it holds, as `message` asks it; resolves once it said so, or died. */
  async close(message: To): Promise<void> {
    const worker = this.#worker
    if (worker === null) return
    await new Promise<void>((resolve) => {
      this.#onClosed = resolve
      worker.ref()
      worker.postMessage(message)
    })
    this.end()
  }

  /** At once, without a word. */
  end(): void {
    const worker = this.#worker
    this.#worker = null
    worker?.terminate()
  }

  #begin(): Bun.Worker {
    const worker = this.#options.start()
    this.#worker = worker
    worker.addEventListener('message', (event) => {
      if (worker !== this.#worker) return
      const { data } = event as unknown as { data: From & { type?: unknown } }
      if (data.type === closed) this.#onClosed?.()
      else this.#options.onMessage(data)
    })
    worker.onerror = (event) => {
      event.preventDefault()
      this.#died(worker, event.message)
    }
    worker.addEventListener('close', () => this.#died(worker, 'it ended'))
    worker.unref()
    this.#options.onStart?.()
    return worker
  }

  #died(worker: Bun.Worker, reason: string): void {
    if (worker !== this.#worker) return
    this.end()
    this.#onClosed?.()
    this.#options.onDied(reason)
  }
}
