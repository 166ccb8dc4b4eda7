import { readFileSync } from 'node:fs'
import { RunningHutch, temporaryDataDir } from '../platform.ts'
import { type Row, sample, samplesMin } from './measure.ts'

const settleMs = 5000
const intervalMs = 100

/** Resident memory of the platform with nothing to do; against a bare HTTP server in the same Bun. */
export default async function idle(): Promise<Row[]> {
  await using dataDir = await temporaryDataDir()
  await using platform = await RunningHutch.start({ dataDir: dataDir.path })
  const script = "Bun.serve({ port: 0, fetch: () => new Response('ok') })"
  const bare = Bun.spawn([process.execPath, '-e', script], { stdio: ['ignore', 'ignore', 'ignore'] })
  try {
    await Bun.sleep(settleMs)
    const measured: number[] = []
    const baseline: number[] = []
    for (let index = 0; index < samplesMin; index++) {
      measured.push(residentMb(platform.child.pid))
      baseline.push(residentMb(bare.pid))
      await Bun.sleep(intervalMs)
    }
    return [
      {
        what: 'hutch itself, idle (RSS)',
        value: `${sample(measured).median.toFixed(1)} MB`,
        baseline: `${sample(baseline).median.toFixed(1)} MB Bun.serve alone`,
        reach: '<= 80 MB',
      },
    ]
  } finally {
    bare.kill('SIGKILL')
    await bare.exited
  }
}

function residentMb(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  if (!line) throw new Error(`process ${pid} has no resident memory`)
  return (Number(line[1]) * 1024) / 1e6
}
