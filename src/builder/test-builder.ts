/** For tests: a builder over the real runtime, and what its images do when they are started. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildHelper } from '../../scripts/build-helper.ts'
import { configDefaults } from '../config.ts'
import { HelperLayers } from '../guest/index.ts'
import { HostImage, Images } from '../images/index.ts'
import { type TestEntry, tar } from '../images/test-image.ts'
import { Instances } from '../instances/index.ts'
import { systemClock } from '../lib/clock.ts'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { type CarriedSettings, Network } from '../network/index.ts'
import { openNamespaceRuntime } from '../runtimes/namespace/index.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { Builder, type BuilderOptions, type BuildRequest, type BuildResult } from './index.ts'

export interface TestBuilder extends AsyncDisposable {
  readonly dir: string
  readonly builder: Builder
  readonly images: Images
  readonly instances: Instances
  /** Builds the files as a tar archive of them; answers the log, too. */
  build(files: TestEntry[], request?: Partial<BuildRequest>): Promise<BuildResult & { log: string[] }>
  /** What a shell in a machine of the image says. */
  inside(image: string, script: string): Promise<string>
}

export async function openTestBuilder(
  options: {
    carried?: CarriedSettings | null
    builder?: Partial<BuilderOptions>
    allow?: string[]
    /** That images may be pulled from. */
    registries?: string[]
  } = {},
): Promise<TestBuilder> {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-builder-'))
  const [clock, log] = [systemClock, silentLogger]
  const helperPath = (await buildHelper()).path
  await using opened = new AsyncDisposableStack()
  opened.defer(() => rmSync(dir, { recursive: true, force: true }))
  const store = opened.use(await openSqliteStore({ path: join(dir, 'hutch.db'), clock, log }))
  const workspaces = new Workspaces({ store, users: new Users({ store, clock }), heldKinds: [] })
  await workspaces.create({ name: 'main', ownerSub: 'usr_test' })
  const carried = options.carried ?? null
  const network = new Network({
    allow: [...(options.allow ?? []), ...(carried?.addresses ?? [])],
    registryNames: carried?.names ?? [],
    dir: join(dir, 'network'),
    clock,
    log,
  })
  opened.defer(() => network.close())
  network.useDoors({ open: () => null, hasPlatform: () => false, close() {} })
  const runtime = opened.use(
    await openNamespaceRuntime({
      instancesDir: join(dir, 'instances'),
      helperPath,
      egress: network,
      clock,
      log,
    }),
  )
  const layers = new HelperLayers(helperPath)
  const host = new HostImage({
    imageDir: configDefaults(dir).imageDir,
    dataDir: dir,
    source: 'live',
    usrLocal: false,
    layers,
    executablePath: process.execPath,
    clock,
    log,
  })
  opened.defer(() => host.close())
  const secrets = createSecretBox(new Uint8Array(32))
  const images: Images = new Images({
    ...{ host, store, secrets, clock, log, layers, workspaces },
    hostEnv: carried?.env ?? {},
    standInPath: helperPath,
    dir: join(dir, 'images'),
    registries: options.registries ?? [],
    registryAuthFile: null,
    imageBytesMax: 4 * 1024 ** 3,
    inUse: () => instances.roots(),
    dialer: new Dialer({ privateTargets: [], ownPorts: () => [] }),
  })
  opened.defer(() => images.removeAll())
  const instances = new Instances({ store, runtime, secrets, clock, log })
  opened.defer(async () => {
    await instances.close({ keepInstances: false })
    for (const id of await runtime.list()) await runtime.destroy(id)
  })
  opened.defer(() => images.close())
  const dockerfiles = {
    capabilities: runtime.capabilities,
    dir: join(dir, 'base-images'),
    standInPath: helperPath,
  }
  const builder = new Builder({
    ...{ store, instances, images, clock, log, dockerfiles },
    ...options.builder,
  })
  opened.defer(() => builder.close())
  let count = 0
  const parts = opened.move()
  return {
    dir,
    builder,
    images,
    instances,
    async build(files, request = {}) {
      const archivePath = join(dir, `archive-${++count}`)
      writeFileSync(archivePath, tar(files))
      const lines: string[] = []
      try {
        const result = await builder.build({
          ...{
            workspace: 'main',
            kind: 'agent',
            name: 'hello',
            tag: `t${count}`,
            archivePath,
            archiveType: 'tar',
          },
          onLine: (line) => lines.push(line),
          signal: new AbortController().signal,
          ...request,
        })
        return { ...result, log: lines }
      } catch (error) {
        Object.assign(error as object, { log: lines })
        throw error
      }
    },
    async inside(reference, script) {
      using image = await images.resolve('main', reference)
      const instance = await instances.create(
        { kind: 'test', workspace: 'main', name: 'test' },
        {
          hostname: 'test',
          image: image.root,
          memoryMb: 512,
          storageMb: 512,
          pidsMax: 256,
          env: {},
          workingDir: image.workingDir,
          ephemeral: true,
          withoutApi: true,
        },
        (step) => store.batch([step]),
      )
      const { processes } = instance.guest
      const env = { ...image.env, HOST: '127.0.0.1', PORT: '3000', PROGRAM: JSON.stringify(image.entrypoint) }
      await processes.spawn({
        id: 1,
        argv: ['/bin/sh', '-c', script],
        env,
        workingDir: image.workingDir,
        stdin: 'null',
      })
      let text = ''
      for await (const records of processes.output(1, { follow: true }))
        for (const { data } of records) text += Buffer.from(data).toString()
      const { gone } = await instances.destroy(instance.id, (step) => store.batch([step]))
      await gone
      return text
    },
    [Symbol.asyncDispose]: () => parts.disposeAsync(),
  }
}
