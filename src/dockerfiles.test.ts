import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { ImageInstance } from '@blaxel/core'
import { whyNoDockerfiles } from './builder/test-dockerfiles.ts'
import { programs, tar, testImage } from './images/test-image.ts'
import { TestRegistry } from './images/test-registry.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** The chain from the cloud's own builder of images to what runs, over HTTP, with a registry on loopback. */

setDefaultTimeout(180_000)
const why = await whyNoDockerfiles()

describe.skipIf(why !== '')(`Dockerfiles from outside${why ? ` (skipped: ${why})` : ''}`, () => {
  let client: TestClient
  let registry: TestRegistry
  let base: string
  beforeAll(async () => {
    registry = new TestRegistry()
    const tree = [
      { path: 'tmp/', type: '5', mode: 0o1777 },
      { path: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\n' },
      ...programs('sh', 'cat', 'mkdir', 'ls'),
    ]
    registry.push('base', '1', testImage([tar(tree)]))
    base = `${registry.host}/base:1`
    client = await openTestClient({ dataDir: temporaryDataDir, registries: [registry.host] })
  })
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]()
    registry?.[Symbol.dispose]()
  })

  test('an image put together by the unmodified client becomes a sandbox of that image', async () => {
    const seen: string[] = []
    const image = ImageInstance.fromRegistry(base)
      .workdir('/app')
      .runCommands('mkdir -p /data', 'echo "made by a build" > /data/note')
      .env({ GREETING: 'hello' })
      .expose(3000)
    const made = await image.build({
      name: 'of-image',
      memory: 512,
      onStatusChange: (status) => seen.push(status),
    })
    expect(made).toMatchObject({ status: 'DEPLOYED', metadata: { name: 'of-image' } })
    expect(seen.at(-1)).toBe('DEPLOYED')
    const sandbox = await client.SandboxInstance.get('of-image')
    expect(await sandbox.fs.read('/data/note')).toBe('made by a build\n')
    const { logs } = await sandbox.process.exec({
      command: 'echo "$GREETING" from "$PWD"',
      waitForCompletion: true,
    })
    expect(logs).toBe('hello from /app\n')
  })

  test('a build that fails is told with its step, and what it was to replace goes on', async () => {
    const broken = ImageInstance.fromRegistry(base).runCommands('cat /nowhere')
    const failure = await broken.build({ name: 'of-image', memory: 512 }).then(
      () => '',
      (error: Error) => error.message,
    )
    expect(failure).toContain('of-image')
    const view = (await (await client.request('/v0/sandboxes/of-image')).json()) as {
      events: { message: string }[]
    }
    expect(view.events.map(({ message }) => message).join('\n')).toContain(
      'the build failed at "2/4 RUN cat /nowhere": exit code 1',
    )
    const sandbox = await client.SandboxInstance.get('of-image')
    expect(await sandbox.fs.read('/data/note')).toBe('made by a build\n')
  })
})
