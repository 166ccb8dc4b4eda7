import { expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { systemClock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { unusedPorts } from '../../lib/test-ports.ts'
import { runtimeContract } from '../../spec/runtime.contract.ts'
import { identify, startGuest } from '../helper-process.ts'
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
      port: unusedPorts(),
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

test.skipIf(process.platform !== 'linux')('a guest that was started and not recorded is ended', async () => {
  const dir = realpathSync(mkdtempSync(`${tmpdir()}/hutch-process-`))
  const options = {
    instancesDir: dir,
    helperPath: await testHelperPath(),
    log: silentLogger,
    clock: systemClock,
  }
  await using runtime = await openProcessRuntime(options)
  const id = 'unrecorded00'
  mkdirSync(`${dir}/${id}`)
  const { guestPid } = await startGuest(options.helperPath, [
    ['dir', `${dir}/${id}`],
    ['workdir', dir],
  ])
  expect(await runtime.list()).toEqual([id])
  await runtime.destroy(id)
  // It lets go of its connections a moment before it is gone.
  while (identify(guestPid) !== null) await Bun.sleep(1)
  expect(await runtime.list()).toEqual([])
  rmSync(dir, { recursive: true, force: true })
})
