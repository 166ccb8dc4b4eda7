import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildHelper } from '../../scripts/build-helper.ts'
import type { LayerAttributes, LayerEntry, LayerSink } from '../spec/layers.ts'
import { HelperLayers } from './layers.ts'

setDefaultTimeout(120_000)
const isRoot = process.getuid?.() === 0
const attributes: LayerAttributes = { mode: 0o644, uid: 0, gid: 0, modifiedNs: 1_700_000_000_123_000_000n }
let base: string
let tree: string
let layers: HelperLayers
let count = 0

beforeAll(async () => {
  base = mkdtempSync(join(tmpdir(), 'hutch-layers-'))
  layers = new HelperLayers((await buildHelper()).path)
})
beforeEach(() => {
  tree = join(base, `tree-${++count}`)
  mkdirSync(tree, { mode: 0o755 })
})
afterAll(() => rmSync(base, { recursive: true, force: true }))

async function write(...entries: (LayerEntry | ((sink: LayerSink) => void))[]): Promise<void> {
  await using sink = await layers.open(tree)
  for (const entry of entries) {
    if (typeof entry === 'function') entry(sink)
    else sink.entry(entry)
  }
  await sink.drained()
  await sink.finish()
}

const file = (path: string, content = path, more: Partial<LayerAttributes> = {}) => {
  return (sink: LayerSink) => {
    const bytes = Buffer.from(content)
    sink.entry({ type: 'file', path, size: bytes.length, ...attributes, ...more })
    if (bytes.length > 0) sink.data(0, bytes)
    sink.complete({ ...attributes, ...more }, [])
  }
}
const directory = (path: string, mode = 0o755): LayerEntry => ({
  type: 'directory',
  path,
  ...attributes,
  mode,
})
const symlink = (path: string, target: string): LayerEntry => ({
  type: 'symlink',
  path,
  target,
  ...attributes,
})
const at = (path: string) => join(tree, path)

describe('a layer', () => {
  test('is written with modes, owners, times, links and holes', async () => {
    await write(
      directory('', 0o750),
      directory('bin', 0o711),
      file('bin/suid', 'program', { mode: 0o6755, uid: 7, gid: 8 }),
      symlink('bin/sh', '/no/such/place'),
      { type: 'link', path: 'deep/er/other', target: 'bin/suid' },
      { type: 'fifo', path: 'pipe', ...attributes },
      (sink) => {
        sink.entry({ type: 'file', path: 'sparse', size: 1 << 30, ...attributes })
        sink.data((1 << 30) - 5, Buffer.from('hello'))
        sink.data(0, new Uint8Array(3 << 20))
        sink.complete(attributes, [])
        sink.modified('bin', 1_000_000_000n)
      },
    )
    const suid = lstatSync(at('bin/suid'))
    expect(suid.mode & 0o7777).toBe(0o6755)
    if (isRoot) expect([suid.uid, suid.gid]).toEqual([7, 8])
    expect(suid.nlink).toBe(2)
    expect(suid.mtimeMs).toBe(1_700_000_000_123)
    expect(lstatSync(at('deep/er/other')).ino).toBe(suid.ino)
    expect(readlinkSync(at('bin/sh'))).toBe('/no/such/place')
    expect(lstatSync(at('pipe')).isFIFO()).toBe(true)
    expect(lstatSync(at('bin')).mtimeMs).toBe(1000)
    expect(lstatSync(at('bin')).mode & 0o777).toBe(0o711)
    expect(lstatSync(tree).mode & 0o777).toBe(0o750)
    const sparse = lstatSync(at('sparse'))
    expect(sparse.size).toBe(1 << 30)
    expect(sparse.blocks * 512).toBeLessThan(64 * 1024)
  })

  test('has the later of two entries with one path, whatever the first was', async () => {
    await write(
      directory('a'),
      file('a/inside'),
      file('a', 'now a file'),
      symlink('b', 'somewhere'),
      directory('b'),
      file('b/inside'),
      file('c'),
      { type: 'link', path: 'c', target: 'c' },
      file('d', 'long content'),
      file('d', 'short'),
    )
    expect(readFileSync(at('a'), 'utf8')).toBe('now a file')
    expect(readFileSync(at('b/inside'), 'utf8')).toBe('b/inside')
    expect(readFileSync(at('c'), 'utf8')).toBe('c')
    expect(readFileSync(at('d'), 'utf8')).toBe('short')
  })

  test('says what lower layers have no more by whiteouts, which what it has itself wins over', async () => {
    await write(
      { type: 'whiteout', path: 'gone' },
      { type: 'whiteout', path: 'replaced' },
      directory('replaced'),
      file('kept'),
      { type: 'whiteout', path: 'kept' },
      { type: 'whiteout', path: 'by-parents' },
      file('by-parents/inside'),
    )
    expect(lstatSync(at('gone')).isCharacterDevice()).toBe(true)
    expect(lstatSync(at('gone')).rdev).toBe(0)
    expect(lstatSync(at('replaced')).isDirectory()).toBe(true)
    expect(readFileSync(at('kept'), 'utf8')).toBe('kept')
    expect(readFileSync(at('by-parents/inside'), 'utf8')).toBe('by-parents/inside')
  })

  test('takes thousands of entries and a hundred megabytes with backpressure', async () => {
    const chunk = new Uint8Array(256 * 1024).fill(7)
    await using sink = await layers.open(tree)
    for (let index = 0; index < 2000; index++) file(`many/${index % 50}/${index}`)(sink)
    sink.entry({ type: 'file', path: 'large', size: 400 * chunk.length, ...attributes })
    for (let index = 0; index < 400; index++) {
      sink.data(index * chunk.length, chunk)
      await sink.drained()
    }
    sink.complete(attributes, [])
    await sink.finish()
    expect(lstatSync(at('large')).size).toBe(400 * chunk.length)
    expect(readdirSync(at('many/7'))).toHaveLength(40)
    await layers.empty(tree)
    expect(readdirSync(tree)).toEqual([])
  })
})

describe('a hostile layer stays where it is', () => {
  let outside: string
  beforeEach(() => {
    outside = join(base, `outside-${count}`)
    mkdirSync(outside)
    writeFileSync(join(outside, 'precious'), 'mine')
  })

  test('through links that lead out of it', async () => {
    const up = '../'.repeat(30)
    await write(
      symlink('absolute', outside),
      file('absolute/written', 'x'),
      symlink('relative', `${up}${outside.slice(1)}`),
      file('relative/written2', 'x'),
      symlink('direct', join(outside, 'precious')),
      file('direct', 'replaced the link'),
    ).catch(() => {})
    expect(readdirSync(outside)).toEqual(['precious'])
    expect(readFileSync(join(outside, 'precious'), 'utf8')).toBe('mine')
  })

  test('through hard links to what is outside', async () => {
    for (const target of ['../outside/precious', '/etc/passwd', `${'../'.repeat(20)}etc/passwd`]) {
      await expect(write({ type: 'link', path: 'passwd', target })).rejects.toThrow()
    }
    await write(symlink('out', '/etc/passwd'), { type: 'link', path: 'passwd', target: 'out' })
    expect(lstatSync(at('passwd')).isSymbolicLink()).toBe(true)
    await expect(
      write(symlink('etc', '/etc'), { type: 'link', path: 'hosts', target: 'etc/hosts' }),
    ).rejects.toThrow('cannot be made')
  })

  test.each([
    ['that leads up', '../up'],
    ['that leads up later', 'a/../../up'],
    ['that is absolute', '/absolute'],
    ['with an empty part', 'a//b'],
    ['with a dot', './a'],
    ['with a dot at its end', 'a/.'],
    ['of its parent', '..'],
    ['of 256 bytes', 'x'.repeat(256)],
    ['deeper than can be removed', `${'d/'.repeat(1600)}f`],
  ])('by a name %s', async (_, path) => {
    await expect(write(file(path))).rejects.toThrow('cannot be made')
  })

  test('by writing past the end of a file, or to none', async () => {
    await expect(write(file('a', 'abc'), (sink) => sink.data(2, Buffer.from('xx')))).rejects.toThrow('data')
    await expect(write(directory('d'), (sink) => sink.data(0, Buffer.from('xx')))).rejects.toThrow('data')
  })

  test.each([
    'trusted.overlay.redirect',
    'user.overlay.redirect',
    'security.selinux',
    'system.posix_acl_access',
  ])('by the extended attribute %p', async (name) => {
    await expect(
      write(file('a'), (sink) => sink.complete(attributes, [[name, Buffer.from('/etc')]])),
    ).rejects.toThrow('extended attribute')
  })

  test('when it is emptied: links are removed, what they lead to is not', async () => {
    await write(symlink('out', outside), directory('deep'), symlink('deep/out', outside), file('deep/f'))
    await layers.empty(tree)
    expect(readdirSync(tree)).toEqual([])
    expect(existsSync(join(outside, 'precious'))).toBe(true)
    await layers.empty(tree)
  })

  test('and leaves no process when it is given up half way', async () => {
    const sink = await layers.open(tree)
    sink.entry({ type: 'file', path: 'half', size: 10, ...attributes })
    await sink[Symbol.asyncDispose]()
    await expect(sink.finish()).rejects.toThrow()
  })
})
