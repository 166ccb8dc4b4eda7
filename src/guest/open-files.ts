import { closeSync } from 'node:fs'
import { plainFileBytes } from '../lib/descriptors.ts'
import type { OpenFile } from '../spec/guest.ts'

/** Of one sandbox, those that are being asked for included. */
export const openFilesMax = 64

/** Files of one sandbox that are open in this process. What hands them over is not trusted. */
export class OpenFiles {
  #taken = 0
  #revoked = false

  get full(): boolean {
    return this.#taken >= openFilesMax
  }

  /** A place for one file, given back when it is disposed without one. */
  place(): Place {
    this.#taken++
    return new Place(
      () => this.#revoked,
      () => {
        this.#taken--
      },
    )
  }

  /** The sandbox is gone: whoever has a file is to let go of it. */
  revoke(): void {
    this.#revoked = true
  }
}

class Place implements Disposable {
  #free: (() => void) | null

  constructor(
    private readonly isRevoked: () => boolean,
    free: () => void,
  ) {
    this.#free = free
  }

  /** Takes ownership of the descriptor. Null, and closed, when it is not a plain file open for reading. */
  take(descriptor: number): OpenFile | null {
    const free = this.#free
    const bytes = plainFileBytes(descriptor)
    if (free === null || bytes === null) {
      closeSync(descriptor)
      return null
    }
    this.#free = null
    const { isRevoked } = this
    let open = true
    return {
      descriptor,
      bytes,
      get revoked() {
        return isRevoked()
      },
      [Symbol.dispose]() {
        if (!open) return
        open = false
        closeSync(descriptor)
        free()
      },
    }
  }

  [Symbol.dispose](): void {
    this.#free?.()
    this.#free = null
  }
}
