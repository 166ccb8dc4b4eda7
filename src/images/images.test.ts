import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs'
import { mkdir, readFile, rename, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../lib/clock.ts'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { HostImage, type HostImageSource, Images } from './index.ts'
import { makeSkeleton } from './skeleton.ts'

// Thousands of the host's own small files are copied.
setDefaultTimeout(120_000)
const temporary: string[] = []
function temporaryDirectory(): string {
  const path = mkdtempSync(join(tmpdir(), 'hutch-images-'))
  temporary.push(path)
  return path
}
afterEach(() => {
  for (const path of temporary.splice(0)) rmSync(path, { recursive: true, force: true })
})

async function smallUsr(): Promise<string> {
  const usr = join(temporaryDirectory(), 'usr')
  await mkdir(join(usr, 'bin'), { recursive: true })
  await mkdir(join(usr, 'local/bin'), { recursive: true })
  await writeFile(join(usr, 'bin/tool'), 'first')
  await writeFile(join(usr, 'local/bin/private-tool'), 'not for images')
  await writeFile(join(usr, 'bin/keys'), 'of root', { mode: 0o600 })
  await mkdir(join(usr, 'rules'), { mode: 0o700 })
  await writeFile(join(usr, 'rules/one'), 'of root')
  return usr
}

/** One root directory for all: making it copies thousands of the host's files. */
const sharedDir = mkdtempSync(join(tmpdir(), 'hutch-images-shared-'))
beforeAll(() => new HostImage({ ...hostOptions, imageDir: sharedDir, dataDir: sharedDir }).resolve())
afterAll(() => rmSync(sharedDir, { recursive: true, force: true }))

function imageDirectory(): string {
  const path = temporaryDirectory()
  for (const name of readdirSync(sharedDir)) {
    if (name.startsWith('host-root-')) symlinkSync(join(sharedDir, name), join(path, name))
  }
  return path
}

const hostOptions = {
  source: 'live' as HostImageSource,
  usrLocal: false,
  layers: null,
  clock: systemClock,
  log: silentLogger,
}

function hostImage(
  options: {
    usrPath?: string
    source?: HostImageSource
    usrLocal?: boolean
    imageDir?: string
    dataDir?: string
  } = {},
): HostImage {
  return new HostImage({
    imageDir: options.imageDir ?? imageDirectory(),
    dataDir: options.dataDir ?? temporaryDirectory(),
    source: options.source ?? 'copy',
    usrLocal: options.usrLocal ?? false,
    layers: null,
    clock: systemClock,
    log: silentLogger,
    ...(options.usrPath ? { usrPath: options.usrPath } : {}),
  })
}

const usrOf = (root: Awaited<ReturnType<HostImage['resolve']>>) =>
  root.mounts.find((mount) => mount.target === '/usr')!.source

describe('image references', () => {
  let store: Store
  let images: Images

  beforeAll(async () => {
    const path = join(sharedDir, 'hutch.db')
    store = await openSqliteStore({ path, clock: systemClock, log: silentLogger, durability: 'process' })
    images = new Images({
      host: hostImage({ source: 'live', imageDir: sharedDir }),
      store,
      secrets: createSecretBox(new Uint8Array(32)),
      clock: systemClock,
      log: silentLogger,
      dir: join(path, '..', 'images'),
      layers: null,
      dialer: new Dialer({ privateTargets: [], ownPorts: () => [] }),
      workspaces: { get: () => Promise.reject(new Error('there are none')) },
      registries: ['docker.io'],
      registryAuthFile: null,
      imageBytesMax: 1024 ** 2,
      inUse: () => [],
    })
  })
  afterAll(() => store[Symbol.asyncDispose]())

  test('a well-known name resolves with and without the tag latest, and is echoed as given', async () => {
    for (const reference of ['blaxel/base-image', 'blaxel/base-image:latest', 'blaxel/py-app:latest']) {
      const image = await images.resolve('main', reference)
      expect(image.reference).toBe(reference)
      expect(image.root.layers.length).toBeGreaterThan(0)
      expect(image.workingDir).toBe('/blaxel')
    }
  })

  test.each([
    ['blaxel/nothing-like-this', 'is unknown here. Known: blaxel/base-image'],
    ['blaxel/base-image:v9', 'has no tag "v9"'],
    ['../etc', 'is not an image reference'],
    ['', 'is not an image reference'],
    ['a'.repeat(600), 'is not an image reference'],
    ['docker.io/library/alpine:3', 'was not pulled yet'],
    ['docker.io/Upper/case', 'is not an image reference'],
    ['alpine:3', 'is unknown here'],
  ])('%p is refused by name', async (reference, message) => {
    await expect(images.resolve('main', reference)).rejects.toThrow(message)
  })
})

describe('the host image', () => {
  test('has a root directory with accounts, links and temporary directories, and no password or private key', async () => {
    const root = await hostImage({ source: 'live' }).resolve()
    const skeleton = root.layers[0]!
    expect(await readFile(join(skeleton, 'etc/passwd'), 'utf8')).toStartWith(
      'root:x:0:0:root:/root:/bin/bash\n',
    )
    expect(await readFile(join(skeleton, 'etc/passwd'), 'utf8')).toContain('user:x:1000:1000:')
    const shadow = await readFile(join(skeleton, 'etc/shadow'), 'utf8')
    for (const line of shadow.trim().split('\n')) expect(line.split(':')[1]).toBe('*')
    expect((await stat(join(skeleton, 'tmp'))).mode & 0o7777).toBe(0o1777)
    for (const secret of [
      'etc/ssl/private',
      'etc/ssh',
      'etc/apt/auth.conf',
      'etc/apt/auth.conf.d',
      'etc/machine-id',
    ]) {
      expect(existsSync(join(skeleton, secret))).toBe(false)
    }
  })

  test('has npm install for all in /usr/local where an ordinary user cannot write more of /usr', async () => {
    const usrPath = await smallUsr()
    const isRoot = process.getuid?.() === 0
    expect(hostImage({ usrPath }).env).toEqual(isRoot ? {} : { NPM_CONFIG_PREFIX: '/usr/local' })
    expect(hostImage({ usrPath, usrLocal: true }).env).toEqual({})
  })

  test('stands on the live /usr until it is frozen, then on the copy, without /usr/local', async () => {
    const usrPath = await smallUsr()
    const host = hostImage({ usrPath })
    expect(usrOf(await host.resolve())).toBe(usrPath)
    await host.freeze()
    const frozen = usrOf(await host.resolve())
    expect(await readFile(join(frozen, 'bin/tool'), 'utf8')).toBe('first')
    expect(readdirSync(join(frozen, 'local/bin'))).toEqual([])
  })

  test('a frozen copy has nothing that not everybody may read, and /usr/local when that is wanted', async () => {
    const host = hostImage({ usrPath: await smallUsr(), usrLocal: true })
    await host.freeze()
    const frozen = usrOf(await host.resolve())
    expect(readdirSync(frozen).sort()).toEqual(['bin', 'local'])
    expect(readdirSync(join(frozen, 'bin'))).toEqual(['tool'])
    expect(readdirSync(join(frozen, 'local/bin'))).toEqual(['private-tool'])
  })

  test('the root directory has no file of the host that not everybody may read', async () => {
    const host = join(temporaryDirectory(), 'host')
    await mkdir(join(host, 'etc/security'), { recursive: true })
    await mkdir(join(host, 'etc/pki/private'), { recursive: true, mode: 0o700 })
    await writeFile(join(host, 'etc/security/opasswd'), 'old passwords', { mode: 0o600 })
    await writeFile(join(host, 'etc/security/limits.conf'), 'limits')
    await writeFile(join(host, 'etc/pki/private/key'), 'key')
    const made = join(temporaryDirectory(), 'root')
    await makeSkeleton(made, host)
    expect(readdirSync(join(made, 'etc/security'))).toEqual(['limits.conf'])
    expect(existsSync(join(made, 'etc/pki/private'))).toBe(false)
    expect((await stat(join(made, 'root'))).mode & 0o777).toBe(0o700)
  })

  test('the root directory is made by several at once', async () => {
    const host = temporaryDirectory()
    await mkdir(join(host, 'etc'))
    await writeFile(join(host, 'etc/localtime'), 'here')
    const made = temporaryDirectory()
    const target = join(made, 'host-root-shared')
    await Promise.all([1, 2, 3].map(() => makeSkeleton(target, host)))
    expect(readdirSync(made)).toEqual(['host-root-shared'])
    for (const path of ['opt/hutch/bin/bun', 'opt/hutch/interpreter/server.py', 'etc/localtime'])
      expect(existsSync(join(target, path))).toBe(true)
  })

  test('what a killed platform was making goes, and nothing that is being made', async () => {
    const imageDir = imageDirectory()
    const left = ['host-root-left.draft-1a2b3c', 'reflink-1a2b3c']
    const fresh = 'host-root-fresh.draft-1a2b3c'
    for (const name of [...left, fresh]) await mkdir(join(imageDir, name))
    for (const name of left) await utimes(join(imageDir, name), 0, 0)
    const host = hostImage({ imageDir })
    host.start()
    await eventually(() => left.every((name) => !existsSync(join(imageDir, name))))
    expect(existsSync(join(imageDir, fresh))).toBe(true)
    await host.close()
  })

  test('a changed host makes a new image and leaves the frozen one as it was', async () => {
    const usrPath = await smallUsr()
    const host = hostImage({ usrPath })
    await host.freeze()
    const first = await host.resolve()
    await writeFile(join(usrPath, 'bin/tool.new'), 'second')
    await rename(join(usrPath, 'bin/tool.new'), join(usrPath, 'bin/tool'))
    await writeFile(join(usrPath, 'bin/another'), 'new')
    await host.freeze()
    const second = await host.resolve()
    expect(second.digest).not.toBe(first.digest)
    expect(await readFile(join(usrOf(first), 'bin/tool'), 'utf8')).toBe('first')
    expect(await readFile(join(usrOf(second), 'bin/tool'), 'utf8')).toBe('second')
  })

  test('an old copy goes once nothing of any data directory stands on it', async () => {
    const usrPath = await smallUsr()
    const imageDir = imageDirectory()
    const host = hostImage({ usrPath, imageDir })
    await host.freeze()
    const first = usrOf(await host.resolve())
    await writeFile(join(usrPath, 'bin/second'), '')
    await host.freeze()
    expect(existsSync(first)).toBe(true)
    await host.retain([])
    await writeFile(join(usrPath, 'bin/third'), '')
    await host.freeze()
    expect(existsSync(first)).toBe(false)
  })

  test.skipIf(process.getuid?.() !== 0)(
    'is frozen soon where that costs nothing, and again when the host changed',
    async () => {
      const usrPath = await smallUsr()
      const clock = new FakeClock()
      const warnings: string[] = []
      const log = { ...silentLogger, warn: (message: string) => void warnings.push(message) }
      const host = new HostImage({
        imageDir: imageDirectory(),
        dataDir: temporaryDirectory(),
        source: 'link',
        usrLocal: false,
        layers: null,
        clock,
        log,
        usrPath,
      })
      const frozen = async () => usrOf(await host.resolve()) !== usrPath
      const passes = async (ms: number) => {
        await eventually(() => clock.sleepers > 0)
        await clock.advance(ms)
        await eventually(() => clock.sleepers > 0)
      }
      expect(await frozen()).toBe(false)
      host.start()
      await passes(5_000)
      expect(await frozen()).toBe(true)
      await writeFile(join(usrPath, 'bin/upgraded'), '')
      await clock.advance(2_000)
      expect(await frozen()).toBe(false)
      await writeFile(join(usrPath, 'bin/again'), '')
      await passes(60_000)
      expect(warnings.join()).toContain('changed while sandboxes stood on')
      expect(await frozen()).toBe(true)
      await host.close()
    },
  )

  test('copies into a draft that no one sees when it fails', async () => {
    const usrPath = await smallUsr()
    const imageDir = imageDirectory()
    const host = hostImage({ usrPath, imageDir })
    await expect(host.freeze(AbortSignal.abort(new Error('stop')))).rejects.toThrow('stop')
    expect(usrOf(await host.resolve())).toBe(usrPath)
    await host.freeze()
    expect(usrOf(await host.resolve())).not.toBe(usrPath)
    // What was begun is removed behind the back of who called it off.
    await eventually('no draft left', () => !readdirSync(imageDir).some((name) => name.includes('.draft')))
  })
})
