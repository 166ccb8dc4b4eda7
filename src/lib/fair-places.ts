import type { Clock } from './clock.ts'

export interface FairPlacesOptions {
  /** In all. */
  placesMax: number
  /** How many of one holder may wait; with one more, the one that waited longest gives up. */
  waitingMax: number
  /** Whoever waits longer gives up when its turn comes. */
  waitMsMax: number
  clock: Clock
}

interface Waiting {
  since: number
  enter: (entered: boolean) => void
}

/** What a holder may have is this part of what is free: however many are greedy, something stays free for the next. */
const partOfFree = 1 / 16

/**
 * Places for many holders that do not trust each other. One alone gets a seventeenth of all places, a hundred that want
 * everything come to have a 116th each; those that wait come in by turns, holder after holder.
 */
export class FairPlaces {
  readonly #options: FairPlacesOptions
  readonly #held = new Map<string, number>()
  /** By holder, in the order of their turns. */
  readonly #waiting = new Map<string, Waiting[]>()
  #heldInAll = 0

  constructor(options: FairPlacesOptions) {
    this.#options = options
  }

  /** Null: gave up. Disposing gives the place back, once. */
  async take(holder: string): Promise<Disposable | null> {
    const { waitingMax, clock } = this.#options
    const waiting = this.#waiting.get(holder)
    if (waiting === undefined && this.#mayEnter(holder)) this.#enter(holder)
    else {
      const entered = await new Promise<boolean>((enter) => {
        const line = waiting ?? []
        if (waiting === undefined) this.#waiting.set(holder, line)
        line.push({ since: clock.monotonic(), enter })
        if (line.length > waitingMax) line.shift()?.enter(false)
      })
      if (!entered) return null
    }
    let holding = true
    return {
      [Symbol.dispose]: () => {
        if (!holding) return
        holding = false
        this.#leave(holder)
      },
    }
  }

  #mayEnter(holder: string): boolean {
    const free = this.#options.placesMax - this.#heldInAll
    return free > 0 && (this.#held.get(holder) ?? 0) < Math.max(1, free * partOfFree)
  }

  #enter(holder: string): void {
    this.#heldInAll++
    this.#held.set(holder, (this.#held.get(holder) ?? 0) + 1)
  }

  #leave(holder: string): void {
    this.#heldInAll--
    const left = (this.#held.get(holder) ?? 0) - 1
    if (left > 0) this.#held.set(holder, left)
    else this.#held.delete(holder)
    // A place that is free may let in one of several holders, whose turn decides.
    for (const [next, line] of [...this.#waiting]) {
      if (!this.#mayEnter(next)) continue
      this.#waiting.delete(next)
      if (this.#admit(next, line)) this.#waiting.set(next, line)
    }
  }

  /** The first of a line that did not give up; true when others stay. */
  #admit(holder: string, line: Waiting[]): boolean {
    const now = this.#options.clock.monotonic()
    for (let first = line.shift(); first; first = line.shift()) {
      const entered = now - first.since <= this.#options.waitMsMax
      if (entered) this.#enter(holder)
      first.enter(entered)
      if (entered) break
    }
    return line.length > 0
  }
}
