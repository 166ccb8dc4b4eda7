/** A message on its way to the client. */
interface Kept {
  sequence: number
  text: string
  isAnswer: boolean
}

/** `release` is to be called once nobody reads any more. */
export interface Reading {
  messages: AsyncGenerator<string>
  release(): void
}

/** Who listens to an outlet now. */
interface Reader {
  next: number
  wake: () => void
}

/** What is kept of one outlet for a client that comes back; the oldest goes first. */
const keptBytesMax = 4 * 1024 * 1024
const keptMessagesMax = 1024
/** What a reader has not taken yet, before whoever speaks has to wait for it. */
const untakenBytesMax = 1024 * 1024

/**
 * One way from a session to its client: the answer to one POST, or the stream that a GET opens. Messages have numbers, so
 * that a client whose connection broke goes on where it was.
 */
export class Outlet {
  /** Resolves once the way to answer is clear: something came that is no answer, or all has come. */
  readonly begun: Promise<void>
  readonly #begun = Promise.withResolvers<void>()
  #kept: Kept[] = []
  #keptBytes = 0
  #sequence = 0
  /** Nobody has taken this one yet, nor what is behind it. */
  #untaken = 0
  #reader: Reader | null = null
  #closed = false
  #mixed = false
  #taken = Promise.withResolvers<void>()

  constructor(readonly name: string) {
    this.begun = this.#begun.promise
  }

  get listenedTo(): boolean {
    return this.#reader !== null
  }

  /** Everything that will ever come, when it is answers alone; null otherwise. */
  get answers(): string[] | null {
    return this.#closed && !this.#mixed ? this.#kept.map(({ text }) => text) : null
  }

  /** Its reader has more to take than it should. */
  get crowded(): boolean {
    const next = this.#reader?.next ?? this.#sequence
    const untaken = this.#kept.filter(({ sequence }) => sequence >= next)
    return untaken.reduce((bytes, { text }) => bytes + text.length, 0) > untakenBytesMax
  }

  get keptBytes(): number {
    return this.#keptBytes
  }

  /** Resolves when the reader took something, or is gone. */
  taken(): Promise<void> {
    return this.#taken.promise
  }

  push(text: string, isAnswer: boolean): void {
    this.#kept.push({ sequence: this.#sequence++, text, isAnswer })
    this.#keptBytes += text.length
    this.#forget()
    if (!isAnswer) {
      this.#mixed = true
      this.#begun.resolve()
    }
    this.#reader?.wake()
  }

  /** Whoever reads does not keep up: it has to come back. */
  dismiss(): void {
    const reader = this.#reader
    this.#reader = null
    reader?.wake()
    this.#tellTaken()
  }

  /** Nothing more comes. */
  close(): void {
    this.#closed = true
    this.#begun.resolve()
    this.#reader?.wake()
  }

  /**
   * From the message behind `after` on, or what nobody has taken. One reader at a time: the one before is sent away.
   * `primed`: the client is told first where it is, so that it can come back though it got nothing yet.
   */
  read({ primed, after = null }: { primed: boolean; after?: number | null }): Reading {
    const previous = this.#reader
    const reader: Reader = { next: after === null ? this.#untaken : after + 1, wake: () => {} }
    this.#reader = reader
    previous?.wake()
    this.#tellTaken()
    const release = () => {
      if (this.#reader === reader) this.#reader = null
      reader.wake()
      this.#tellTaken()
    }
    return { messages: this.#messages(reader, primed, release), release }
  }

  /** The oldest, as far as it was taken or nobody waits for it; the newest stays, however long it is. */
  #forget(): void {
    while (this.#keptBytes > keptBytesMax || this.#kept.length > keptMessagesMax) {
      const [oldest] = this.#kept
      const taken = this.#reader !== null && oldest !== undefined && oldest.sequence < this.#reader.next
      if (oldest === undefined || this.#kept.length === 1 || (oldest.isAnswer && !taken)) return
      if (this.#reader !== null && !taken) return
      this.#kept.shift()
      this.#keptBytes -= oldest.text.length
    }
  }

  async *#messages(reader: Reader, primed: boolean, release: () => void): AsyncGenerator<string> {
    try {
      if (primed) yield `id: ${this.name}-${reader.next === 0 ? 'start' : reader.next - 1}\ndata: \n\n`
      for (;;) {
        if (this.#reader !== reader) return
        const message = this.#kept.find(({ sequence }) => sequence >= reader.next)
        if (message !== undefined) {
          reader.next = message.sequence + 1
          this.#untaken = Math.max(this.#untaken, reader.next)
          yield `id: ${this.name}-${message.sequence}\nevent: message\ndata: ${message.text}\n\n`
          this.#forget()
          this.#tellTaken()
          continue
        }
        if (this.#closed) return
        await new Promise<void>((resolve) => {
          reader.wake = resolve
        })
      }
    } finally {
      release()
    }
  }

  #tellTaken(): void {
    this.#taken.resolve()
    this.#taken = Promise.withResolvers<void>()
  }
}
