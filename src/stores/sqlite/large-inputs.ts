import type { InputRoom } from '../../spec/queue.ts'

type Target = Pick<InputRoom['held'][number], 'workspace' | 'target'>

/** The room that there is for large inputs, while a claim hands some out. */
export class LargeInputs {
  readonly #room: InputRoom
  readonly #ofTarget = new Map<string, number>()
  #bytes = 0

  constructor(room: InputRoom) {
    this.#room = room
    for (const { workspace, target, largeBytes } of room.held) this.#add({ workspace, target }, largeBytes)
  }

  /** False: there is no room for it. */
  take(target: Target, bytes: number): boolean {
    const { largeBytesMax, largeBytesOfTargetMax } = this.#room
    const ofTarget = this.#ofTarget.get(nameOf(target)) ?? 0
    if (this.#bytes > 0 && this.#bytes + bytes > largeBytesMax) return false
    if (ofTarget > 0 && ofTarget + bytes > largeBytesOfTargetMax) return false
    this.#add(target, bytes)
    return true
  }

  #add(target: Target, bytes: number): void {
    this.#bytes += bytes
    this.#ofTarget.set(nameOf(target), (this.#ofTarget.get(nameOf(target)) ?? 0) + bytes)
  }
}

function nameOf({ workspace, target }: Target): string {
  return `${workspace}/${target}`
}
