import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../lib/clock.ts'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { parseRegistryReference } from './reference.ts'
import { Registry } from './registry.ts'
import { digestOf, tar, testImage } from './test-image.ts'
import { TestRegistry } from './test-registry.ts'

let server: TestRegistry
let dir: string
const layer = tar([{ path: 'noise', content: crypto.getRandomValues(new Uint8Array(60_000)) }])
const image = testImage([layer], { compression: 'none' })

beforeEach(() => {
  server = new TestRegistry()
  server.push('some/image', 'v1', image)
  dir = mkdtempSync(join(tmpdir(), 'hutch-registry-'))
})
afterEach(() => {
  server[Symbol.dispose]()
  rmSync(dir, { recursive: true, force: true })
})

interface Options {
  reference?: string
  credentials?: { username: string; password: string } | null
  stallMsMax?: number
}

function registry({ reference = 'some/image:v1', credentials = null, stallMsMax }: Options = {}): Registry {
  return new Registry(parseRegistryReference(`${server.host}/${reference}`, 'image'), {
    credentials,
    // Only its waits between attempts are used: they need not last.
    clock: { ...systemClock, sleep: async () => {} },
    log: silentLogger,
    checkSpace: async () => {},
    blobBytesMax: 1024 * 1024,
    dialer: new Dialer({ privateTargets: [], ownPorts: () => [] }),
    ...(stallMsMax === undefined ? {} : { stallMsMax }),
  })
}

const signal = new AbortController().signal

/** The whole image; answers the digests of its downloaded layers. */
async function pull(options?: Options): Promise<string[]> {
  const source = await registry(options).open(dir, signal)
  const files = await Promise.all(source.layers.map((one) => one.open(signal)))
  return files.map((file) => digestOf(readFileSync(file)))
}

describe('an image of a registry', () => {
  test('is read by tag and by digest, with its settings', async () => {
    expect(await pull()).toEqual([digestOf(layer)])
    const source = await registry({ reference: `some/image@${image.digest}` }).open(dir, signal)
    expect(source.digest).toBe(image.digest)
    expect(source.config.diffIds).toEqual([digestOf(layer)])
  })

  test('is the one for this host where there are several', async () => {
    const other = testImage([tar([{ path: 'other' }])], { architecture: 'riscv64' })
    const architecture = process.arch === 'x64' ? 'amd64' : process.arch
    server.pushIndex('many', 'v1', [
      { os: 'linux', architecture: 'riscv64', image: other },
      { os: 'linux', architecture, image },
    ])
    expect(await pull({ reference: 'many:v1' })).toEqual([digestOf(layer)])
    server.pushIndex('foreign', 'v1', [{ os: 'linux', architecture: 'riscv64', image: other }])
    await expect(pull({ reference: 'foreign:v1' })).rejects.toThrow('linux/riscv64')
  })

  test('that is not there is not found', async () => {
    await expect(pull({ reference: 'some/image:v2' })).rejects.toMatchObject({ code: 'not_found' })
  })
})

describe('credentials', () => {
  const right = { username: 'reader', password: 'secret:with:colons' }

  test.each(['basic', 'bearer'] as const)('are given in the way of %s', async (auth) => {
    server.behaviour.auth = auth
    expect(await pull({ credentials: right })).toHaveLength(1)
    await expect(pull()).rejects.toThrow(`hutch images login ${server.host}`)
    const wrong = pull({ credentials: { ...right, password: 'guessed-password' } })
    await expect(wrong).rejects.toMatchObject({ code: 'forbidden' })
    expect(await wrong.catch(String)).not.toContain('guessed-password')
  })

  test('stay with the registry when it sends us elsewhere for the bytes', async () => {
    server.behaviour.auth = 'bearer'
    server.behaviour.redirectBlobs = true
    expect(await pull({ credentials: right })).toHaveLength(1)
    const elsewhere = server.asked.filter((one) => one.elsewhere)
    expect(elsewhere).toHaveLength(2)
    for (const { authorization } of elsewhere) expect(authorization).toBeNull()
  })

  test.each([
    ['Bearer realm="http://registry.example.com/token"', 'does not go'],
    ['Bearer realm="file:///etc/passwd"', 'does not go'],
    ['Bearer service="x"', 'no place to get a token'],
    ['Digest realm="x"', 'unknown way'],
    ['', 'unknown way'],
  ])('are not given to who asks with %p', async (challenge, message) => {
    server.behaviour.auth = 'bearer'
    server.behaviour.challenge = challenge
    await expect(pull({ credentials: right })).rejects.toThrow(message)
  })

  test('and requests go nowhere that is neither encrypted nor loopback', async () => {
    server.behaviour.redirectTo = 'http://169.254.169.254/latest/meta-data'
    await expect(pull()).rejects.toThrow('does not go')
    // A registry on this host vouches for what is on this host, and for nothing else that is private.
    server.behaviour.redirectTo = 'https://169.254.169.254/latest/meta-data'
    await expect(pull()).rejects.toThrow('privateTargets')
    server.behaviour.redirectTo = 'http://['
    await expect(pull()).rejects.toThrow('no address')
  })
})

describe('a download', () => {
  test('goes on where it broke off', async () => {
    server.behaviour.cutAfterBytes = 20_000
    expect(await pull()).toEqual([digestOf(layer)])
    const ranges = server.asked.map(({ range }) => range).filter((range) => range !== null)
    expect(ranges.length).toBeGreaterThan(1)
    for (const range of ranges) expect(range).toMatch(/^bytes=[1-9]\d*-$/)
  })

  test('is read past what is there already where the registry knows no ranges', async () => {
    server.behaviour.ranges = false
    let bytes = 20_000
    Object.defineProperty(server.behaviour, 'cutAfterBytes', {
      get: () => {
        bytes *= 2
        return bytes
      },
    })
    expect(await pull()).toEqual([digestOf(layer)])
  })

  test('that never gets on is given up', async () => {
    server.behaviour.ranges = false
    server.behaviour.cutAfterBytes = 20_000
    await expect(pull()).rejects.toMatchObject({ code: 'bad_gateway' })
    expect(server.asked.length).toBeLessThan(20)
  })

  test('that stalls is taken up, and given up in the end', async () => {
    server.behaviour.stalls = true
    server.behaviour.ranges = false
    const source = await registry({ stallMsMax: 100 })
      .open(dir, signal)
      .catch((error) => error)
    expect(source).toMatchObject({ code: 'gateway_timeout' })
  })

  test('that comes in drops is given up, however many there are', async () => {
    const source = await registry({ stallMsMax: 100 }).open(dir, signal)
    server.behaviour.dripEveryMs = 10
    const before = server.blobsAsked
    await expect(source.layers[0]!.open(signal)).rejects.toThrow('sends too slowly')
    expect(server.blobsAsked - before).toBeLessThan(10)
  })

  test('of something else than its digest says is refused', async () => {
    server.behaviour.damaged = true
    await expect(pull()).rejects.toThrow('something else than')
  })

  test('of more than is allowed is refused before it begins', async () => {
    const large = testImage([tar([{ path: 'large', content: Buffer.alloc(2 << 20) }])], {
      compression: 'none',
    })
    server.push('large', 'v1', large)
    await expect(pull({ reference: 'large:v1' })).rejects.toThrow('at most 1048576')
    expect(server.blobsAsked).toBe(1)
  })
})
