import { describe, expect, test } from 'bun:test'
import { forThisHost, hostArchitecture, parseConfig, parseIndex, parseManifest } from './manifest.ts'

const bytes = (value: unknown) => Buffer.from(JSON.stringify(value))
const digest = (letter: string) => `sha256:${letter.repeat(64)}`
const config = (settings: object, more: object = {}) =>
  bytes({
    os: 'linux',
    architecture: hostArchitecture(),
    config: settings,
    rootfs: { diff_ids: [digest('a')] },
    ...more,
  })

describe('the configuration of an image', () => {
  test('says how it wants to be run', () => {
    const settings = {
      Env: ['A=1', 'B=x=y', 'NOVALUE', '=noname'],
      WorkingDir: '/srv/../app/./here/',
      User: 'app:app',
      Entrypoint: ['/run'],
      Cmd: ['a', 'b'],
      ExposedPorts: { '80/tcp': {}, '53/udp': {}, '3000': {}, '99999/tcp': {} },
    }
    expect(parseConfig(config(settings))).toEqual({
      diffIds: [digest('a')],
      settings: {
        env: { A: '1', B: 'x=y' },
        workingDir: '/app/here',
        user: 'app:app',
        entrypoint: ['/run'],
        command: ['a', 'b'],
        ports: [3000, 80],
      },
    })
  })

  test('may say nothing', () => {
    for (const nothing of [
      config({}),
      bytes({ rootfs: {} }),
      bytes({ config: null, rootfs: { diff_ids: null } }),
    ]) {
      const { settings } = parseConfig(nothing)
      expect(settings).toEqual({ env: {}, workingDir: '', user: '', entrypoint: [], command: [], ports: [] })
    }
  })

  test.each([
    ['is not JSON', Buffer.from('{'), 'is not JSON'],
    ['is not text', Buffer.from([0xff, 0xfe]), 'is not JSON'],
    ['is of another system', config({}, { os: 'windows' }), 'windows'],
    ['is of another machine', config({}, { architecture: 'riscv64' }), 'riscv64'],
    ['has a digest that is none', config({}, { rootfs: { diff_ids: ['sha256:../../etc'] } }), 'diff_ids'],
    ['has a strange digest', config({}, { rootfs: { diff_ids: [`sha512:${'a'.repeat(128)}`] } }), 'sha256'],
    ['has too many layers', config({}, { rootfs: { diff_ids: Array(200).fill(digest('a')) } }), 'diff_ids'],
    ['has NUL in a word', config({ Entrypoint: ['a\0b'] }), 'NUL'],
    ['has a huge environment', config({ Env: Array(10).fill(`A=${'x'.repeat(100_000)}`) }), 'environment'],
    ['has a huge command', config({ Cmd: Array(10).fill('x'.repeat(100_000)) }), 'command'],
    ['has a path without end', config({ WorkingDir: `/${'x'.repeat(5000)}` }), 'WorkingDir'],
  ])('that %s is refused', (_, content, message) => {
    expect(() => parseConfig(content)).toThrow(message)
  })
})

describe('an index', () => {
  const entry = (os: string, architecture: string, letter: string, variant?: string) => ({
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    digest: digest(letter),
    size: 1,
    platform: { os, architecture, ...(variant ? { variant } : {}) },
  })
  const chosen = (...manifests: object[]) => forThisHost(parseIndex(bytes({ manifests }))).digest

  test('has one for this host, the plainest where there are several', () => {
    const host = hostArchitecture()
    const others = [
      entry('windows', host, 'b'),
      entry('linux', 'riscv64', 'c'),
      entry('unknown', 'unknown', 'd'),
    ]
    expect(chosen(...others, entry('linux', host, 'a', 'v3'), entry('linux', host, 'e'))).toBe(digest('e'))
    expect(chosen(...others, entry('linux', host, 'a', 'v3'))).toBe(digest('a'))
    expect(() => chosen(...others)).toThrow('windows')
  })

  test('of one image without a platform is that image', () => {
    expect(chosen({ digest: digest('a'), size: 1 })).toBe(digest('a'))
  })
})

test('a manifest with sizes that cannot be is refused', () => {
  const part = { mediaType: 'x', digest: digest('a'), size: 1 }
  expect(parseManifest(bytes({ config: part, layers: [part] })).layers).toHaveLength(1)
  for (const size of [-1, 1.5, '1', 2 ** 60])
    expect(() => parseManifest(bytes({ config: part, layers: [{ ...part, size }] }))).toThrow('size')
})
