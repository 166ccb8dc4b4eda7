import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, linkSync, mkdirSync, symlinkSync } from 'node:fs'
import { chmod, lstat, mkdir, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../lib/test-eventually.ts'
import { readEntries, readEntry } from './codec.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { PayloadReader } from './payload.ts'
import { describeError, TestConnection, TestGuest } from './test-guest.ts'

setDefaultTimeout(120_000)

const allOnes32 = 0xffffffff
const allOnes64 = 0xffffffffffffffffn
const enospc = 'errno 28 '
const asRoot = process.getuid?.() === 0 ? test : test.skip

let guest: TestGuest
let files: TestConnection
let dir: string
let lastId = 0
let lastDir = 0

beforeAll(async () => {
  guest = await TestGuest.start()
  files = await guest.files()
})
afterAll(() => guest[Symbol.asyncDispose]())
beforeEach(async () => {
  dir = join(guest.dir, `files${++lastDir}`)
  await mkdir(dir)
})

async function entry(connection: TestConnection, frame: FrameWriter, id: number) {
  const answer = await connection.send(frame).next((frame) => frame.id === id)
  return answer.type === FrameType.entryOk ? readEntry(answer.payload) : describeError(answer)
}

const statOf = (path: string, follow = 0, connection = files) =>
  entry(connection, new FrameWriter(FrameType.stat, ++lastId).u8(follow).str(path), lastId)

async function readAll(
  path: string,
  offset: number | bigint = 0,
  length: number | bigint = allOnes64,
  connection = files,
) {
  const id = ++lastId
  const first = await entry(
    connection,
    new FrameWriter(FrameType.read, id).u64(offset).u64(length).str(path),
    id,
  )
  if (typeof first === 'string') return first
  const chunks: Uint8Array[] = []
  for (;;) {
    const frame = await connection.next((frame) => frame.id === id)
    if (frame.type === FrameType.end) return { entry: first, data: Buffer.concat(chunks) }
    if (frame.type === FrameType.error) return describeError(frame)
    expect(frame.payload.length).toBeLessThanOrEqual(1024 * 1024)
    chunks.push(frame.payload)
  }
}

const newFileOnly = 0x8000_0000
const writeStart = (path: string, mode = allOnes32) =>
  new FrameWriter(FrameType.write, ++lastId).u32(mode).str(path)
const dataFrame = (id: number, bytes: Uint8Array) => new FrameWriter(FrameType.data, id).raw(bytes)

async function write(path: string, content: string | Uint8Array, mode = allOnes32, connection = files) {
  connection.send(writeStart(path, mode))
  const id = lastId
  const bytes = typeof content === 'string' ? Buffer.from(content) : content
  for (let at = 0; at < bytes.length; at += 1 << 20) {
    connection.send(dataFrame(id, bytes.subarray(at, at + (1 << 20))))
  }
  return await entry(connection, new FrameWriter(FrameType.end, id), id)
}

async function list(path: string) {
  const id = ++lastId
  files.send(new FrameWriter(FrameType.readdir, id).str(path))
  const entries = []
  for (;;) {
    const frame = await files.next((frame) => frame.id === id)
    if (frame.type === FrameType.error) return describeError(frame)
    if (frame.type === FrameType.end) return entries
    const batch = readEntries(frame.payload)
    expect(batch.length).toBeLessThanOrEqual(1000)
    entries.push(...batch)
  }
}

const remove = (path: string, recursive = 0, connection = files) =>
  connection.request(new FrameWriter(FrameType.remove, ++lastId).u8(recursive).str(path), lastId)
const makeDirectory = (path: string, parents = 0, mode = 0o755) =>
  files.request(new FrameWriter(FrameType.mkdir, ++lastId).u32(mode).u8(parents).str(path), lastId)
const temporaries = async () => (await readdir(dir)).filter((name) => name.startsWith('.hutch-'))

describe('STAT', () => {
  test('tells files, directories, links, fifos and devices', async () => {
    await writeFile(join(dir, 'f'), 'hello', { mode: 0o640 })
    symlinkSync('f', join(dir, 'l'))
    execFileSync('mkfifo', [join(dir, 'p')])
    const file = await lstat(join(dir, 'f'))
    expect(await statOf(join(dir, 'f'))).toEqual({
      type: 'f',
      mode: 0o640,
      uid: file.uid,
      gid: file.gid,
      size: 5,
      modifiedMs: Math.floor(file.mtimeMs),
      links: 1,
      name: 'f',
      linkTarget: '',
    })
    expect(await statOf(join(dir, 'l'))).toMatchObject({ type: 'l', linkTarget: 'f', name: 'l' })
    expect(await statOf(join(dir, 'l'), 1)).toMatchObject({ type: 'f', size: 5, linkTarget: '' })
    expect(await statOf(join(dir, 'p'))).toMatchObject({ type: 'p' })
    expect(await statOf('/dev/null')).toMatchObject({ type: 'c' })
    expect(await statOf('/')).toMatchObject({ type: 'd', name: '/' })
    expect(await statOf(join(dir, 'none'))).toStartWith('errno 2 ')
    expect(await statOf('relative')).toStartWith('errno 22 ')
    expect(await statOf(`/${'a'.repeat(5000)}`)).toStartWith('errno 36 ')
  })
})

describe('READ', () => {
  test('answers the whole file, ranges of it, and nothing beyond its end', async () => {
    const content = Buffer.from(crypto.getRandomValues(new Uint8Array(60_000)))
    const large = Buffer.concat(Array.from({ length: 20 }, () => content))
    await writeFile(join(dir, 'f'), large)
    expect(await readAll(join(dir, 'f'))).toMatchObject({ entry: { size: large.length }, data: large })
    expect(await readAll(join(dir, 'f'), 100, 300_000)).toMatchObject({ data: large.subarray(100, 300_100) })
    expect(await readAll(join(dir, 'f'), large.length - 3)).toMatchObject({ data: large.subarray(-3) })
    expect(await readAll(join(dir, 'f'), large.length + 3)).toMatchObject({ data: Buffer.alloc(0) })
    expect(await readAll(join(dir, 'f'), allOnes64)).toMatchObject({ data: Buffer.alloc(0) })
    expect(await readAll(join(dir, 'f'), 0, 0)).toMatchObject({ data: Buffer.alloc(0) })
  })

  test('reads what /proc says, though its size is 0', async () => {
    const answer = await readAll('/proc/version')
    expect(typeof answer === 'object' && answer.data.toString()).toStartWith('Linux version')
  })

  test('is for regular files only, and a fifo does not hang it', async () => {
    execFileSync('mkfifo', [join(dir, 'p')])
    expect(await readAll(join(dir, 'p'))).toStartWith('errno 22 ')
    expect(await readAll(dir)).toStartWith('errno 21 ')
    expect(await readAll('/dev/zero')).toStartWith('errno 22 ')
    expect(await readAll(join(dir, 'none'))).toStartWith('errno 2 ')
  })

  test('a file that shrinks meanwhile ends early, with frames that are still true', async () => {
    const path = join(dir, 'f')
    await writeFile(path, Buffer.alloc(16 << 20, 1))
    const connection = await guest.files()
    connection.socket.pause()
    const id = ++lastId
    connection.send(new FrameWriter(FrameType.read, id).u64(0).u64(allOnes64).str(path))
    await Bun.sleep(50)
    await truncate(path, 1 << 20)
    connection.socket.resume()
    let bytes = 0
    let frame = await connection.next()
    expect(frame.type).toBe(FrameType.entryOk)
    for (frame = await connection.next(); frame.type === FrameType.data; frame = await connection.next()) {
      bytes += frame.payload.length
    }
    expect(frame.type).toBe(FrameType.end)
    expect(bytes).toBeGreaterThanOrEqual(1 << 20)
    expect(bytes).toBeLessThan(16 << 20)
    connection.close()
  })

  test('closing the connection cancels it', async () => {
    await writeFile(join(dir, 'f'), '')
    await truncate(join(dir, 'f'), 8 * 2 ** 30)
    const before = await workers()
    const connection = await guest.files()
    connection.send(new FrameWriter(FrameType.read, 1).u64(0).u64(allOnes64).str(join(dir, 'f')))
    await connection.next()
    connection.close()
    await eventually(async () => (await workers()) <= before)
  })
})

describe('WRITE', () => {
  test('makes a new file with 0644 or the given mode, and its parents', async () => {
    expect(await write(join(dir, 'a/b/c'), 'text')).toMatchObject({
      type: 'f',
      mode: 0o644,
      size: 4,
      name: 'c',
    })
    expect(await readFile(join(dir, 'a/b/c'), 'utf8')).toBe('text')
    expect((await stat(join(dir, 'a'))).mode & 0o7777).toBe(0o755)
    expect(await write(join(dir, 'x'), '', 0o4711)).toMatchObject({ mode: 0o4711, size: 0 })
    expect(await temporaries()).toEqual([])
  })

  test('a large file arrives unchanged', async () => {
    const content = Buffer.alloc(5_000_000)
    for (let i = 0; i < content.length; i += 4) content.writeUInt32LE(i, i)
    expect(await write(join(dir, 'f'), content)).toMatchObject({ size: content.length })
    expect((await readFile(join(dir, 'f'))).equals(content)).toBe(true)
  })

  test('replaces a file as a whole and keeps its mode', async () => {
    await writeFile(join(dir, 'f'), 'old content', { mode: 0o600 })
    const before = await stat(join(dir, 'f'))
    files.send(writeStart(join(dir, 'f')))
    const id = lastId
    files.send(dataFrame(id, Buffer.from('new')))
    await eventually(async () => (await temporaries()).length === 1)
    expect(await readFile(join(dir, 'f'), 'utf8')).toBe('old content')
    expect(await entry(files, new FrameWriter(FrameType.end, id), id)).toMatchObject({ mode: 0o600, size: 3 })
    expect(await readFile(join(dir, 'f'), 'utf8')).toBe('new')
    expect((await stat(join(dir, 'f'))).ino).not.toBe(before.ino)
    expect(await write(join(dir, 'f'), 'x', 0o755)).toMatchObject({ mode: 0o755 })
    expect(await write(join(dir, 'f'), 'x', newFileOnly + 0o640)).toMatchObject({ mode: 0o755 })
    expect(await write(join(dir, 'new'), 'x', newFileOnly + 0o640)).toMatchObject({ mode: 0o640 })
  })

  test('follows links, also dangling ones, and leaves them links', async () => {
    mkdirSync(join(dir, 'real'))
    await writeFile(join(dir, 'real/f'), 'old')
    symlinkSync('real/f', join(dir, 'one'))
    symlinkSync(join(dir, 'one'), join(dir, 'two'))
    expect(await write(join(dir, 'two'), 'new')).toMatchObject({ type: 'f', name: 'two' })
    expect(await readFile(join(dir, 'real/f'), 'utf8')).toBe('new')
    expect((await lstat(join(dir, 'one'))).isSymbolicLink()).toBe(true)
    symlinkSync('fresh/g', join(dir, 'dangling'))
    expect(await write(join(dir, 'dangling'), 'made')).toMatchObject({ size: 4 })
    expect(await readFile(join(dir, 'fresh/g'), 'utf8')).toBe('made')
    symlinkSync('loop', join(dir, 'loop'))
    expect(await write(join(dir, 'loop'), 'x')).toStartWith('errno 40 ')
  })

  test('a file with several names is written in place', async () => {
    await writeFile(join(dir, 'a'), 'a longer old content', { mode: 0o640 })
    linkSync(join(dir, 'a'), join(dir, 'b'))
    expect(await write(join(dir, 'a'), 'short')).toMatchObject({ size: 5, links: 2, mode: 0o640 })
    expect(await readFile(join(dir, 'b'), 'utf8')).toBe('short')
    expect(await write(join(dir, 'b'), 'x'.repeat(300_000))).toMatchObject({ size: 300_000, links: 2 })
    expect((await readFile(join(dir, 'a'))).length).toBe(300_000)
    expect((await readdir(dir)).sort()).toEqual(['a', 'b'])
  })

  test('a device takes it; a directory, a fifo and bad paths do not', async () => {
    expect(await write('/dev/null', 'gone')).toMatchObject({ type: 'c' })
    expect(await write('/dev/full', 'x')).toStartWith(enospc)
    execFileSync('mkfifo', [join(dir, 'p')])
    expect(await write(join(dir, 'p'), 'x')).toStartWith('errno 22 ')
    expect(await write(dir, 'x')).toStartWith('errno 21 ')
    expect(await write(`${dir}/`, 'x')).toStartWith('errno 21 ')
    await writeFile(join(dir, 'f'), '')
    expect(await write(join(dir, 'f/g'), 'x')).toStartWith('errno 20 ')
    expect(await write('relative', 'x')).toStartWith('errno 22 ')
    expect(await write(join(dir, 'n'.repeat(256)), 'x')).toStartWith('errno 36 ')
  })

  test('ABORT keeps the old file and drops the temporary one', async () => {
    await writeFile(join(dir, 'f'), 'old')
    files.send(writeStart(join(dir, 'f')))
    const id = lastId
    files.send(dataFrame(id, new Uint8Array(100_000)))
    expect(await files.request(new FrameWriter(FrameType.abort, id), id)).toBe('OK')
    expect(await readdir(dir)).toEqual(['f'])
    expect(await readFile(join(dir, 'f'), 'utf8')).toBe('old')
  })

  test('so does a lost connection, and the end of the guest', async () => {
    await using ending = await TestGuest.start()
    for (const how of ['connection', 'guest']) {
      const connection = await ending.files()
      connection.send(writeStart(join(dir, 'f')))
      connection.send(dataFrame(lastId, new Uint8Array(100_000)))
      await eventually(async () => (await temporaries()).length === 1)
      if (how === 'connection') connection.close()
      else process.kill(ending.pid, 'SIGTERM')
      await eventually(async () => (await readdir(dir)).length === 0)
    }
    expect(await ending.exited).toBe(0)
  })

  test('after an ERROR data is discarded, and the connection goes on', async () => {
    files.send(writeStart(dir))
    const id = lastId
    const error = await files.next((frame) => frame.id === id)
    expect(describeError(error)).toStartWith('errno 21 ')
    files.send(dataFrame(id, new Uint8Array(1 << 20))).send(dataFrame(id, new Uint8Array(5)))
    files.send(new FrameWriter(FrameType.end, id))
    expect(await statOf(dir)).toMatchObject({ type: 'd' })
  })

  describe('APPEND', () => {
    const append = (id: number, path: string) =>
      files.request(new FrameWriter(FrameType.append, id).str(path), id)

    test('takes what a file has in it among the data, also of one that is written meanwhile', async () => {
      await writeFile(join(dir, 'a'), 'from a, ')
      files.send(writeStart(join(dir, 'f')))
      const id = lastId
      files.send(dataFrame(id, Buffer.from('sent, ')))
      expect(await append(id, join(dir, 'a'))).toBe('OK')
      // It has grown by what was appended before, and no further while it is read.
      const [own] = await temporaries()
      expect(await append(id, join(dir, own ?? ''))).toBe('OK')
      files.send(dataFrame(id, Buffer.from('sent.')))
      const written = await entry(files, new FrameWriter(FrameType.end, id), id)
      expect(written).toMatchObject({ name: 'f', size: 33 })
      expect(await readFile(join(dir, 'f'), 'utf8')).toBe('sent, from a, sent, from a, sent.')
      expect(await temporaries()).toEqual([])
    })

    test('of what is no file is an ERROR, which leaves the old file', async () => {
      await writeFile(join(dir, 'f'), 'old')
      await writeFile(join(dir, 'a'), 'from a')
      execFileSync('mkfifo', [join(dir, 'pipe')])
      for (const [path, errno] of [
        [dir, 21],
        [join(dir, 'missing'), 2],
        [join(dir, 'pipe'), 22],
        ['relative', 22],
      ] as const) {
        files.send(writeStart(join(dir, 'f')))
        const id = lastId
        expect(await append(id, join(dir, 'a'))).toBe('OK')
        expect(await append(id, path)).toStartWith(`errno ${errno} `)
        // What was sent before that was heard is discarded.
        files.send(new FrameWriter(FrameType.append, id).str(join(dir, 'a')))
        files.send(new FrameWriter(FrameType.end, id))
        expect(await statOf(join(dir, 'f'))).toMatchObject({ size: 3 })
      }
      expect(await temporaries()).toEqual([])
    })

    test('that is no path ends the connection', async () => {
      for (const payload of [Buffer.alloc(3), Buffer.alloc(5000, 'x'), Buffer.from([1, 0, 0, 0, 0])]) {
        const connection = await guest.files()
        connection.send(writeStart(join(dir, 'f')))
        connection.send(new FrameWriter(FrameType.append, lastId).raw(payload))
        await expect(connection.next(() => true)).rejects.toThrow()
      }
      await eventually(async () => (await readdir(dir)).length === 0)
    })
  })

  asRoot('a full disk leaves the old file and nothing half-written (needs root)', async () => {
    const mount = join(dir, 'tmpfs')
    await mkdir(mount)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', mount])
    try {
      await writeFile(join(mount, 'f'), 'old')
      await writeFile(join(mount, 'a'), 'linked')
      linkSync(join(mount, 'a'), join(mount, 'b'))
      const big = new Uint8Array(3 << 20)
      for (const name of ['f', 'a', 'new']) expect(await write(join(mount, name), big)).toStartWith(enospc)
      expect((await readdir(mount)).sort()).toEqual(['a', 'b', 'f'])
      expect(await readFile(join(mount, 'f'), 'utf8')).toBe('old')
      expect(await readFile(join(mount, 'b'), 'utf8')).toBe('linked')
      // The copy fits beside the old content, but not twice: the target's space is what is missing.
      expect(await write(join(mount, 'a'), new Uint8Array(700 << 10))).toStartWith(enospc)
      expect(await readFile(join(mount, 'b'), 'utf8')).toBe('linked')
      expect(await write(join(mount, 'f'), 'fits')).toMatchObject({ size: 4 })
      await writeFile(join(dir, 'large'), big)
      files.send(writeStart(join(mount, 'f')))
      const id = lastId
      const appended = new FrameWriter(FrameType.append, id).str(join(dir, 'large'))
      expect(await files.request(appended, id)).toStartWith(enospc)
      files.send(new FrameWriter(FrameType.end, id))
      expect(await statOf(join(mount, 'f'))).toMatchObject({ size: 4 })
      expect((await readdir(mount)).sort()).toEqual(['a', 'b', 'f'])
    } finally {
      execFileSync('umount', [mount])
    }
  })

  asRoot('keeps the owner, and another user may do only what it may (needs root)', async () => {
    chmodSync(guest.dir, 0o755)
    await writeFile(join(dir, 'f'), 'old')
    chownSync(join(dir, 'f'), 1234, 1235)
    expect(await write(join(dir, 'f'), 'new')).toMatchObject({ uid: 1234, gid: 1235 })
    const user = await guest.files(1234, 1235)
    // Its directory belongs to root, so the file is written in place.
    expect(await write(join(dir, 'f'), 'mine', allOnes32, user)).toMatchObject({ uid: 1234, size: 4 })
    expect(await write(join(dir, 'g'), 'x', allOnes32, user)).toStartWith('errno 13 ')
    await writeFile(join(dir, 'r'), 'root', { mode: 0o644 })
    expect(await write(join(dir, 'r'), 'x', allOnes32, user)).toStartWith('errno 13 ')
    await chmod(join(dir, 'r'), 0o600)
    expect(await readAll(join(dir, 'r'), 0, allOnes64, user)).toStartWith('errno 13 ')
    chmodSync(dir, 0o777)
    expect(await write(join(dir, 'g'), 'x', allOnes32, user)).toMatchObject({ uid: 1234, gid: 1235 })
    expect(await write(join(dir, 'r'), 'x', allOnes32, user)).toStartWith('errno 13 ')
    expect((await readdir(dir)).sort()).toEqual(['f', 'g', 'r'])
    user.close()
  })
})

describe('directories', () => {
  test('READDIR lists what is there without following links', async () => {
    await writeFile(join(dir, 'f'), 'x')
    mkdirSync(join(dir, 'd'))
    symlinkSync('/nowhere', join(dir, 'l'))
    const entries = await list(dir)
    expect(typeof entries === 'object' && entries.map(({ name, type }) => name + type).sort()).toEqual([
      'dd',
      'ff',
      'll',
    ])
    expect(await list(join(dir, 'd'))).toEqual([])
    expect(await list(join(dir, 'f'))).toStartWith('errno 20 ')
    expect(await list(join(dir, 'none'))).toStartWith('errno 2 ')
  })

  test('a hundred thousand entries come in batches and go at once', async () => {
    const many = join(dir, 'many')
    mkdirSync(many)
    execFileSync('sh', ['-c', 'seq 1 100000 | xargs touch'], { cwd: many })
    const entries = await list(many)
    expect(new Set(typeof entries === 'object' ? entries.map(({ name }) => name) : []).size).toBe(100_000)
    expect(await remove(many)).toStartWith('errno 39 ')
    expect(await remove(many, 1)).toBe('OK')
    expect(await readdir(dir)).toEqual([])
  })

  test('MKDIR: mode, parents and what exists', async () => {
    expect(await makeDirectory(join(dir, 'a'), 0, 0o1777)).toBe('OK')
    expect((await stat(join(dir, 'a'))).mode & 0o7777).toBe(0o1777)
    expect(await makeDirectory(join(dir, 'a'))).toStartWith('errno 17 ')
    expect(await makeDirectory(join(dir, 'a'), 1)).toBe('OK')
    expect(await makeDirectory(join(dir, 'b/c'))).toStartWith('errno 2 ')
    expect(await makeDirectory(join(dir, 'b/c/'), 1, 0o700)).toBe('OK')
    expect((await stat(join(dir, 'b'))).mode & 0o7777).toBe(0o755)
    expect((await stat(join(dir, 'b/c'))).mode & 0o7777).toBe(0o700)
    await writeFile(join(dir, 'f'), '')
    expect(await makeDirectory(join(dir, 'f'), 1)).toStartWith('errno 17 ')
  })

  test('REMOVE does not follow links, and refuses what it must', async () => {
    mkdirSync(join(dir, 'kept'))
    await writeFile(join(dir, 'kept/f'), 'x')
    mkdirSync(join(dir, 'tree/sub'), { recursive: true })
    symlinkSync(join(dir, 'kept'), join(dir, 'tree/sub/link'))
    symlinkSync(join(dir, 'kept'), join(dir, 'link'))
    expect(await remove(join(dir, 'tree'), 1)).toBe('OK')
    expect(await remove(join(dir, 'link'), 1)).toBe('OK')
    expect(await readdir(join(dir, 'kept'))).toEqual(['f'])
    expect(await remove(join(dir, 'kept'))).toStartWith('errno 39 ')
    expect(await remove(join(dir, 'none'), 1)).toStartWith('errno 2 ')
    expect(await remove('/', 1)).toStartWith('errno 16 ')
    expect(await remove(`${dir}/kept/..`, 1)).toStartWith('errno 22 ')
    expect(await remove(join(dir, 'kept/'), 1)).toBe('OK')
  })

  test('REMOVE takes trees deeper than any path or stack', async () => {
    execFileSync(
      'python3',
      [
        '-c',
        `import os
os.mkdir('deep'); os.chdir('deep')
for i in range(3000):
    os.mkdir('dir' * 20); os.mkdir('e'); open('f', 'w').close(); open('e/g', 'w').close()
    os.chdir('dir' * 20)`,
      ],
      { cwd: dir },
    )
    expect(await remove(join(dir, 'deep'), 1)).toBe('OK')
    expect(await readdir(dir)).toEqual([])
  })

  asRoot('REMOVE stays on its file system (needs root)', async () => {
    mkdirSync(join(dir, 'tree/mount'), { recursive: true })
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', join(dir, 'tree/mount')])
    try {
      await writeFile(join(dir, 'tree/mount/f'), 'x')
      expect(await remove(join(dir, 'tree'), 1)).toMatch(/^errno (16|18) /)
      expect(await readdir(join(dir, 'tree/mount'))).toEqual(['f'])
    } finally {
      execFileSync('umount', [join(dir, 'tree/mount')])
    }
  })
})

test('RENAME_NEW replaces nothing, not even a link to nowhere or an empty directory', async () => {
  const renameNew = (from: string, to: string) =>
    files.request(
      new FrameWriter(FrameType.renameNew, ++lastId).str(join(dir, from)).str(join(dir, to)),
      lastId,
    )
  await writeFile(join(dir, 'file'), 'file')
  mkdirSync(join(dir, 'tree/sub'), { recursive: true })
  mkdirSync(join(dir, 'empty'))
  symlinkSync('nowhere', join(dir, 'link'))
  for (const there of ['file', 'link', 'empty'])
    expect(await renameNew('tree', there)).toStartWith('errno 17 ')
  expect(await renameNew('file', 'file')).toStartWith('errno 17 ')
  expect(await renameNew('none', 'other')).toStartWith('errno 2 ')
  expect(await renameNew('tree', 'tree/sub/within')).toStartWith('errno 22 ')
  expect(await renameNew('tree', 'moved')).toBe('OK')
  expect(await renameNew('file', 'moved/sub/file')).toBe('OK')
  expect((await readdir(dir)).sort()).toEqual(['empty', 'link', 'moved'])
})

test('RENAME, CHMOD and REALPATH do what their names say', async () => {
  await writeFile(join(dir, 'a'), 'x')
  const rename = (from: string, to: string) =>
    files.request(new FrameWriter(FrameType.rename, ++lastId).str(from).str(to), lastId)
  expect(await rename(join(dir, 'a'), join(dir, 'b'))).toBe('OK')
  expect(await rename(join(dir, 'a'), join(dir, 'b'))).toStartWith('errno 2 ')
  const chmodTo = (mode: number, path: string) =>
    files.request(new FrameWriter(FrameType.chmod, ++lastId).u32(mode).str(path), lastId)
  expect(await chmodTo(0o751, join(dir, 'b'))).toBe('OK')
  expect((await stat(join(dir, 'b'))).mode & 0o7777).toBe(0o751)
  mkdirSync(join(dir, 'd'))
  symlinkSync('d/../b', join(dir, 'l'))
  const realpath = new FrameWriter(FrameType.realpath, ++lastId).str(join(dir, './l'))
  const answer = await files.send(realpath).next((frame) => frame.id === lastId)
  expect(answer.type).toBe(FrameType.path)
  expect(new PayloadReader(answer.payload).str()).toBe(join(dir, 'b'))
})

describe('connections', () => {
  test('requests may be sent ahead, also right behind HELLO', async () => {
    const connection = await TestConnection.raw(guest.socketPath)
    connection.send(
      Buffer.concat([
        new FrameWriter(FrameType.hello, 0).u32(1).u8(2).u32(0).u32(0).finish(),
        new FrameWriter(FrameType.stat, 1).u8(0).str('/').finish(),
        new FrameWriter(FrameType.write, 2).u32(allOnes32).str(join(dir, 'f')).finish(),
        dataFrame(2, Buffer.from('ahead')).finish(),
        new FrameWriter(FrameType.end, 2).finish(),
        new FrameWriter(FrameType.ping, 3).finish(),
      ]),
    )
    const types = []
    for (let i = 0; i < 4; i++) types.push((await connection.next()).type)
    expect(types).toEqual([FrameType.helloOk, FrameType.entryOk, FrameType.entryOk, FrameType.pong])
    expect(await readFile(join(dir, 'f'), 'utf8')).toBe('ahead')
    connection.close()
  })

  const bad: [string, Uint8Array][] = [
    ['of an unknown type', new FrameWriter(FrameType.spawn, 1).finish()],
    ['too long', Uint8Array.of(1, 0, 16, 0, 64, 0, 0, 0, 1, 0, 0, 0)],
    ['with bytes left over', new FrameWriter(FrameType.stat, 1).u8(0).str('/').u8(0).finish()],
    ['cut short', new FrameWriter(FrameType.stat, 1).u8(0).u32(100).finish()],
    ['with NUL in its path', new FrameWriter(FrameType.stat, 1).u8(0).str('/a\0b').finish()],
    ['of data out of place', new FrameWriter(FrameType.data, 1).raw(Uint8Array.of(1)).finish()],
  ]
  for (const [name, bytes] of bad) {
    test(`a frame ${name} closes the connection`, async () => {
      const connection = await guest.files()
      connection.send(bytes)
      await connection.closed
    })
  }

  test('at most 128 workers, and places come back', async () => {
    const connections = [files]
    while (connections.length < 128) connections.push(await guest.files())
    await expect(guest.files()).rejects.toThrow('HELLO answered by 3')
    for (const connection of connections.slice(1)) connection.close()
    await eventually(() =>
      guest.files().then(
        (connection) => {
          connection.close()
          return true
        },
        () => false,
      ),
    )
  })

  test('a worker holds its connection and no other descriptor of the guest', async () => {
    const before = new Set(await workerPids())
    const connection = await guest.files()
    const added = (await workerPids()).filter((pid) => !before.has(pid))
    expect(added.length).toBe(1)
    expect((await readdir(`/proc/${added[0]}/fd`)).sort()).toEqual(['0', '1', '2', '3'])
    connection.close()
  })
})

async function workerPids(): Promise<number[]> {
  const text = await readFile(`/proc/${guest.pid}/task/${guest.pid}/children`, 'utf8')
  return text.split(' ').filter(Boolean).map(Number)
}

async function workers(): Promise<number> {
  return (await workerPids()).length
}
