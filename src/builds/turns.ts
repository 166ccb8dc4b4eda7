/** Who waits, of one workspace, in the order they came. */
type Line = Set<() => void>

/** A few at once, the workspaces by turns: one that has many builds waits with them, and nobody else does. */
export class BuildTurns {
  readonly #placesMax: number
  /** In the order of their turns. */
  readonly #waiting = new Map<string, Line>()
  readonly #running = new Map<string, number>()
  #held = 0

  constructor(placesMax: number) {
    this.#placesMax = placesMax
  }

  /** Disposing gives the place back, once. @throws the signal's reason when it aborts first */
  async take(workspace: string, signal: AbortSignal): Promise<Disposable> {
    signal.throwIfAborted()
    if (this.#held < this.#placesMax) this.#enter(workspace)
    else await this.#wait(workspace, signal)
    let holding = true
    return {
      [Symbol.dispose]: () => {
        if (!holding) return
        holding = false
        this.#leave(workspace)
      },
    }
  }

  #wait(workspace: string, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const line: Line = this.#waiting.get(workspace) ?? new Set()
      this.#waiting.set(workspace, line)
      const enter = () => {
        signal.removeEventListener('abort', giveUp)
        this.#enter(workspace)
        resolve()
      }
      const giveUp = () => {
        line.delete(enter)
        if (line.size === 0 && this.#waiting.get(workspace) === line) this.#waiting.delete(workspace)
        reject(signal.reason)
      }
      line.add(enter)
      signal.addEventListener('abort', giveUp, { once: true })
    })
  }

  #enter(workspace: string): void {
    this.#held++
    this.#running.set(workspace, (this.#running.get(workspace) ?? 0) + 1)
  }

  #leave(workspace: string): void {
    this.#held--
    const left = (this.#running.get(workspace) ?? 0) - 1
    if (left > 0) this.#running.set(workspace, left)
    else this.#running.delete(workspace)
    const next = this.#next()
    if (next === null) return
    const line = this.#waiting.get(next)!
    const [enter] = line
    line.delete(enter!)
    // Its next one waits until all others had a turn.
    this.#waiting.delete(next)
    if (line.size > 0) this.#waiting.set(next, line)
    enter!()
  }

  /** Of those with the fewest under way the one that waited longest for a turn. */
  #next(): string | null {
    let best: string | null = null
    for (const workspace of this.#waiting.keys()) {
      if (best === null || this.#runningOf(workspace) < this.#runningOf(best)) best = workspace
    }
    return best
  }

  #runningOf(workspace: string): number {
    return this.#running.get(workspace) ?? 0
  }
}
