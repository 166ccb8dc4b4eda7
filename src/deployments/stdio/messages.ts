const newline = 10

/**
 * Cuts what a program writes into its messages, one a line. A line that is longer than `bytesMax` ends everything: what it
 * was meant to answer would be missing.
 */
export class MessageCutter {
  readonly #bytesMax: number
  #begun: Uint8Array[] = []
  #begunBytes = 0

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** Whole messages, without their ends and without blank lines. Null once a line is too long. */
  push(data: Uint8Array): string[] | null {
    const messages: string[] = []
    let start = 0
    for (;;) {
      const end = data.indexOf(newline, start)
      const piece = data.subarray(start, end === -1 ? data.length : end)
      if (this.#begunBytes + piece.length > this.#bytesMax) return null
      if (end === -1) {
        // A copy: the memory of what was read is used again.
        if (piece.length > 0) this.#begun.push(new Uint8Array(piece))
        this.#begunBytes += piece.length
        return messages
      }
      const text = Buffer.concat([...this.#begun, piece])
        .toString()
        .trim()
      if (text !== '') messages.push(text)
      this.#begun = []
      this.#begunBytes = 0
      start = end + 1
    }
  }
}
