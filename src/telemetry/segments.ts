import { appendFile, mkdir, readdir, readFile, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'

/** Small, so that reading one does not hold up what else is to be answered. */
export const segmentBytesMax = 256 * 1024
/** What was written on another day is in another file, so that it can go on another day. */
const segmentUsMax = 24 * 60 * 60 * 1_000_000

interface Segment {
  name: string
  /** Of its first line, in microseconds since the epoch. */
  firstUs: number
  bytes: number
}

/** The lines of one workload, in files that follow each other. The oldest go as new ones come. */
export class Segments {
  readonly #dir: string
  readonly #bytesMax: number
  #known: Segment[] | null = null
  /** A write broke off: what comes next begins with a line of its own. */
  #torn = false

  constructor(dir: string, bytesMax: number) {
    this.#dir = dir
    this.#bytesMax = bytesMax
  }

  /** Adds whole lines; one call at a time. Answers by how many bytes the files have grown, or shrunk. */
  async append(text: string, firstUs: number): Promise<number> {
    this.#known ??= await this.#list()
    const segments = this.#known
    let last = segments.at(-1)
    if (last === undefined || last.bytes >= segmentBytesMax || firstUs - last.firstUs > segmentUsMax) {
      const at = Math.max(firstUs, (last?.firstUs ?? 0) + 1)
      last = { name: nameOf(at), firstUs: at, bytes: 0 }
      segments.push(last)
    }
    const bytes = Buffer.from(this.#torn ? `\n${text}` : text)
    this.#torn = true
    await this.#write(join(this.#dir, last.name), bytes)
    this.#torn = false
    last.bytes += bytes.length
    let grown = bytes.length
    for (let sum = sumOf(segments); sum > this.#bytesMax && segments.length > 1; ) {
      const oldest = segments.shift()!
      await rm(join(this.#dir, oldest.name), { force: true })
      sum -= oldest.bytes
      grown -= oldest.bytes
    }
    return grown
  }

  /** What is there is to be looked at again: somebody else removed files. */
  forget(): void {
    this.#known = null
  }

  /** The text of each file that may have lines of the time, newest first. */
  async *newestFirst(fromUs: number, toUs: number): AsyncGenerator<string> {
    const segments = await this.#list()
    for (let at = segments.length - 1; at >= 0; at--) {
      if (segments[at]!.firstUs > toUs) continue
      const next = segments[at + 1]
      if (next !== undefined && next.firstUs <= fromUs) return
      const text = await readFile(join(this.#dir, segments[at]!.name), 'utf8').catch(() => null)
      if (text !== null) yield text
    }
  }

  async #write(path: string, bytes: Uint8Array): Promise<void> {
    const write = () => appendFile(path, bytes, { mode: 0o600 })
    await write().catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error
      await mkdir(this.#dir, { recursive: true, mode: 0o700 })
      await write()
    })
  }

  async #list(): Promise<Segment[]> {
    const names = await readdir(this.#dir).catch(() => [] as string[])
    const segments: Segment[] = []
    for (const name of names.sort()) {
      const firstUs = firstUsOf(name)
      const bytes = firstUs === null ? null : await bytesOf(join(this.#dir, name))
      if (firstUs !== null && bytes !== null) segments.push({ name, firstUs, bytes })
    }
    return segments
  }
}

async function bytesOf(path: string): Promise<number | null> {
  return await stat(path).then(
    ({ size }) => size,
    () => null,
  )
}

function sumOf(segments: Segment[]): number {
  return segments.reduce((sum, { bytes }) => sum + bytes, 0)
}

function nameOf(firstUs: number): string {
  return `${String(firstUs).padStart(16, '0')}.log`
}

/** Null for what is no file of lines. */
export function firstUsOf(name: string): number | null {
  const digits = /^(\d{16})\.log$/.exec(name)?.[1]
  return digits === undefined ? null : Number(digits)
}
