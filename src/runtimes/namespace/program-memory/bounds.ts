import { readdir, stat, statfs } from 'node:fs/promises'
import type { Clock } from '../../../lib/clock.ts'

const lookMs = 100
const blockBytes = 512

/** What keeping or putting back the memory of one instance may take. */
export interface Bounds {
  clock: Clock
  /** Clock.monotonic(). */
  deadline: number
  /** What is said when that comes. */
  late: string
  /** Aborted when the platform does not want it any more. */
  signal?: AbortSignal | undefined
  /** Why it cannot go on; null: it can. */
  trouble?: () => string | null
  /** Absent: nothing is written. */
  written?: { dir: string; bytesMax: number; filesMax: number; freeBytesMin: number }
}

/** Runs `work`, which ends soon after `stop` was aborted. @throws the reason of that, in words for people */
export async function withinBounds<Result>(
  bounds: Bounds,
  work: (stop: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const { clock, deadline, late, signal, trouble, written } = bounds
  const over = new AbortController()
  const stop = new AbortController()
  const watching = (async () => {
    let restMs = lookMs
    for (;;) {
      await clock.sleep(Math.max(0, Math.min(restMs, deadline - clock.monotonic())), over.signal)
      if (clock.monotonic() >= deadline) return stop.abort(new Error(late))
      const began = clock.monotonic()
      const reason = trouble?.() ?? (written === undefined ? null : await excessOf(written))
      if (reason !== null) return stop.abort(new Error(reason))
      // Of very many files it looks more seldom.
      restMs = Math.max(lookMs, (clock.monotonic() - began) * 10)
    }
  })().catch((error) => {
    if (!over.signal.aborted) stop.abort(error)
  })
  try {
    return await work(signal ? AbortSignal.any([stop.signal, signal]) : stop.signal)
  } finally {
    over.abort()
    await watching
  }
}

async function excessOf(written: NonNullable<Bounds['written']>): Promise<string | null> {
  const { dir, bytesMax, filesMax, freeBytesMin } = written
  const { bavail, bsize } = await statfs(dir)
  if (bavail * bsize < freeBytesMin) return 'the host has too little disk left for the memory'
  const names = await readdir(dir, { recursive: true })
  if (names.length > filesMax) return `its memory takes more than ${filesMax} files`
  let bytes = 0
  for (const name of names) bytes += (await stat(`${dir}/${name}`)).blocks * blockBytes
  return bytes > bytesMax ? `its memory takes more than ${Math.ceil(bytesMax / 1024 / 1024)} MiB` : null
}

/** The last so many bytes of a stream, which is read to its end. */
export async function textEnd(stream: ReadableStream<Uint8Array>, bytesMax: number): Promise<string> {
  let end = Buffer.alloc(0)
  for await (const chunk of stream) end = Buffer.concat([end, chunk]).subarray(-bytesMax)
  return end.toString()
}
