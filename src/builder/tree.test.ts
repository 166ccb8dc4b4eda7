import { afterAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import * as fc from 'fast-check'
import { PlatformError } from '../errors.ts'
import { type TestEntry, tar } from '../images/test-image.ts'
import { ByteReader } from '../lib/byte-reader.ts'
import { TarReader } from '../lib/tar.ts'
import { type ZipEntry, zip } from './test-zip.ts'
import { survey, type TreeOptions, treeOf } from './tree.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-tree-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const { signal } = new AbortController()
const symlinkMode = 0o120777
let count = 0

interface Made {
  type: string
  content: string
  mode: number
  link: string
  seconds: number
}

/** What comes of an archive, by path. */
async function made(
  bytes: Uint8Array,
  type: 'zip' | 'tar',
  options: Partial<TreeOptions> = {},
): Promise<Map<string, Made>> {
  const path = join(dir, `archive-${++count}`)
  writeFileSync(path, bytes)
  const found = await survey(path, type, signal)
  const reader = new TarReader(new ByteReader(treeOf(path, type, found, { into: 'p', ...options })))
  const entries = new Map<string, Made>()
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    const parts: Uint8Array[] = []
    for (let part = await reader.data(); part !== null; part = await reader.data())
      parts.push(part.bytes.slice())
    if (entry.path === 'p/') continue
    expect(entry.path).toStartWith('p/')
    entries.set(entry.path.slice(2), {
      type: entry.type,
      content: Buffer.concat(parts).toString(),
      mode: entry.mode,
      link: entry.linkPath,
      seconds: Number(entry.modifiedNs / 1_000_000_000n),
    })
  }
  return entries
}

const fromZip = (entries: ZipEntry[], options?: Parameters<typeof zip>[1]) =>
  made(zip(entries, options), 'zip')
const fromTar = (entries: TestEntry[]) => made(tar(entries), 'tar')

async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work
  } catch (error) {
    if (PlatformError.is(error) && error.code === 'unprocessable') return error.message
    throw error
  }
  throw new Error('it was taken')
}

test('a file that decides how it is built and is too long to be read is told of, unless another takes its place', async () => {
  const long = 'x'.repeat(5 * 1024 * 1024)
  for (const path of ['blaxel.toml', 'Dockerfile', 'package.json', '.docker/config.json'])
    expect(await refusal(fromTar([{ path, content: long }]))).toBe(
      `the archive is refused: "${path}" has ${long.length} bytes, and is read up to 4194304`,
    )
  const entries = await fromTar([
    { path: 'blaxel.toml', content: long },
    { path: 'blaxel.toml', content: 'name = "short"' },
    { path: 'package-lock.json', content: long },
    { path: 'fixtures/package.json', content: long },
    { path: 'main.py', content: long },
  ])
  expect(entries.get('blaxel.toml')?.content).toBe('name = "short"')
  expect(entries.size).toBe(4)
})

describe('a zip archive', () => {
  test('is read whatever way its entries are written', async () => {
    const long = 'a'.repeat(100_000)
    const entries = await fromZip(
      [
        { path: 'deflated', content: long },
        { path: 'stored', content: 'as it is', method: 0 },
        { path: 'described', content: 'sizes behind', descriptor: true },
        { path: 'large', content: 'sizes of 64 bits', zip64: true },
        { path: 'empty', content: '' },
        { path: 'folder/', unixMode: 0o040700 },
        { path: 'folder/run.sh', content: '#!/bin/sh', unixMode: 0o100755, seconds: 1_700_000_001 },
        { path: 'folder/link', content: '../stored', unixMode: symlinkMode },
        { path: 'ümlaut', content: 'utf-8' },
      ],
      { comment: 'a comment', zip64: true },
    )
    const content = Object.fromEntries([...entries].map(([path, one]) => [path, one.content]))
    expect(content).toEqual({
      deflated: long,
      stored: 'as it is',
      described: 'sizes behind',
      large: 'sizes of 64 bits',
      empty: '',
      folder: '',
      'folder/run.sh': '#!/bin/sh',
      'folder/link': '',
      [Buffer.from('ümlaut').toString('latin1')]: 'utf-8',
    })
    expect(entries.get('folder')).toMatchObject({ type: 'directory', mode: 0o700 })
    expect(entries.get('folder/run.sh')).toMatchObject({ mode: 0o755, seconds: 1_700_000_001 })
    expect(entries.get('folder/link')).toMatchObject({ type: 'symlink', link: '../stored' })
    expect(entries.get('stored')).toMatchObject({ type: 'file', mode: 0o644 })
  })

  test('has what stands last under a path', async () => {
    const entries = await fromZip([
      { path: 'blaxel.toml', content: 'of the root' },
      { path: 'other', content: 'x' },
      { path: './blaxel.toml', content: 'of the folder' },
    ])
    expect(entries.get('blaxel.toml')?.content).toBe('of the folder')
    expect(entries.size).toBe(2)
  })

  test('of another kind of file, or an encrypted or unknown one, is refused', async () => {
    expect(await refusal(fromZip([{ path: 'fifo', unixMode: 0o010644 }]))).toContain(
      '"fifo" is a device, a socket',
    )
    expect(await refusal(fromZip([{ path: 'secret', flags: 1 }]))).toContain('"secret" is encrypted')
    expect(await refusal(fromZip([{ path: 'odd', method: 14 }]))).toContain('compressed by method 14')
  })

  test('that says what is not so is refused', async () => {
    expect(await refusal(fromZip([{ path: 'a', content: 'abc', bytes: 2 }]))).toContain(
      'has more bytes than it says',
    )
    expect(await refusal(fromZip([{ path: 'a', content: 'abc', bytes: 4 }]))).toContain('has fewer bytes')
    expect(await refusal(fromZip([{ path: 'a', content: 'abc', crc: 1 }]))).toContain(
      'its checksum is another',
    )
    expect(await refusal(fromZip([{ path: 'a', content: 'abc', method: 0, bytes: 5 }]))).toContain(
      'two sizes',
    )
    expect(await refusal(made(Buffer.from('not a zip'), 'zip'))).toContain('no zip archive')
    expect(await refusal(made(zip([{ path: 'a', content: 'abc' }]).subarray(10), 'zip'))).toContain(
      'cannot be read',
    )
  })

  test('that grows beyond measure is refused: by ratio, and by entries that share their bytes', async () => {
    const zeros = Buffer.alloc(70 * 1024 * 1024)
    expect(await refusal(fromZip([{ path: 'zeros', content: zeros }]))).toContain('it grows too much')
    const shared: ZipEntry[] = [{ path: 'one', content: Buffer.alloc(1024, 'ab'), method: 0 }]
    for (let at = 0; at < 40; at++)
      shared.push({ path: `more-${at}`, content: shared[0]!.content!, method: 0, dataOf: 0 })
    expect(await refusal(fromZip(shared))).toContain('its entries overlap')
    expect(await refusal(fromZip([{ path: 'huge', content: 'x', bytes: 2 * 1024 ** 3 }]))).toContain(
      'a file may have',
    )
  })

  test('whatever its bytes are, is read or refused', async () => {
    const good = zip([
      { path: 'a/b', content: 'hello hello hello', descriptor: true },
      { path: 'c', content: 'x', zip64: true },
      { path: 'l', content: 'c', unixMode: symlinkMode },
    ])
    const change = fc.record({ at: fc.nat(good.length - 1), value: fc.integer({ min: 0, max: 255 }) })
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 6 }), async (changes) => {
        const bytes = Buffer.from(good)
        for (const { at, value } of changes) bytes[at] = value
        try {
          await made(bytes, 'zip')
        } catch (error) {
          if (!PlatformError.is(error) || error.code !== 'unprocessable') throw error
        }
      }),
      { numRuns: 300 },
    )
  })
})

describe('a tar archive', () => {
  test('is read, compressed or not, with its links', async () => {
    const archive = tar([
      { path: './a/', type: '5' },
      { path: './a/file', content: 'text', mode: 0o4755 },
      { path: 'hard', type: '1', link: 'a/file' },
      { path: 'soft', type: '2', link: 'a/../a/file'.replace('../a/', '') },
    ])
    for (const bytes of [archive, gzipSync(archive)]) {
      const entries = await made(bytes, 'tar')
      expect(entries.get('a/file')).toMatchObject({ content: 'text', mode: 0o755 })
      expect(entries.get('hard')).toMatchObject({ type: 'link', link: 'p/a/file' })
      expect(entries.get('soft')).toMatchObject({ type: 'symlink', link: 'a/file' })
    }
  })

  test('has what stands last under a path', async () => {
    const entries = await fromTar([
      { path: 'a', content: 'first' },
      { path: 'a', content: 'second' },
    ])
    expect(entries.get('a')?.content).toBe('second')
  })

  test.each([
    ['an absolute path', [{ path: '/etc/passwd', content: 'x' }], 'the path "/etc/passwd" is absolute'],
    ['a path that leads out', [{ path: 'a/../../b', content: 'x' }], 'leads out by ".."'],
    ['a path of another system', [{ path: 'C:\\x', content: 'x' }], 'is absolute'],
    ['backslashes', [{ path: 'a\\..\\b', content: 'x' }], 'has a backslash'],
    ['a link to a place outside', [{ path: 'a', type: '2', link: '/etc' }], 'leads out of the project'],
    [
      'a link that leads up too far',
      [{ path: 'a/b', type: '2', link: '../../x' }],
      'leads out of the project',
    ],
    [
      'a link that leads up behind a name',
      [{ path: 'a', type: '2', link: 'b/../..' }],
      'leads out of the project',
    ],
    ['a link without target', [{ path: 'a', type: '2', link: '' }], 'has no target'],
    [
      'a file through a link',
      [
        { path: 'a', type: '2', link: 'b' },
        { path: 'a/file', content: 'x' },
      ],
      '"a/file" is to be written through the symbolic link "a"',
    ],
    [
      'a file through a link that comes later',
      [
        { path: 'a/file', content: 'x' },
        { path: 'a', type: '2', link: 'b' },
      ],
      'through the symbolic link "a"',
    ],
    [
      'a file in a file',
      [
        { path: 'a', content: 'x' },
        { path: 'a/file', content: 'x' },
      ],
      'which is a file',
    ],
    ['a hard link out', [{ path: 'a', type: '1', link: '/etc/passwd' }], 'is absolute'],
    ['a hard link to nothing', [{ path: 'a', type: '1', link: 'b' }], 'is no file of it'],
    ['a device', [{ path: 'a', type: '3' }], 'is a device'],
    ['a named pipe', [{ path: 'a', type: '6' }], 'is a named pipe'],
    ['marks of layers', [{ path: 'a/.wh.b', content: '' }], 'begins with ".wh."'],
    ['NUL in a path', [{ path: 'x', pax: { path: 'a\0b' } }], 'NUL'],
    [
      'folders in folders without end',
      [{ path: `${'a/'.repeat(65)}b`, pax: { path: `${'a/'.repeat(65)}b` } }],
      'too long',
    ],
  ] as [string, TestEntry[], string][])('with %s is refused', async (_, entries, message) => {
    expect(await refusal(fromTar(entries))).toContain(message)
  })
})

describe('the tree of a project', () => {
  test('has no secrets of the machine that it is from, nor its history', async () => {
    const path = join(dir, 'secrets')
    writeFileSync(
      path,
      tar(
        [
          '.env',
          '.env.local',
          'packages/one/.env.production',
          '.env.d/x',
          '.env.build',
          '.git/config',
          '.docker/config.json',
          '.netrc',
          'src/environment.ts',
          'node_modules/dotenv/.env.example',
        ].map((name) => ({ path: name, content: `of ${name}` })),
      ),
    )
    const found = await survey(path, 'tar', signal)
    expect(found.buildEnvText).toBe('of .env.build')
    expect(found.dockerConfig).toBe('of .docker/config.json')
    expect([...found.files.keys()]).toEqual(['src/environment.ts', 'node_modules/dotenv/.env.example'])
    expect([...(await made(await Bun.file(path).bytes(), 'tar')).keys()]).toEqual([
      'src/environment.ts',
      'node_modules/dotenv/.env.example',
    ])
  })

  test('has other content where that is asked for, and leaves out what is named', async () => {
    const entries = await made(
      tar([
        { path: 'package.json', content: 'old' },
        { path: 'node_modules/x', content: 'x' },
      ]),
      'tar',
      {
        replace: (path) => (path === 'package.json' ? Buffer.from('quite another') : null),
        without: (path) => path.startsWith('node_modules'),
      },
    )
    expect([...entries].map(([path, { content }]) => [path, content])).toEqual([
      ['package.json', 'quite another'],
    ])
  })

  test('keeps names that are long', async () => {
    const long = `${'folder/'.repeat(30)}file`
    const entries = await fromZip([
      { path: long, content: 'deep' },
      { path: 'link', content: long, unixMode: symlinkMode },
    ])
    expect(entries.get(long)?.content).toBe('deep')
    expect(entries.get('link')?.link).toBe(long)
  })
})
