import type { Logger } from '../lib/log.ts'
import type { NewWork, Queue, Work, WorkChange } from '../spec/queue.ts'
import type { Execution } from './execution.ts'
import { isEnded, toExecution } from './records.ts'

/** Somebody else changed it in between so often: nobody can be that busy with one execution. */
const racesMax = 50

export type Decision = Omit<WorkChange, 'id' | 'follow'>

export interface TransitionsOptions {
  queue: Queue
  log: Logger
  /** What follows when it ended so; made in the same transaction. */
  follow(execution: Execution, result: Uint8Array | null): NewWork[]
  changed(work: Work, previous: Work): void
  followed(work: Work): void
  /** The last part of a group ended. */
  groupEnded(group: string): void
}

/** The one way in which an execution changes: decided on what it is now, written only if it is that still. */
export class Transitions {
  readonly #options: TransitionsOptions

  constructor(options: TransitionsOptions) {
    this.#options = options
  }

  /**
   * `decide` may be called again, when something else changed it in between; null: leave it as it is. Answers what it
   * became; null when it was left, or there is none.
   */
  async change(id: string, decide: (work: Work) => Decision | null): Promise<Work | null> {
    const { queue } = this.#options
    for (let race = 0; race < racesMax; race++) {
      const work = queue.get(id)
      const decision = work && decide(work)
      if (!work || !decision || !holds(work, decision.expect)) return null
      const changed = await queue.change({
        ...decision,
        id,
        expect: { ...decision.expect, version: work.version },
        follow: this.#follow(work, decision),
      })
      if (!changed) continue
      this.#options.changed(changed.work, work)
      for (const followed of changed.followed) this.#options.followed(followed)
      if (changed.groupPartsLeft === 0 && work.group !== null) this.#options.groupEnded(work.group)
      return changed.work
    }
    this.#options.log.error('executions: a change was overtaken again and again', { id })
    return null
  }

  #follow(work: Work, { state, body, result, labels }: Decision): NewWork[] {
    if (state === undefined || isEnded(work)) return []
    const after: Work = { ...work, state, body: body ?? work.body, labels: labels ?? work.labels }
    if (!isEnded(after)) return []
    const { queue, follow } = this.#options
    const kept = result ?? (work.resultBytes > 0 ? queue.result(work.id) : null)
    return follow(toExecution({ ...after, resultBytes: kept?.byteLength ?? 0 }), kept)
  }
}

function holds(work: Work, { token, states }: Decision['expect']): boolean {
  return (token === undefined || token === work.token) && (states?.includes(work.state) ?? true)
}
