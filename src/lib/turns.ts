/** So many of something begin in one round of the event loop; whoever is beyond that waits for a later one, and others get served in between. */
export class Turns {
  readonly #atOnce: number
  #taken = 0
  #isCounting = false
  readonly #waiting: (() => void)[] = []

  constructor(atOnce: number) {
    this.#atOnce = atOnce
  }

  /** Null: now. Else resolves once it is its turn, first come first served. */
  take(): Promise<void> | null {
    this.#count()
    if (this.#taken < this.#atOnce) {
      this.#taken++
      return null
    }
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #count(): void {
    if (this.#isCounting) return
    this.#isCounting = true
    setImmediate(() => {
      this.#isCounting = false
      const next = this.#waiting.splice(0, this.#atOnce)
      this.#taken = next.length
      if (next.length > 0) this.#count()
      for (const begin of next) begin()
    })
  }
}

/** Whoever waits for the event loop has its turn before this resolves. */
export function othersTurn(): Promise<void> {
  return new Promise((resume) => setImmediate(resume))
}
