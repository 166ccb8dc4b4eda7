import { expect, test } from 'bun:test'
import { PlatformError } from '../../errors.ts'
import { runtimeContract } from '../../spec/runtime.contract.ts'
import type { InstanceSpec } from '../../spec/runtime.ts'
import { fakeRuntime } from './index.ts'

const image = { digest: 'sha256:fake', layers: ['/'], mounts: [] }

await runtimeContract(
  'fake',
  async () => {
    const runtime = fakeRuntime()
    return {
      runtime,
      image,
      scratchDir: '/tmp',
      workingDir: '/blaxel',
      port: 8123,
      [Symbol.asyncDispose]: () => runtime[Symbol.asyncDispose](),
    }
  },
  { isolation: 'none' },
)

const spec: InstanceSpec = {
  id: 'fakefakefakefake',
  hostname: 'fake',
  image,
  memoryMb: 128,
  storageMb: 1,
  pidsMax: 10,
  env: {},
  workingDir: '/blaxel',
}

test('a scripted failure is what create rejects with, and leaves nothing', async () => {
  const failure = new PlatformError('unavailable', 'no room')
  const runtime = fakeRuntime({ failCreate: () => failure })
  await expect(runtime.create(spec)).rejects.toBe(failure)
  expect(await runtime.list()).toEqual([])
})

test('a scripted exit code ends its program', async () => {
  await using runtime = fakeRuntime({ exitCodes: { node: 7 } })
  const { guest } = await runtime.create(spec)
  await guest.processes.spawn({ id: 1, argv: ['/usr/bin/node'], env: {}, workingDir: '/', stdin: 'null' })
  expect((await guest.processes.wait(1)).exitCode).toBe(7)
})

test('a scripted end of process 1 is told by exited', async () => {
  await using runtime = fakeRuntime()
  const instance = await runtime.create(spec)
  await runtime.end(spec.id, { reason: 'out_of_memory', exitCode: null, signal: 9 })
  expect((await instance.exited).reason).toBe('out_of_memory')
})

test('a full disk refuses a write and keeps the old file', async () => {
  await using runtime = fakeRuntime()
  const { guest } = await runtime.create(spec)
  await guest.files.write('/file', Buffer.from('old'))
  const code = await guest.files.write('/file', new Uint8Array(2 * 1024 * 1024)).catch((error) => error.code)
  expect(code).toBe('insufficient_storage')
  expect((await guest.files.stat('/file')).size).toBe(3)
})
