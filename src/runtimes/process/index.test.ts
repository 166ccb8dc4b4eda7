import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { systemClock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { runtimeContract } from '../../spec/runtime.contract.ts'
import { testHelperPath } from '../test-host.ts'
import { openProcessRuntime, probeProcess } from './index.ts'

await runtimeContract(
  'process',
  async () => {
    const { usable, reason } = await probeProcess()
    if (!usable) return { skip: reason }
    const dir = realpathSync(mkdtempSync(`${tmpdir()}/hutch-process-`))
    const options = {
      instancesDir: `${dir}/instances`,
      helperPath: await testHelperPath(),
      log: silentLogger,
      clock: systemClock,
    }
    let runtime = await openProcessRuntime(options)
    return {
      runtime,
      image: { digest: 'sha256:host', layers: ['/'], mounts: [] },
      scratchDir: dir,
      workingDir: `${dir}/work`,
      port: 20_000 + (process.pid % 20_000),
      reopen: async () => {
        runtime = await openProcessRuntime(options)
        return runtime
      },
      [Symbol.asyncDispose]: async () => {
        await runtime[Symbol.asyncDispose]()
        rmSync(dir, { recursive: true, force: true })
      },
    }
  },
  { isolation: 'none' },
)
