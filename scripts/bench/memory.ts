import { readFileSync } from 'node:fs'
import { RunningHutch, temporaryDataDir } from '../platform.ts'
import type { Row } from './measure.ts'

const count = Number(process.env.BENCH_SANDBOXES ?? 50)
const settleMs = 3000

/** Host memory an idle sandbox takes, by MemAvailable; against a bare `sleep`. BENCH_SANDBOXES=300 makes more. */
export default async function memory(): Promise<Row[]> {
  if (!Number.isInteger(count) || count < 30) throw new Error('BENCH_SANDBOXES: a whole number, 30 or more')
  await using dataDir = await temporaryDataDir()
  await using platform = await RunningHutch.start({ dataDir: dataDir.path })
  const create = async (index: number) => {
    const { code, stderr } = await platform.run(['sandbox', 'create', `idle-${index}`, '--memory', '512'])
    if (code !== 0) throw new Error(`sandbox ${index}: ${stderr}`)
  }
  // The first ones also fill caches that all share.
  await create(count)
  await create(count + 1)
  const before = await settled()
  for (let index = 0; index < count; index++) await create(index)
  const each = (before - (await settled())) / count
  const names = Array.from({ length: count + 2 }, (_, index) => `idle-${index}`)
  await platform.run(['sandbox', 'rm', ...names])

  const beforeBare = await settled()
  const bare = Array.from({ length: count }, () =>
    Bun.spawn(['sleep', '3600'], { stdio: ['ignore', 'ignore', 'ignore'] }),
  )
  const eachBare = (beforeBare - (await settled())) / count
  for (const child of bare) child.kill('SIGKILL')
  await Promise.all(bare.map((child) => child.exited))
  return [
    {
      what: `host memory per idle sandbox (${count} at once)`,
      value: `${(each / 1024).toFixed(2)} MiB`,
      baseline: `${(eachBare / 1024).toFixed(2)} MiB a bare sleep`,
      reach: '<= 2 MB',
    },
  ]
}

/** MemAvailable in KiB, once things have come to rest: the median of a second's readings. */
async function settled(): Promise<number> {
  await Bun.sleep(settleMs)
  const readings: number[] = []
  for (let index = 0; index < 31; index++) {
    const line = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))
    if (!line) throw new Error('/proc/meminfo has no MemAvailable')
    readings.push(Number(line[1]))
    await Bun.sleep(33)
  }
  return readings.toSorted((a, b) => a - b)[15]!
}
