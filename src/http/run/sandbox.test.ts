import { afterAll, describe, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PlatformError } from '../../errors.ts'
import { ServedSandbox } from './test-sandbox.ts'

const served = new ServedSandbox()
const { root, machine, base } = served
afterAll(() => served.close())

const put = (path: string, body: unknown) => fetch(base + path, { method: 'PUT', body: JSON.stringify(body) })
const json = async (response: Response | Promise<Response>) =>
  (await (await response).json()) as Record<string, unknown>

describe('paths', () => {
  test('every way to write an absolute path means the same file, and others are relative to the working directory', async () => {
    mkdirSync(join(root, 'tmp/d'), { recursive: true })
    writeFileSync(join(root, 'tmp/d/x y'), 'absolute')
    mkdirSync(join(root, 'project/src'), { recursive: true })
    writeFileSync(join(root, 'project/src/a'), 'relative')
    mkdirSync(join(root, 'src'), { recursive: true })
    writeFileSync(join(root, 'src/a'), 'root')
    const content = async (path: string) => (await json(fetch(base + path))).content
    expect(await content('/filesystem/%2Ftmp%2Fd%2Fx%20y')).toBe('absolute')
    expect(await content('/filesystem%2Ftmp/d/x%20y')).toBe('absolute')
    expect(await content('/filesystem//tmp/d/x%20y')).toBe('absolute')
    expect(await content('/filesystem/src/a')).toBe('relative')
    expect(await content('/filesystem/src%2Fa')).toBe('root')
    expect(await content('/filesystem/%2Ftmp%2Fd%2F..%2Fd%2F%2Fx%20y')).toBe('absolute')
  })

  test('a path with NUL or with escapes that are no UTF-8 is refused', async () => {
    for (const path of ['/filesystem/a%00b', '/filesystem/%ff']) {
      const answer = await fetch(base + path)
      expect(answer.status).toBe(400)
      expect((await json(answer)).error).toStartWith('path: ')
    }
  })

  test('a file whose name begins like the tree route is a file', async () => {
    await put('/filesystem/treehouse.txt', { content: 'house' })
    expect((await json(fetch(`${base}/filesystem/treehouse.txt`))).content).toBe('house')
  })
})

describe('files', () => {
  test('are written, read, listed and removed', async () => {
    expect(await json(put('/filesystem/%2Fdata%2Fa.txt', { content: 'héllo\n' }))).toEqual({
      path: '/data/a.txt',
      message: 'File created/updated successfully',
    })
    expect(await json(fetch(`${base}/filesystem/%2Fdata%2Fa.txt`))).toMatchObject({
      path: '/data/a.txt',
      name: 'a.txt',
      permissions: '644',
      size: 7,
      content: 'héllo\n',
    })
    await put('/filesystem/%2Fdata%2Fsub', { isDirectory: true, permissions: '0755' })
    symlinkSync('a.txt', join(root, 'data/link'))
    const listing = await json(fetch(`${base}/filesystem/%2Fdata`))
    expect(listing).toMatchObject({ path: '/data', subdirectories: [{ path: '/data/sub', name: 'sub' }] })
    expect(
      (listing.files as { path: string; permissions: string }[]).map((file) => [file.path, file.permissions]),
    ).toEqual([
      ['/data/a.txt', '644'],
      ['/data/link', '1000000777'],
    ])
    expect(await json(fetch(`${base}/filesystem/%2F`))).toMatchObject({ path: '/', name: '/' })
    expect((await fetch(`${base}/filesystem/%2Fdata`, { method: 'DELETE' })).status).toBe(422)
    const below = { method: 'PUT', body: JSON.stringify({ content: 'x' }) }
    const beside = await fetch(`${base}/filesystem/%2Fdata%2Fa.txt%2Fx`, below)
    expect([beside.status, await beside.json()]).toEqual([
      422,
      { error: 'open /data/a.txt/x: not a directory' },
    ])
    expect(await json(fetch(`${base}/filesystem/%2Fdata?recursive=true`, { method: 'DELETE' }))).toEqual({
      path: '/data',
      message: 'Directory deleted successfully',
    })
    const missing = await fetch(`${base}/filesystem/%2Fdata`)
    expect(missing.status).toBe(404)
    expect(await json(missing)).toEqual({ error: 'stat /data: no such file or directory' })
    expect((await fetch(`${base}/filesystem/%2Fdata`, { method: 'DELETE' })).status).toBe(404)
  })

  test('a dangling link can be removed', async () => {
    symlinkSync('/nowhere', join(root, 'project/dangling'))
    expect((await fetch(`${base}/filesystem/dangling`, { method: 'DELETE' })).status).toBe(200)
  })

  test('bad JSON says where, bad permissions say what is right', async () => {
    const bad = await fetch(`${base}/filesystem/x`, { method: 'PUT', body: '{"content": nope}' })
    expect(bad.status).toBe(400)
    expect((await json(bad)).error).toMatch(/^invalid request body: .*line 1, column 14/)
    const permissions = await put('/filesystem/x', { content: '', permissions: 'rwx' })
    expect(permissions.status).toBe(400)
  })

  test('are downloaded as bytes, whole or in ranges, with HEAD and conditions', async () => {
    const bytes = Buffer.from(Array.from({ length: 3_000_000 }, (_, i) => i % 251))
    writeFileSync(join(root, 'project/big.bin'), bytes)
    const get = (headers: Record<string, string>, method = 'GET') =>
      fetch(`${base}/filesystem/big.bin`, { method, headers })
    const whole = await get({ accept: 'application/octet-stream' })
    expect(whole.headers.get('content-type')).toBe('application/octet-stream')
    expect(whole.headers.get('content-disposition')).toBe('attachment; filename="big.bin"')
    expect(Buffer.from(await whole.arrayBuffer()).equals(bytes)).toBe(true)
    const part = await get({ accept: 'application/octet-stream', range: 'bytes=10-19' })
    expect([part.status, part.headers.get('content-range')]).toEqual([206, 'bytes 10-19/3000000'])
    expect(Buffer.from(await part.arrayBuffer()).equals(bytes.subarray(10, 20))).toBe(true)
    const tail = await get({ accept: 'application/octet-stream', range: 'bytes=-5' })
    expect(Buffer.from(await tail.arrayBuffer()).equals(bytes.subarray(-5))).toBe(true)
    expect((await get({ accept: 'application/octet-stream', range: 'bytes=3000000-' })).status).toBe(416)
    const head = await get({ accept: 'application/octet-stream' }, 'HEAD')
    expect([head.status, head.headers.get('content-length')]).toEqual([200, '3000000'])
    const since = whole.headers.get('last-modified')!
    expect((await get({ accept: 'application/octet-stream', 'if-modified-since': since })).status).toBe(304)
    expect((await fetch(`${base}/filesystem/none`, { method: 'HEAD' })).status).toBe(404)
    expect(machine.leases).toBe(0)
  })

  test('a large file is JSON, too, and every character of it is there', async () => {
    const text = '"é\\\n\u{1F600}'.repeat(200_000)
    writeFileSync(join(root, 'project/large.txt'), text)
    const { content, size } = await json(fetch(`${base}/filesystem/large.txt`))
    expect(size).toBe(Buffer.byteLength(text))
    expect(content === text).toBe(true)
  })

  test('a form upload trusts the path in the form, and its mode counts for new files only', async () => {
    const form = (bytes: Uint8Array<ArrayBuffer>, path: string) => {
      const data = new FormData()
      data.append('file', new Blob([bytes]), 'test-binary.bin')
      data.append('permissions', '0600')
      data.append('path', path)
      return data
    }
    const upload = (url: string, bytes: Uint8Array<ArrayBuffer>, path: string) =>
      fetch(base + url, { method: 'PUT', body: form(bytes, path) })
    const bytes = crypto.getRandomValues(new Uint8Array(60_000))
    expect((await upload('/filesystem//up/what?.bin', bytes, '/up/what?.bin')).status).toBe(200)
    expect(readFileSync(join(root, 'up/what?.bin')).equals(Buffer.from(bytes))).toBe(true)
    expect(statSync(join(root, 'up/what?.bin')).mode & 0o777).toBe(0o600)
    writeFileSync(join(root, 'project/script'), '', { mode: 0o755 })
    expect((await upload('/filesystem/script', bytes, 'script')).status).toBe(200)
    expect(statSync(join(root, 'project/script')).mode & 0o777).toBe(0o755)
    const large = new Uint8Array(20_000_000).fill(7)
    expect((await upload('/filesystem//up/large', large, '/up/large')).status).toBe(200)
    expect(readFileSync(join(root, 'up/large')).equals(Buffer.from(large))).toBe(true)
    expect(statSync(join(root, 'up/large')).mode & 0o777).toBe(0o600)
    expect((await upload('/filesystem//up/a', large, '/up/other')).status).toBe(400)
    expect(existsSync(join(root, 'up/a'))).toBe(false)
    expect((await fetch(`${base}/filesystem/x`, { method: 'PUT', body: new FormData() })).status).toBe(400)
  })

  test('an upload that breaks off leaves the old file', async () => {
    writeFileSync(join(root, 'project/kept'), 'old')
    const boundary = 'xyz'
    const body = `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nnew and cut`
    const answer = await fetch(`${base}/filesystem/kept`, {
      method: 'PUT',
      body,
      headers: { 'content-type': `multipart/form-data; boundary=${boundary}` },
    })
    expect(answer.status).toBe(400)
    expect(readFileSync(join(root, 'project/kept'), 'utf8')).toBe('old')
  })
})

test('a tree is written at once, listed, and removed', async () => {
  const files = { 'src/app.js': 'app', 'package.json': '{}', 'src/deep/er/x': 'x' }
  const written = await json(put('/filesystem/tree//proj', { files }))
  expect(written).toMatchObject({
    path: '/proj',
    subdirectories: [{ name: 'src' }],
    files: [{ name: 'package.json' }],
  })
  expect(readFileSync(join(root, 'proj/src/deep/er/x'), 'utf8')).toBe('x')
  expect((await json(fetch(`${base}/filesystem/tree/proj/src`))).path).toBe('/proj/src')
  expect((await fetch(`${base}/filesystem/tree/none`)).status).toBe(400)
  expect((await fetch(`${base}/filesystem/tree/proj`, { method: 'DELETE' })).status).toBe(200)
  expect((await fetch(`${base}/filesystem/tree/proj`, { method: 'DELETE' })).status).toBe(422)
})

test('an upload in parts comes together in the order of its numbers', async () => {
  const api = `${base}/filesystem-multipart`
  const started = await json(
    fetch(`${api}/initiate/%2Fparts%2Fwhole`, {
      method: 'POST',
      body: JSON.stringify({ permissions: '0640' }),
    }),
  )
  expect(started.path).toBe('/parts/whole')
  const id = started.uploadId as string
  const part = (number: number, text: string) => {
    const data = new FormData()
    data.append('file', new Blob([text]))
    return json(fetch(`${api}/${id}/part?partNumber=${number}`, { method: 'PUT', body: data }))
  }
  const [second, first] = await Promise.all([part(2, 'world'), part(1, 'draft')])
  expect(second).toEqual({ partNumber: 2, etag: createHash('md5').update('world').digest('hex'), size: 5 })
  const replaced = await part(1, 'hello ')
  expect(
    ((await json(fetch(`${api}/${id}/parts`))).parts as { size: number }[]).map(({ size }) => size),
  ).toEqual([6, 5])
  expect((await json(fetch(api))).uploads).toMatchObject([
    { uploadId: id, path: '/parts/whole', permissions: 0o640 },
  ])
  const complete = (parts: unknown) =>
    fetch(`${api}/${id}/complete`, { method: 'POST', body: JSON.stringify({ parts }) })
  expect((await complete([first, second])).status).toBe(400)
  expect((await complete([])).status).toBe(400)
  expect((await fetch(`${api}/${id}/part?partNumber=10001`, { method: 'PUT' })).status).toBe(400)
  expect(await json(complete([second, replaced]))).toMatchObject({ path: '/parts/whole' })
  expect(readFileSync(join(root, 'parts/whole'), 'utf8')).toBe('hello world')
  expect(statSync(join(root, 'parts/whole')).mode & 0o777).toBe(0o640)
  expect((await fetch(`${api}/${id}/abort`, { method: 'DELETE' })).status).toBe(404)
  const other = await json(fetch(`${api}/initiate/%2Fx`, { method: 'POST' }))
  expect((await fetch(`${api}/${other.uploadId}/abort`, { method: 'DELETE' })).status).toBe(200)
  expect(await json(fetch(api))).toEqual({ uploads: [] })
  expect((await fetch(`${api}/..%2F..%2Fetc/parts`)).status).toBe(404)
})

test('uploads that come together at the same moment leave connections for other work with files', async () => {
  const uploads = 24
  /** Of a sandbox, for files: each of the uploads keeps one while it copies. */
  const connections = 16
  const api = `${base}/filesystem-multipart`
  const begun = await Promise.all(
    Array.from({ length: uploads }, async (_, at) => {
      const { uploadId } = await json(fetch(`${api}/initiate/%2Ftogether%2F${at}`, { method: 'POST' }))
      const data = new FormData()
      data.append('file', new Blob([`part of ${at}`]))
      const part = await json(fetch(`${api}/${uploadId}/part?partNumber=1`, { method: 'PUT', body: data }))
      return { uploadId, part }
    }),
  )
  const { files } = machine.guest
  const { concatenate, list } = files
  const all = Promise.withResolvers<void>()
  let arrived = 0
  let copying = 0
  let copyingAtOnce = 0
  files.list = (path) => {
    if (++arrived === uploads) all.resolve()
    return list.call(files, path)
  }
  files.concatenate = async (parts, path, options) => {
    copyingAtOnce = Math.max(copyingAtOnce, ++copying)
    // None goes on before each of them has looked for its parts.
    await all.promise
    return await concatenate.call(files, parts, path, options).finally(() => copying--)
  }
  try {
    const completed = await Promise.all(
      begun.map(({ uploadId, part }) =>
        fetch(`${api}/${uploadId}/complete`, { method: 'POST', body: JSON.stringify({ parts: [part] }) }),
      ),
    )
    expect(completed.map(({ status }) => status)).toEqual(Array(uploads).fill(200))
  } finally {
    Object.assign(files, { concatenate, list })
  }
  expect(copyingAtOnce).toBeGreaterThan(1)
  expect(copyingAtOnce).toBeLessThan(connections)
  for (let at = 0; at < uploads; at++) {
    expect(readFileSync(join(root, `together/${at}`), 'utf8')).toBe(`part of ${at}`)
  }
})

test('an upload that does not fit beside its parts is made of them', async () => {
  const api = `${base}/filesystem-multipart`
  const { uploadId } = await json(fetch(`${api}/initiate/%2Ftight%2Fwhole`, { method: 'POST' }))
  const parts = []
  for (const [at, text] of ['one ', 'two'].entries()) {
    const data = new FormData()
    data.append('file', new Blob([text]))
    parts.push(
      await json(fetch(`${api}/${uploadId}/part?partNumber=${at + 1}`, { method: 'PUT', body: data })),
    )
  }
  const { files } = machine.guest
  const { concatenate } = files
  const asked: unknown[] = []
  files.concatenate = async (paths, path, options) => {
    asked.push(options?.spend ?? false)
    if (!options?.spend) throw new PlatformError('insufficient_storage', 'no space left on device')
    return await concatenate.call(files, paths, path, options)
  }
  try {
    const completed = await fetch(`${api}/${uploadId}/complete`, {
      method: 'POST',
      body: JSON.stringify({ parts }),
    })
    expect(completed.status).toBe(200)
  } finally {
    Object.assign(files, { concatenate })
  }
  expect(asked).toEqual([false, true])
  expect(readFileSync(join(root, 'tight/whole'), 'utf8')).toBe('one two')
})

describe('the rest of the API', () => {
  test('health tells the version and since when', async () => {
    expect(await json(fetch(`${base}/health`))).toMatchObject({
      status: 'ok',
      version: '1.2.3',
      upgradeCount: 0,
    })
  })

  test('health tells of a disk that takes no writes any more, and how to get out of that', async () => {
    machine.diskClosed = true
    const told = await json(fetch(`${base}/health`))
    machine.diskClosed = false
    expect(told).toMatchObject({ status: 'degraded', message: expect.stringContaining('unarchive') })
    expect(await json(fetch(`${base}/health`))).not.toHaveProperty('message')
  })

  test('an unknown route or method is a plain 404', async () => {
    for (const [method, path] of [
      ['GET', '/nope'],
      ['POST', '/health'],
      ['PATCH', '/filesystem/x'],
    ] as const) {
      const answer = await fetch(base + path, { method })
      expect([answer.status, answer.headers.get('content-type'), await answer.text()]).toEqual([
        404,
        'text/plain',
        '404 page not found',
      ])
    }
  })

  test('OPTIONS is 204 anywhere, and every answer lets other origins read it', async () => {
    const options = await fetch(`${base}/whatever`, { method: 'OPTIONS' })
    expect([options.status, options.headers.get('access-control-allow-origin')]).toEqual([204, '*'])
    const answer = await fetch(`${base}/health`)
    expect(answer.headers.get('cache-control')).toBe('no-cache, no-store, must-revalidate')
    expect(answer.headers.get('access-control-allow-origin')).toBe('*')
  })

  test('a port number that is none is refused, the system port too, and the API has its own ports', async () => {
    for (const port of ['0', '65536', 'x', '80'])
      expect((await fetch(`${base}/port/${port}/`)).status).toBe(400)
    expect(await json(fetch(`${base}/port/8080/health`))).toMatchObject({ status: 'ok' })
  })

  test('a port that nothing listens on is a 502 that says so', async () => {
    const answer = await fetch(`${base}/port/1/x`)
    expect(answer.status).toBe(502)
    expect(await json(answer)).toMatchObject({
      platform: 'bad_gateway',
      message: expect.stringContaining('nothing listens on port 1'),
    })
    expect(machine.leases).toBe(0)
  })
})
