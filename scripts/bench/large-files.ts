import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import type { Row } from './measure.ts'
import { benchSandbox } from './sandbox.ts'

const gibibytes = Number(process.env.BENCH_GIBIBYTES ?? 3)
const bytes = gibibytes * 1024 ** 3
const path = '/filesystem/%2Ftmp%2Flarge.bin'
const sampleMs = 50

/**
 * What a file of several GiB costs in memory on its way in, out, copied and searched: how much more hutch and the
 * sandbox's helpers hold at their most than before. BENCH_GIBIBYTES=5 makes it larger.
 */
export default async function largeFiles(): Promise<Row[]> {
  // Half as much disk as memory is what a sandbox gets: room for the file and its copy.
  await using sandbox = await benchSandbox(gibibytes * 5 * 1024)
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
  return [
    await measure('upload', async () => {
      await (await sandbox.call(path, { method: 'PUT', ...upload() })).arrayBuffer()
    }),
    await measure('download', async () => {
      const { body } = await sandbox.call(path, { headers: { accept: 'application/octet-stream' } })
      let received = 0
      for await (const chunk of body ?? []) received += chunk.length
      if (received !== bytes) throw new Error(`received ${received} bytes`)
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

/** A form with one file, made as it is read. */
function upload(): { headers: Record<string, string>; body: ReadableStream<Uint8Array> } {
  const boundary = 'bench-boundary'
  // As much at once as curl and Node send.
  const chunk = new Uint8Array(64 * 1024).map((_, at) => (at % 80 === 79 ? 10 : 97 + (at % 23)))
  const encoder = new TextEncoder()
  let sent = -1
  const body = new ReadableStream<Uint8Array>({
    type: 'bytes',
    pull(controller) {
      if (sent === -1) {
        const head = `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n`
        controller.enqueue(encoder.encode(head))
        sent = 0
      } else if (sent < bytes) {
        controller.enqueue(chunk.slice())
        sent += chunk.length
      } else {
        controller.enqueue(encoder.encode(`\r\n--${boundary}--\r\n`))
        controller.close()
      }
    },
  })
  return { headers: { 'content-type': `multipart/form-data; boundary=${boundary}` }, body }
}

/** Every running helper: launchers, keepers, guests and their workers. */
function helpers(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return /hutch-helper/.test(readlinkSync(`/proc/${pid}/exe`))
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
