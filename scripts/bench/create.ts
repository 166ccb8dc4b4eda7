import { join } from 'node:path'
import { capture } from '../capture.ts'
import { cleanEnvironment, RunningHutch, temporaryDataDir } from '../platform.ts'
import { milliseconds, type Row, run, sample, samplesMin, times } from './measure.ts'

const parallelCount = 400
const parallelWidth = 16

/** Create to the first command's output through @blaxel/core; against `unshare` making bare namespaces. */
export default async function create(): Promise<Row[]> {
  await using dataDir = await temporaryDataDir()
  await using platform = await RunningHutch.start({ dataDir: dataDir.path })
  const client = join(import.meta.dir, 'create.client.mjs')
  const counts = [samplesMin, parallelCount, parallelWidth].map(String)
  const { code, stdout, stderr } = await capture(['node', client, ...counts], {
    cwd: import.meta.dir,
    // Without a region the client warns at every create, which costs more than the request.
    env: { ...cleanEnvironment(), ...(await platform.env()), BL_REGION: 'eu-lon-1' },
  })
  if (code !== 0) throw new Error(`${stderr}\n${platform.log}`)
  const { serial, perSecond } = JSON.parse(stdout) as { serial: number[]; perSecond: number }
  const bare = await times(samplesMin, () =>
    run(['unshare', '-U', '-r', '-m', '-p', '-f', '-u', '-i', '-n', 'true']),
  )
  return [
    {
      what: 'create to first output, serial',
      value: milliseconds(sample(serial)),
      baseline: `${milliseconds(bare)} unshare`,
      reach: '<= 30 ms',
    },
    {
      what: `the same, ${parallelWidth} in parallel`,
      value: `${perSecond.toFixed(0)} sandboxes/s (n ${parallelCount})`,
      baseline: `${(1000 / bare.median).toFixed(0)}/s unshare, one by one`,
      reach: '>= 100 sandboxes/s',
    },
  ]
}
