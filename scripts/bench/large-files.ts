import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import type { Row } from './measure.ts'
import { type BenchSandbox, benchSandbox } from './sandbox.ts'

const gibibytes = Number(process.env.BENCH_GIBIBYTES ?? 3)
const bytes = gibibytes * 1024 ** 3
const path = '/filesystem/%2Ftmp%2Flarge.bin'
const sampleMs = 50
const kib = 1024
const mib = 1024 * kib
/** As the npm package cuts a large file, and as many of the pieces at once. */
const partBytes = 5 * mib
const partsAtOnce = 3
/** Where a part of the file begins that is asked for by its range. */
const rangeOffset = 12_345_678

/**
 * What a file of several GiB costs in memory on its way in, out, copied and searched: how much more hutch and the
 * sandbox's helpers hold at their most than before. BENCH_GIBIBYTES=5 makes it larger.
 */
export default async function largeFiles(): Promise<Row[]> {
  // Half as much disk as memory is what a sandbox gets: room for three of the file.
  await using sandbox = await benchSandbox(gibibytes * 7 * 1024)
  const helpers = () => helpersOf(sandbox.dataDir)
  const measure = async (what: string, work: () => Promise<unknown>): Promise<Row> => {
    await Bun.sleep(3000)
    const before = { hutch: residentMb([sandbox.pid]), helpers: residentMb(helpers()) }
    const most = { ...before }
    const timer = setInterval(() => {
      most.hutch = Math.max(most.hutch, residentMb([sandbox.pid]))
      most.helpers = Math.max(most.helpers, residentMb(helpers()))
    }, sampleMs)
    const startedAt = performance.now()
    await work().finally(() => clearInterval(timer))
    const seconds = (performance.now() - startedAt) / 1000
    return {
      what: `${what} of ${gibibytes} GiB, more memory`,
      value: `${(most.hutch - before.hutch).toFixed(0)} MiB hutch, ${(most.helpers - before.helpers).toFixed(0)} MiB helpers`,
      baseline: `${(bytes / 1e6 / seconds).toFixed(0)} MB/s`,
      reach: '<= 64 MiB together',
    }
  }
  const download = async (range?: string) => {
    const headers = { accept: 'application/octet-stream', ...(range === undefined ? {} : { range }) }
    const { body } = await sandbox.call(path, { headers })
    let received = 0
    for await (const chunk of body ?? []) received += chunk.length
    return received
  }
  const expect = async (received: number, count: number) => {
    if (received !== count) throw new Error(`received ${received} bytes`)
  }
  return [
    // curl and Node send 64 KiB at once, or as much as one gives them.
    ...(await inTurn([64 * kib, mib], (pieceBytes) =>
      measure(`upload in pieces of ${pieceBytes / kib} KiB`, async () => {
        await (await sandbox.call(path, { method: 'PUT', ...form(bytes, pieceBytes) })).arrayBuffer()
      }),
    )),
    await measure(`upload in parts of ${partBytes / mib} MiB, ${partsAtOnce} at once`, () =>
      uploadInParts(sandbox),
    ),
    await measure('download', async () => expect(await download(), bytes)),
    await measure('download of a range', async () => {
      await expect(await download(`bytes=${rangeOffset}-`), bytes - rangeOffset)
    }),
    await measure('copy', async () => {
      const copy = JSON.stringify({ source: '/tmp/large.bin', destination: '/tmp/copy.bin' })
      await (await sandbox.call('/filesystem-copy', { method: 'POST', body: copy })).arrayBuffer()
    }),
    await measure('content search', async () => {
      const found = await sandbox.call('/filesystem-content-search/%2Ftmp%2Flarge.bin?query=not%20there')
      if (((await found.json()) as { total: number }).total !== 0) throw new Error('found what is not there')
    }),
  ]
}

async function inTurn<Item, Result>(items: Item[], work: (item: Item) => Promise<Result>): Promise<Result[]> {
  const results: Result[] = []
  for (const item of items) results.push(await work(item))
  return results
}

async function uploadInParts(sandbox: BenchSandbox): Promise<void> {
  const multipart = (rest: string, init: RequestInit) =>
    sandbox.call(`/filesystem-multipart/${rest}`, init).then((answer) => answer.json())
  const start = await multipart('initiate/%2Ftmp%2Flarge.bin', { method: 'POST', body: '{}' })
  const { uploadId } = start as { uploadId: string }
  const count = Math.ceil(bytes / partBytes)
  const numbers = Array.from({ length: count }, (_, index) => index + 1).values()
  const parts: { partNumber: number; etag: string }[] = []
  const uploader = async () => {
    for (const partNumber of numbers) {
      const length = Math.min(partBytes, bytes - (partNumber - 1) * partBytes)
      const sent = await multipart(`${uploadId}/part?partNumber=${partNumber}`, {
        method: 'PUT',
        ...form(length, length),
      })
      parts.push({ partNumber, etag: (sent as { etag: string }).etag })
    }
  }
  await Promise.all(Array.from({ length: partsAtOnce }, uploader))
  await multipart(`${uploadId}/complete`, { method: 'POST', body: JSON.stringify({ parts }) })
}

/** A form with one file, made as it is read. */
function form(
  fileBytes: number,
  pieceBytes: number,
): { headers: Record<string, string>; body: ReadableStream<Uint8Array> } {
  const boundary = 'bench-boundary'
  const piece = new Uint8Array(pieceBytes).map((_, at) => (at % 80 === 79 ? 10 : 97 + (at % 23)))
  const encoder = new TextEncoder()
  let sent = -1
  const body = new ReadableStream<Uint8Array>({
    type: 'bytes',
    pull(controller) {
      if (sent === -1) {
        const head = `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n`
        controller.enqueue(encoder.encode(head))
        sent = 0
      } else if (sent < fileBytes) {
        const next = piece.slice(0, Math.min(pieceBytes, fileBytes - sent))
        sent += next.length
        controller.enqueue(next)
      } else {
        controller.enqueue(encoder.encode(`\r\n--${boundary}--\r\n`))
        controller.close()
      }
    },
  })
  return { headers: { 'content-type': `multipart/form-data; boundary=${boundary}` }, body }
}

/** The helpers of one platform: launchers, keepers, guests and their workers. */
function helpersOf(dataDir: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/exe`).startsWith(`${dataDir}/`)
      } catch {
        return false
      }
    })
}

/** Each alone: what they share counts once for each. */
function residentMb(pids: number[]): number {
  let kib = 0
  for (const pid of pids) {
    try {
      const status = readFileSync(`/proc/${pid}/status`, 'utf8')
      kib += Number(/^RssAnon:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0)
    } catch {
      // It ended while we looked.
    }
  }
  return kib / 1024
}
