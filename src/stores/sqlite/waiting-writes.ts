import type { Mutation } from './protocol.ts'

export const groupMutationsMax = 256
const groupBytesMax = 8 * 1024 * 1024
/** Of a group, of what goes on by itself: a request that comes while a burst is worked off waits for that many, not for a whole group. */
const ownMutationsMax = 64

export interface WaitingWrite {
  mutation: Mutation
  bytes: number
}

/**
 * What waits to be written, in two lines: what somebody asked for, and how work goes on that was accepted before (claims and
 * ends). Each keeps its order, and of each group both have their part.
 */
export class WaitingWrites<Write extends WaitingWrite> {
  readonly #asked: Write[] = []
  readonly #own: Write[] = []
  #bytes = 0
  #isOwnTurn = false

  get length(): number {
    return this.#asked.length + this.#own.length
  }

  get bytes(): number {
    return this.#bytes
  }

  push(write: Write): void {
    this.#bytes += write.bytes
    this.#lineOf(write).push(write)
  }

  /** Those of a group, before all others. */
  putBack(group: readonly Write[]): void {
    for (const write of group.toReversed()) {
      this.#bytes += write.bytes
      this.#lineOf(write).unshift(write)
    }
  }

  /** The next group, of at most so many. */
  take(mutationsMax = groupMutationsMax): Write[] {
    const ownMax = Math.min(this.#own.length, ownMutationsMax, mutationsMax)
    // By turns, as what is large leaves no room in a group for the other line.
    this.#isOwnTurn = this.#own.length > 0 && (!this.#isOwnTurn || this.#asked.length === 0)
    const room = { bytes: groupBytesMax, isEmpty: true }
    if (this.#isOwnTurn) {
      const own = taken(this.#own, ownMax, room)
      return this.#without([...taken(this.#asked, mutationsMax - own.length, room), ...own])
    }
    const leftForOwn = mutationsMax > 1 ? ownMax : 0
    const asked = taken(this.#asked, mutationsMax - leftForOwn, room)
    return this.#without([...asked, ...taken(this.#own, Math.min(ownMax, mutationsMax - asked.length), room)])
  }

  #without(group: Write[]): Write[] {
    for (const { bytes } of group) this.#bytes -= bytes
    return group
  }

  #lineOf({ mutation }: Write): Write[] {
    return mutation.every(({ op }) => op.startsWith('work-') && op !== 'work-add') ? this.#own : this.#asked
  }
}

/** The first of a line, while there is room for them in their group; one that is alone always has it. */
function taken<Write extends WaitingWrite>(
  line: Write[],
  max: number,
  room: { bytes: number; isEmpty: boolean },
): Write[] {
  let count = 0
  for (const { bytes } of line) {
    if (count === max || (!room.isEmpty && bytes > room.bytes)) break
    room.bytes -= bytes
    room.isEmpty = false
    count++
  }
  return line.splice(0, count)
}
