import { describe, expect, test } from 'bun:test'
import { header, padded, type TestEntry, tar, withChecksum } from '../images/test-image.ts'
import { ByteReader } from './byte-reader.ts'
import { type TarEntry, TarReader } from './tar.ts'

async function* inChunks(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

interface Read extends Omit<TarEntry, 'stored' | 'extents'> {
  content: string
}

/** Everything an archive says, read in pieces of `chunkBytes`. */
async function readAll(archive: Uint8Array, chunkBytes = 1 << 20): Promise<Read[]> {
  const reader = new TarReader(new ByteReader(inChunks(archive, chunkBytes)))
  const found: Read[] = []
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    const content = Buffer.alloc(Math.min(entry.size, 1 << 20))
    for (let part = await reader.data(); part !== null; part = await reader.data())
      content.set(part.bytes, part.offset)
    const { stored: _, extents: __, ...rest } = entry
    found.push({ ...rest, content: content.toString('latin1') })
  }
  return found
}

const one = async (...entries: TestEntry[]): Promise<Read> => (await readAll(tar(entries)))[0]!

describe('an archive', () => {
  const everything: TestEntry[] = [
    { path: 'dir/', mode: 0o1777, uid: 3, gid: 4 },
    { path: 'dir/file', content: 'x'.repeat(1000), mode: 0o4755, mtime: 5 },
    { path: 'empty' },
    { path: 'link', type: '2', link: 'dir/file' },
    { path: 'hard', type: '1', link: 'dir/file' },
    { path: 'pipe', type: '6' },
    { path: 'null', type: '3' },
  ]

  test.each([1, 7, 511, 512, 513, 1 << 20])('reads the same in chunks of %p bytes', async (chunkBytes) => {
    const found = await readAll(tar(everything), chunkBytes)
    expect(found.map(({ type, path }) => `${type} ${path}`)).toEqual([
      'directory dir/',
      'file dir/file',
      'file empty',
      'symlink link',
      'link hard',
      'fifo pipe',
      'character null',
    ])
    expect(found[0]).toMatchObject({ mode: 0o1777, uid: 3, gid: 4 })
    expect(found[1]).toMatchObject({
      content: 'x'.repeat(1000),
      mode: 0o4755,
      modifiedNs: 5_000_000_000n,
    })
    expect(found[3]!.linkPath).toBe('dir/file')
  })

  test('may end without its two blocks of zeros', async () => {
    expect(await readAll(tar([{ path: 'a', content: 'b' }], { end: false }))).toHaveLength(1)
  })

  test('has names longer than a header: by prefix, of GNU and of pax', async () => {
    const long = `${'d'.repeat(120)}/${'f'.repeat(120)}`
    const prefixed = header({ path: 'name' })
    prefixed.write('some/prefix', 345)
    expect((await readAll(withChecksum(prefixed)))[0]!.path).toBe('some/prefix/name')
    const gnu = Buffer.concat([
      header({ path: '././@LongLink', type: 'L', content: `${long}\0` }),
      padded(Buffer.from(`${long}\0`)),
      header({ path: '././@LongLink', type: 'K', content: `${long}2\0` }),
      padded(Buffer.from(`${long}2\0`)),
      header({ path: 'cut', type: '2', link: 'cut' }),
    ])
    expect((await readAll(gnu))[0]).toMatchObject({ path: long, linkPath: `${long}2` })
    expect(await one({ path: 'cut', pax: { path: long, linkpath: 'there' }, type: '2' })).toMatchObject({
      path: long,
      linkPath: 'there',
    })
  })

  test('has numbers beyond octal digits: in base 256 and in pax', async () => {
    const block = header({ path: 'big' })
    block.fill(0, 108, 116)
    block[108] = 0x80
    block.writeUInt32BE(3_000_000_000, 112)
    expect((await readAll(withChecksum(block)))[0]!.uid).toBe(3_000_000_000)
    const found = await one({
      path: 'pax',
      pax: { uid: '70000', mtime: '1.25', size: '3' },
      size: 0,
      content: 'abc',
    })
    expect(found).toMatchObject({ uid: 70000, modifiedNs: 1_250_000_000n, content: 'abc' })
    expect((await one({ path: 'old', pax: { mtime: '-1.5' } })).modifiedNs).toBe(-1_500_000_000n)
  })

  test('has extended attributes with any bytes', async () => {
    const value = Buffer.from([0, 1, 2, 10, 255])
    const { xattrs } = await one({
      path: 'x',
      pax: { 'SCHILY.xattr.user.a': value, 'LIBARCHIVE.xattr.user.b': value.toString('base64') },
    })
    expect(xattrs.map(([name, bytes]) => [name, [...bytes]])).toEqual([
      ['user.a', [...value]],
      ['user.b', [...value]],
    ])
  })

  test('has sparse files in every form', async () => {
    const expected = 'ab\0\0\0\0cd\0\0'
    const common = { 'GNU.sparse.name': 'real', 'GNU.sparse.realsize': '10' }
    const map = padded(Buffer.from('2\n0\n2\n6\n2\n'))
    const inFile = await one({
      path: 'GNUSparseFile.0/real',
      pax: { ...common, 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0' },
      content: Buffer.concat([map, Buffer.from('abcd')]),
    })
    const inHeader = await one({
      path: 'x',
      pax: { ...common, 'GNU.sparse.map': '0,2,6,2' },
      content: 'abcd',
    })
    const old = header({ path: 'real', type: 'S', content: 'abcd' })
    for (const [index, number] of [0, 2, 6, 2].entries())
      old.write(`${number.toString(8).padStart(11, '0')}\0`, 386 + index * 12)
    old.write('00000000012\0', 483)
    const gnu = (await readAll(Buffer.concat([withChecksum(old), padded(Buffer.from('abcd'))])))[0]
    for (const found of [inFile, inHeader, gnu])
      expect(found).toMatchObject({ path: 'real', size: 10, content: expected })
  })

  test.each([
    ['is not one', Buffer.from('hello '.repeat(200)), 'checksum'],
    ['ends in a file', tar([{ path: 'a', content: 'x'.repeat(2000) }]).subarray(0, 1000), 'in the middle'],
    ['ends in a header', tar([{ path: 'a' }]).subarray(0, 100), 'in the middle'],
    ['has a broken pax header', tar([{ path: 'p', type: 'x', content: '9999 a=b\n' }]), 'not well-formed'],
    ['has a name without end', tar([{ path: 'p', type: 'L', size: 1 << 30 }]), 'extended header has'],
    [
      'has headers of headers',
      tar(Array.from({ length: 40 }, () => ({ path: 'p', type: 'x' }))),
      'too many extended headers',
    ],
    [
      'lies about its holes',
      tar([
        { path: 'x', pax: { 'GNU.sparse.realsize': '10', 'GNU.sparse.map': '6,2,0,2' }, content: 'abcd' },
      ]),
      'map of a sparse file',
    ],
    [
      'lies about the bytes between them',
      tar([{ path: 'x', pax: { 'GNU.sparse.realsize': '10', 'GNU.sparse.map': '0,9' }, content: 'abcd' }]),
      'other bytes than its map',
    ],
    ['has a negative size', tar([{ path: 'x', pax: { size: '-1' } }]), 'not a number'],
  ])('that %s is refused', async (_, archive, message) => {
    await expect(readAll(archive)).rejects.toThrow(message)
  })

  test('whatever its bytes are, is read or refused, and never takes more than it has', async () => {
    const archive = tar(everything)
    let seed = 1
    const random = (below: number) => {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31
      return seed % below
    }
    for (let run = 0; run < 300; run++) {
      const broken = Buffer.from(archive)
      for (let change = 0; change < 3; change++) {
        const block = random(broken.length / 512) * 512
        broken[block + random(512)] = random(256)
        // Half of them get past the checksum.
        if (random(2) === 0) withChecksum(broken.subarray(block, block + 512))
      }
      const found = await readAll(broken).catch((error: Error) => error)
      if (found instanceof Error) expect(found.message).toMatch(/archive/)
    }
  })
})
