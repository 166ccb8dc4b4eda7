import { KeyedLock } from '../../lib/keyed-lock.ts'
import type { Logger } from '../../lib/log.ts'
import { Semaphore } from '../../lib/semaphore.ts'
import type { Guest } from '../../spec/guest.ts'
import type { Found } from './code-index.ts'
import { IndexesThread, startIndexesWorker } from './indexes-thread.ts'
import { readSource, type Source, sourcesBelow } from './sources.ts'

const indexBytesMaxDefault = 32 * 1024 * 1024
/** Of all machines; the index that was used longest ago goes first. */
const indexesBytesMax = 96 * 1024 * 1024
const indexesMax = 64
/** Reading stops then; what was not read is read by the next search. */
const readMsMax = 45_000
const readsAtOnce = 8
const updateBytesMax = 1024 * 1024
const searchesAtOnce = 4
const searchesWaitingMax = 32

export interface CodebaseQuestion {
  query: string
  /** Absolute, without a slash at the end. */
  directories: string[]
  /** Where the .gitignore is, if there is one. Absolute. */
  project: string
  resultsMax: number
  perFileMax: number
}

export interface CodebaseAnswer {
  found: Found[]
  /** Of the directories asked for. */
  files: number
  /** False: there are more files than are read, or than could be read in time. */
  complete: boolean
}

interface MachineIndex {
  number: number
  generation: number
  /** What the thread has read, by path; null where there is nothing to be found in. */
  known: Map<string, Pick<Source, 'size' | 'modifiedMs'> & { indexed: boolean }>
  bytes: number
  usedAt: number
}

/**
 * Search by words and concepts in the files of machines, without anyone outside. Each machine has one index, made when
 * it is first searched and brought up to date, by size and time of modification, by every search.
 */
export class CodebaseSearch {
  readonly #thread: IndexesThread
  /** Of one machine. */
  readonly #indexBytesMax: number
  readonly #byGuest = new WeakMap<Guest, MachineIndex>()
  readonly #indexes = new Map<number, MachineIndex>()
  readonly #locks = new KeyedLock()
  readonly #places = new Semaphore({
    concurrencyMax: searchesAtOnce,
    waitingMax: searchesWaitingMax,
    what: 'searches are under way',
  })
  #nextNumber = 1

  constructor(options: { log: Logger; startWorker?: () => Bun.Worker; indexBytesMax?: number }) {
    const { log, startWorker = startIndexesWorker, indexBytesMax = indexBytesMaxDefault } = options
    this.#thread = new IndexesThread({ log, startWorker })
    this.#indexBytesMax = indexBytesMax
  }

  /** @throws not_found for a directory that is none, too_many_requests, unprocessable when the index failed */
  async search(
    guest: Guest,
    { directories, project, ...question }: CodebaseQuestion,
    options: { signal: AbortSignal; progress?: ((read: number, total: number) => void) | undefined },
  ): Promise<CodebaseAnswer> {
    const index = this.#indexOf(guest)
    return this.#locks.run(String(index.number), () =>
      this.#places.run(async () => {
        options.signal.throwIfAborted()
        if (index.generation !== this.#thread.generation) this.#forget(index)
        index.usedAt = performance.now()
        let files = 0
        let complete = true
        for (const directory of directories) {
          const synced = await this.#sync(guest, index, { root: directory, project }, options)
          files += synced.files
          complete &&= synced.complete
        }
        const below = directories.map((directory) => (directory === '/' ? '/' : `${directory}/`))
        const answer = await this.#thread.ask({
          type: 'search',
          index: index.number,
          question: { ...question, directories: below },
        })
        return { found: answer.found, files, complete }
      }, options.signal),
    )
  }

  close(): void {
    this.#thread.close()
  }

  #indexOf(guest: Guest): MachineIndex {
    const known = this.#byGuest.get(guest)
    if (known) {
      this.#indexes.set(known.number, known)
      return known
    }
    const index: MachineIndex = {
      number: this.#nextNumber++,
      generation: this.#thread.generation,
      known: new Map(),
      bytes: 0,
      usedAt: performance.now(),
    }
    this.#byGuest.set(guest, index)
    this.#indexes.set(index.number, index)
    return index
  }

  /** What has nothing to be found in, or could not be taken apart, is not tried again. */
  #forget(index: MachineIndex): void {
    for (const [path, { indexed }] of index.known) if (indexed) index.known.delete(path)
    index.bytes = 0
    index.generation = this.#thread.generation
  }

  /** Reads what is new or changed below a directory, and drops what is gone. */
  async #sync(
    guest: Guest,
    index: MachineIndex,
    place: { root: string; project: string },
    {
      signal,
      progress,
    }: { signal: AbortSignal; progress?: ((read: number, total: number) => void) | undefined },
  ): Promise<{ files: number; complete: boolean }> {
    const { sources, complete: listed } = await sourcesBelow(guest.files, place, signal)
    const present = new Set(sources.map(({ path }) => path))
    const prefix = place.root === '/' ? '/' : `${place.root}/`
    const remove = [...index.known.keys()].filter((path) => path.startsWith(prefix) && !present.has(path))
    for (const path of remove) index.known.delete(path)
    if (remove.length > 0) await this.#update(index, [], remove)
    const waiting = sources.filter(({ path, size, modifiedMs }) => {
      const known = index.known.get(path)
      return known?.size !== size || known.modifiedMs !== modifiedMs
    })
    const total = waiting.length
    const deadline = performance.now() + readMsMax
    let read = 0
    let bytesLeft = this.#indexBytesMax - index.bytes
    let complete = listed
    let batch: { source: Source; bytes: Uint8Array }[] = []
    let batchBytes = 0
    const flush = async () => {
      const [full, bytes] = [batch, batchBytes]
      batch = []
      batchBytes = 0
      if (bytes > 0) await this.#update(index, full, [])
    }
    const reader = async () => {
      for (let source = waiting.shift(); source; source = waiting.shift()) {
        if (performance.now() > deadline || bytesLeft < source.size) {
          complete = false
          return
        }
        bytesLeft -= source.size
        const bytes = await readSource(guest.files, source.path, signal)
        progress?.(++read, total)
        if (bytes) {
          batch.push({ source, bytes })
          batchBytes += bytes.length
        } else {
          // Remembered too, so that it is not read again as long as it stays as it is.
          index.known.set(source.path, { size: source.size, modifiedMs: source.modifiedMs, indexed: false })
        }
        if (batchBytes >= updateBytesMax) await flush()
      }
    }
    await Promise.all(Array.from({ length: readsAtOnce }, reader))
    await flush()
    this.#makeRoom(index)
    let files = 0
    for (const { path } of sources) if (index.known.get(path)?.indexed) files++
    return { files, complete }
  }

  async #update(
    index: MachineIndex,
    add: { source: Source; bytes: Uint8Array }[],
    remove: string[],
  ): Promise<void> {
    let indexed = false
    try {
      const answer = await this.#thread.ask({
        type: 'update',
        index: index.number,
        add: add.map(({ source, bytes }) => ({ path: source.path, bytes })),
        remove,
      })
      index.bytes = answer.bytes
      indexed = true
    } finally {
      for (const { source } of add) {
        index.known.set(source.path, { size: source.size, modifiedMs: source.modifiedMs, indexed })
      }
    }
  }

  #makeRoom(used: MachineIndex): void {
    const others = [...this.#indexes.values()].filter((index) => index !== used)
    others.sort((a, b) => a.usedAt - b.usedAt)
    let bytes = others.reduce((sum, index) => sum + index.bytes, used.bytes)
    let count = others.length + 1
    for (const index of others) {
      if (bytes <= indexesBytesMax && count <= indexesMax) return
      // One that is being searched now goes when it is done.
      if (this.#locks.isHeld(String(index.number))) continue
      bytes -= index.bytes
      count--
      this.#forget(index)
      this.#indexes.delete(index.number)
      this.#thread.ask({ type: 'drop', index: index.number }).catch(() => {})
    }
  }
}
