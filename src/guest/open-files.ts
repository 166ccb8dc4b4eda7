import { closeSync } from 'node:fs'
import { isPlainFile } from '../lib/descriptors.ts'
import type { OpenFile } from '../spec/runtime.ts'

/** Of one sandbox, those that are being asked for included. */
export const openFilesMax = 64

/** Files of one sandbox that are open in this process. What hands them over is not trusted. */
export class OpenFiles {
  #taken = 0
  #revoked = new AbortController()

  get full(): boolean {
    return this.#taken >= openFilesMax
  }

  /** A place for one file, given back when it is disposed without one. */
  place(): Place {
    this.#taken++
    return new Place(this.#revoked.signal, () => {
      this.#taken--
    })
  }

  /** The sandbox is gone: whoever has a file is told to let go of it. */
  revoke(): void {
    this.#revoked.abort()
  }
}

class Place implements Disposable {
  #free: (() => void) | null

  constructor(
    private readonly revoked: AbortSignal,
    free: () => void,
  ) {
    this.#free = free
  }

  /** Takes ownership of the descriptor. Null, and closed, when it is not a plain file open for reading. */
  take(descriptor: number): OpenFile | null {
    const free = this.#free
    if (free === null || !isPlainFile(descriptor)) {
      closeSync(descriptor)
      return null
    }
    this.#free = null
    let open = true
    return {
      descriptor,
      revoked: this.revoked,
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
