import { BoundedMap } from '../../lib/bounded-map.ts'
import type { RpcId } from './messages.ts'
import { CallCancelled } from './tool.ts'

/** Ended sessions that are remembered, so that they stay ended. */
const endedSessionsMax = 10_000
/** In one place, of all its clients together; each is a request that is being answered. */
const callsMax = 256

/**
 * Calls under way. The protocol sends a cancellation as a request of its own, which finds its call here by session. A
 * session is nothing but that: it holds no state, and one that this process has never heard of is as good as any, so
 * that clients outlive a restart of the platform.
 */
export class CallsUnderWay {
  readonly #calls = new Map<string, AbortController>()
  readonly #perPlace = new Map<string, number>()
  readonly #ended = new BoundedMap<string, true>(endedSessionsMax)

  /** Null when there are too many in this place. To be ended by the caller. */
  begin(place: string, session: string | null, id: RpcId): { signal: AbortSignal; end(): void } | null {
    const count = this.#perPlace.get(place) ?? 0
    if (count >= callsMax) return null
    this.#perPlace.set(place, count + 1)
    const controller = new AbortController()
    const key = session === null ? null : keyOf(place, session, id)
    if (key !== null) this.#calls.set(key, controller)
    return {
      signal: controller.signal,
      end: () => {
        if (key !== null && this.#calls.get(key) === controller) this.#calls.delete(key)
        const left = (this.#perPlace.get(place) ?? 1) - 1
        if (left > 0) this.#perPlace.set(place, left)
        else this.#perPlace.delete(place)
      },
    }
  }

  /** A call that is not under way (any more) is no concern. */
  cancel(place: string, session: string | null, id: RpcId, reason: string): void {
    if (session !== null) this.#calls.get(keyOf(place, session, id))?.abort(new CallCancelled(reason))
  }

  isEnded(place: string, session: string): boolean {
    return this.#ended.get(keyOf(place, session, '')) === true
  }

  endSession(place: string, session: string): void {
    this.#ended.set(keyOf(place, session, ''), true)
    const prefix = `${place}\n${session}\n`
    for (const [key, controller] of this.#calls) {
      if (key.startsWith(prefix)) controller.abort(new CallCancelled('the session was ended'))
    }
  }

  get size(): number {
    let calls = 0
    for (const count of this.#perPlace.values()) calls += count
    return calls
  }
}

/** Neither a place nor a session holds a line break. */
function keyOf(place: string, session: string, id: RpcId): string {
  return `${place}\n${session}\n${typeof id === 'number' ? '#' : '"'}${id}`
}
