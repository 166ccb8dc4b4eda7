import { capture } from '../capture.ts'
import { type Row, type Sample, sample, samplesMin } from './measure.ts'
import { benchSandbox } from './sandbox.ts'

const downloadBytes = Number(process.env.BENCH_DOWNLOAD_MB ?? 1000) * 1e6
const requestsPerTurn = 30
const turns = 10

/** What leaves a sandbox by the relay, against the same program on the host: a large download, and a small request. */
export default async function network(): Promise<Row[]> {
  using server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    // Made once, so that the server copies nothing for a request.
    routes: { '/large': new Response(new Uint8Array(downloadBytes)), '/small': new Response('small') },
  })
  await using sandbox = await benchSandbox(1024, ['--egress-allow', `127.0.0.1:${server.port}`])
  const inside = async (command: string) => {
    const response = await sandbox.call('/process', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ command, waitForCompletion: true, timeout: 300 }),
    })
    return ((await response.json()) as { logs: string }).logs
  }
  const outside = async (command: string) => (await capture(['sh', '-c', command])).stdout
  const numbers = (text: string) => text.trim().split('\n').map(Number)
  const both = async (count: number, command: (host: string) => string) => {
    const values: [number[], number[]] = [[], []]
    for (let turn = -1; turn < count; turn++) {
      const here = numbers(await outside(command(`127.0.0.1:${server.port}`)))
      const there = numbers(await inside(command(`host.hutch.internal:${server.port}`)))
      // The first turn warms up.
      if (turn >= 0) values[0].push(...here)
      if (turn >= 0) values[1].push(...there)
    }
    return values.map(sample) as [Sample, Sample]
  }
  const [direct, relayed] = await both(
    samplesMin,
    (host) => `curl -s -o /dev/null -w '%{speed_download}\\n' http://${host}/large`,
  )
  // Each line is one request on a connection of its own: from the lookup of its name on, in seconds.
  const small = (host: string) =>
    `for i in $(seq ${requestsPerTurn}); do curl -s -o /dev/null -w '%{time_total} %{time_namelookup}\\n' http://${host}/small; done` +
    ` | awk '{ print ($1 - $2) * 1000 }'`
  const [directSmall, relayedSmall] = await both(turns, small)
  const megabytes = ({ median }: Sample) => `${(median / 1e6).toFixed(0)} MB/s`
  const ms = ({ median, p99, count }: Sample) => `${median.toFixed(2)} ms (p99 ${p99.toFixed(1)}, n ${count})`
  return [
    {
      what: `download of ${downloadBytes / 1e6} MB inside`,
      value: `${megabytes(relayed)}, ${(relayed.median / direct.median).toFixed(2)} x (n ${relayed.count})`,
      baseline: `${megabytes(direct)} over loopback`,
      reach: '>= 0.5 x loopback',
    },
    {
      what: 'connect and a small request inside',
      value: ms(relayedSmall),
      baseline: `${ms(directSmall)} over loopback`,
      reach: '-',
    },
  ]
}
