import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { closeSync, existsSync, openSync, symlinkSync } from 'node:fs'
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance } from '@blaxel/core'
import { eventually } from './lib/test-eventually.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** Every method of `sandbox.fs`, through the unmodified client and a real guest. */

let client: TestClient
let sandbox: SandboxInstance
let home: string
let lastDir = 0

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process' })
  sandbox = await client.SandboxInstance.create({ name: 'files' })
  // This runtime's files are the host's.
  home = await mkdtemp(join(tmpdir(), 'hutch-file-api-'))
}, 120_000)

afterAll(async () => {
  await client?.[Symbol.asyncDispose]()
  await rm(home, { recursive: true, force: true })
}, 120_000)

/** A directory of its own with these files. */
async function project(files: Record<string, string> = {}): Promise<string> {
  const dir = `${home}/project ${++lastDir}`
  const contents = Object.entries(files).map(([path, content]) => ({ path, content }))
  await sandbox.fs.writeTree(contents, dir)
  return dir
}

async function call(
  path: string,
  init?: RequestInit,
): Promise<{ status: number; body: Record<string, unknown> }> {
  const response = await client.request(sandboxPath() + path, init)
  return { status: response.status, body: (await response.json()) as Record<string, unknown> }
}

function sandboxPath(): string {
  return new URL(sandbox.metadata.url ?? '').pathname
}

const encoded = encodeURIComponent

const sources = {
  'README.md': '# Title\nA Needle in the hay\nlast line\n',
  'src/main.ts': 'const needle = 1\nconst other = 2\nexport { needle }\n',
  'src/lib/deep.go': 'package needle\n',
  'node_modules/x/index.js': 'needle\n',
  '.hidden/notes.md': 'needle\n',
}

describe('write, read and list', () => {
  test('mkdir, write and read keep text and permissions', async () => {
    const dir = await project()
    await sandbox.fs.mkdir(`${dir}/a/b`, '0750')
    await sandbox.fs.write(`${dir}/a/b/ü %2F?.txt`, 'héllo\n')
    expect(await sandbox.fs.read(`${dir}/a/b/ü %2F?.txt`)).toBe('héllo\n')
    const listing = await sandbox.fs.ls(`${dir}/a/b`)
    expect(listing.files).toMatchObject([{ name: 'ü %2F?.txt', size: 7, permissions: '644' }])
    const shown = await sandbox.process.exec({ command: `stat -c %a '${dir}/a/b'`, waitForCompletion: true })
    expect(shown.stdout).toBe('750\n')
  })

  test('writeBinary and readBinary take every kind of content, in one request and in parts', async () => {
    const dir = await project()
    const bytes = new Uint8Array(200_000).map((_, at) => (at * 31) % 256)
    const local = join(home, 'local.bin')
    await Bun.write(local, bytes)
    const contents = [Buffer.from(bytes), new Blob([bytes]), new File([bytes], 'f.bin'), bytes, local]
    for (const [index, content] of contents.entries()) {
      await sandbox.fs.writeBinary(`${dir}/${index}.bin`, content)
      const back = await sandbox.fs.readBinary(`${dir}/${index}.bin`)
      expect(Buffer.from(await back.arrayBuffer()).equals(bytes)).toBe(true)
    }
    const large = Buffer.alloc(11_000_000, 'abcdefg')
    await sandbox.fs.writeBinary(`${dir}/large.bin`, large)
    await sandbox.fs.download(`${dir}/large.bin`, local, { mode: 0o600 })
    expect((await readFile(local)).equals(large)).toBe(true)
    expect((await stat(local)).size).toBe(large.length)
  })

  test('writeBinary takes names that mean something else, or nothing, in the URL that the client makes of them', async () => {
    const dir = await project()
    for (const name of ['per%cent', '100%', 'a%2Fb', '%41', 'que?ry', 'ha#sh', 'sp ace+']) {
      await sandbox.fs.writeBinary(`${dir}/${name}`, Buffer.from(name))
      expect(await sandbox.fs.read(`${dir}/${name}`)).toBe(name)
    }
    expect((await sandbox.fs.ls(dir)).files.length).toBe(7)
  })

  test('an upload in parts is begun, fed in any order, finished and called off by methods of their own', async () => {
    // The declarations of the package call them private; programs written in JavaScript do not know.
    const fs = sandbox.fs as unknown as {
      initiateMultipartUpload(path: string, permissions?: string): Promise<{ uploadId: string; path: string }>
      uploadPart(id: string, part: number, data: Blob): Promise<{ partNumber: number; etag: string }>
      completeMultipartUpload(id: string, parts: object[]): Promise<{ path: string }>
      abortMultipartUpload(id: string): Promise<object>
    }
    const path = `${await project()}/in-parts`
    const { uploadId } = await fs.initiateMultipartUpload(path, '0600')
    const second = await fs.uploadPart(uploadId, 2, new Blob(['second']))
    const first = await fs.uploadPart(uploadId, 1, new Blob(['first ']))
    expect((await fs.completeMultipartUpload(uploadId, [second, first])).path).toBe(path)
    expect(await sandbox.fs.read(path)).toBe('first second')
    expect((await stat(path)).mode & 0o777).toBe(0o600)
    const another = await fs.initiateMultipartUpload(`${path}-not`)
    await fs.uploadPart(another.uploadId, 1, new Blob(['lost']))
    await fs.abortMultipartUpload(another.uploadId)
    expect(existsSync(`${path}-not`)).toBe(false)
    await expect(fs.uploadPart(another.uploadId, 1, new Blob(['late']))).rejects.toMatchObject({
      error: expect.stringContaining('not found'),
    })
  })

  test('writeTree writes many files at once, and says which one it could not', async () => {
    const files = Array.from({ length: 1000 }, (_, at) => ({
      path: `d${at % 10}/f${at}.txt`,
      content: `file ${at}`,
    }))
    const dir = `${home}/many`
    const listing = await sandbox.fs.writeTree(files, dir)
    expect((listing as { subdirectories: unknown[] }).subdirectories.length).toBe(10)
    expect(await sandbox.fs.read(`${dir}/d7/f997.txt`)).toBe('file 997')
    const failing = sandbox.fs.writeTree([{ path: 'd1', content: 'a directory' }], dir)
    await expect(failing).rejects.toThrow(`open ${dir}/d1: is a directory`)
  })

  test('rm removes files, and directories only when told', async () => {
    const dir = await project({ 'a/b': '1', c: '2' })
    await sandbox.fs.rm(`${dir}/c`)
    await expect(sandbox.fs.rm(`${dir}/a`)).rejects.toThrow('directory not empty')
    await sandbox.fs.rm(`${dir}/a`, true)
    expect(await sandbox.fs.ls(dir)).toMatchObject({ files: [], subdirectories: [] })
    await expect(sandbox.fs.rm(`${dir}/a`)).rejects.toThrow(`stat ${dir}/a: no such file or directory`)
  })

  test('a directory of 100,000 entries is listed', async () => {
    // In memory where there is such a place: this is not about the disk.
    const dir = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : home, 'hutch-file-api-'))
    try {
      for (let index = 1; index <= 100_000; index++) {
        closeSync(openSync(`${dir}/file-${String(index).padStart(6, '0')}`, 'wx'))
      }
      const listing = await sandbox.fs.ls(dir)
      expect(listing.files?.length).toBe(100_000)
      expect(listing.files?.at(-1)?.name).toBe('file-100000')
      const found = await sandbox.fs.find(dir, { type: 'file', maxResults: 0 })
      expect(found?.total).toBe(100_000)
      await sandbox.fs.rm(dir, true)
    } finally {
      await rm(dir, { recursive: true, force: true })
    }
  }, 120_000)
})

describe('cp', () => {
  test('copies files and trees', async () => {
    const dir = await project(sources)
    await sandbox.fs.cp(`${dir}/src`, `${dir}/copy`)
    expect(await sandbox.fs.read(`${dir}/copy/lib/deep.go`)).toBe('package needle\n')
    await expect(sandbox.fs.cp(`${dir}/none`, `${dir}/x`)).rejects.toThrow('Could not copy')
  })

  test('by its own route, without a program, refuses to overwrite when told', async () => {
    const dir = await project(sources)
    const copy = (source: string, destination: string, noOverwrite = false) =>
      call('/filesystem-copy', { method: 'POST', body: JSON.stringify({ source, destination, noOverwrite }) })
    const [source, destination] = [`${dir}/README.md`, `${dir}/copy/READ.me`]
    expect(await copy(source, destination)).toEqual({
      status: 200,
      body: { source, destination, message: 'Files copied' },
    })
    expect(await copy(source, destination, true)).toMatchObject({
      status: 409,
      body: { code: 'FILE_ALREADY_EXISTS' },
    })
    // Into a directory that is there, as cp does.
    expect((await copy(`${dir}/src`, `${dir}/copy`)).status).toBe(200)
    expect(await sandbox.fs.read(`${dir}/copy/src/lib/deep.go`)).toBe('package needle\n')
    expect((await copy(`${dir}/src`, `${dir}/src/lib`)).status).toBe(422)
    expect((await copy(`${dir}/none`, `${dir}/x`)).status).toBe(404)
    const moved = { source: `${dir}/copy/src`, destination: `${dir}/moved` }
    expect((await call('/filesystem-move', { method: 'POST', body: JSON.stringify(moved) })).status).toBe(200)
    expect((await sandbox.fs.ls(`${dir}/moved`)).files?.map(({ name }) => name)).toEqual(['main.ts'])
  })

  test('of many that may not overwrite, for one place at once, one succeeds, and its copy stays whole', async () => {
    const dir = await project()
    const copiers = 8
    const contents = Array.from({ length: copiers }, (_, at) => String(at).repeat(512 * 1024))
    await sandbox.fs.writeTree(
      contents.map((content, at) => ({ path: `from-${at}`, content })),
      dir,
    )
    for (const round of [1, 2, 3]) {
      const destination = `${dir}/one-${round}`
      const answers = await Promise.all(
        contents.map((_, at) =>
          call('/filesystem-copy', {
            method: 'POST',
            body: JSON.stringify({ source: `${dir}/from-${at}`, destination, noOverwrite: true }),
          }),
        ),
      )
      const statuses = answers.map(({ status }) => status)
      expect(statuses.toSorted()).toEqual([200, ...Array.from({ length: copiers - 1 }, () => 409)])
      expect((await sandbox.fs.read(destination)) === contents[statuses.indexOf(200)]).toBe(true)
    }
  })
})

describe('find', () => {
  test('finds by pattern, type and place', async () => {
    const dir = await project(sources)
    const found = async (options?: Parameters<typeof sandbox.fs.find>[1]) =>
      (await sandbox.fs.find(dir, options))?.matches?.map(({ path }) => path)
    expect(await found({ type: 'file' })).toEqual(['README.md', 'src/main.ts', 'src/lib/deep.go'])
    expect(await found({ patterns: ['*.md', '*.go'] })).toEqual(['README.md', 'src/lib/deep.go'])
    expect(await found({ type: 'directory' })).toEqual(['.', 'src', 'src/lib'])
    expect(await found({ type: 'file', excludeHidden: false, excludeDirs: ['src'] })).toEqual([
      'README.md',
      '.hidden/notes.md',
      'node_modules/x/index.js',
    ])
    expect(await found({ type: 'file', maxResults: 1 })).toEqual(['README.md'])
    expect((await sandbox.fs.find(dir, { type: 'file' }))?.matches?.[0]).toEqual({
      path: 'README.md',
      type: 'file',
    })
    const { body } = await call(`/filesystem-find/${encoded(dir)}?excludeDirs=&patterns=*.{js,go}`)
    expect(body).toMatchObject({ total: 2 })
  })

  test('says what is wrong with a question', async () => {
    const dir = await project()
    await expect(sandbox.fs.find(`${dir}/none`)).rejects.toMatchObject({ status: 400 })
    await expect(sandbox.fs.find(dir, { maxResults: -1 })).rejects.toThrow("maxResults: '-1'")
    await expect(sandbox.fs.find(dir, { patterns: ['[a'] })).rejects.toThrow(
      'a class in the glob is not closed',
    )
  })
})

describe('search', () => {
  test('finds files by letters of their paths', async () => {
    const dir = await project(sources)
    const { body } = await call(`/filesystem-search/${encoded(dir)}?query=smain`)
    expect(body).toMatchObject({ total: 1, matches: [{ path: 'src/main.ts', type: 'file' }] })
    expect(body.matches).toMatchObject([{ score: expect.any(Number) }])
  })

  test('through the client lists what its patterns let through, or takes the rest of the path for the query', async () => {
    const dir = await project(sources)
    const listed = await sandbox.fs.search('anything', dir, { patterns: ['*.ts', '*.go'] })
    expect(listed?.matches?.map(({ path }) => path).sort()).toEqual(['src/lib/deep.go', 'src/main.ts'])
    const typed = await sandbox.fs.search('', `${dir}/deepgo`, { maxResults: 5 })
    expect(typed?.matches?.map(({ path }) => path)).toEqual(['src/lib/deep.go'])
  })
})

describe('grep', () => {
  test('finds lines with their place, by path and line', async () => {
    const dir = await project(sources)
    const found = await sandbox.fs.grep('needle', dir)
    expect(found?.query).toBe('needle')
    expect(found?.matches).toEqual([
      { path: '.hidden/notes.md', line: 1, column: 1, text: 'needle' },
      { path: 'README.md', line: 2, column: 3, text: 'A Needle in the hay' },
      { path: 'src/lib/deep.go', line: 1, column: 9, text: 'package needle' },
      { path: 'src/main.ts', line: 1, column: 7, text: 'const needle = 1' },
      { path: 'src/main.ts', line: 3, column: 10, text: 'export { needle }' },
    ])
    expect(found?.total).toBe(5)
  })

  test('takes its options: case, context, file pattern, directories to leave out, limit', async () => {
    const dir = await project(sources)
    const sensitive = await sandbox.fs.grep('Needle', dir, { caseSensitive: true, contextLines: 1 })
    expect(sensitive?.matches).toMatchObject([
      { path: 'README.md', context: '# Title\nA Needle in the hay\nlast line' },
    ])
    const options = { filePattern: '*.{go,js}', excludeDirs: ['lib'] }
    expect((await sandbox.fs.grep('needle', dir, options))?.matches?.map(({ path }) => path)).toEqual([
      'node_modules/x/index.js',
    ])
    expect((await sandbox.fs.grep('nowhere to be found', dir))?.matches).toEqual([])
    const literal = await sandbox.fs.grep('{ needle }', dir)
    expect(literal?.matches).toMatchObject([{ path: 'src/main.ts', line: 3 }])
  })

  test('goes on beyond any number of hits, and stops at the limit it is given', async () => {
    const dir = await project({ 'many.txt': 'hit\n'.repeat(5000), 'more.txt': 'hit\n'.repeat(5000) })
    expect((await sandbox.fs.grep('hit', dir))?.total).toBe(100)
    expect((await sandbox.fs.grep('hit', dir, { maxResults: 350 }))?.total).toBe(350)
    expect((await sandbox.fs.grep('hit', dir, { maxResults: 0 }))?.total).toBe(10_000)
  })

  test('never opens what would make it wait, and skips binaries', async () => {
    const dir = await project({ 'text.txt': 'needle\n' })
    const command = `cd '${dir}' && mkfifo pipe && printf 'needle\\0' > binary && ln -s text.txt link && ln -s . loop`
    await sandbox.process.exec({ command, waitForCompletion: true })
    expect((await sandbox.fs.grep('needle', dir))?.matches?.map(({ path }) => path)).toEqual(['text.txt'])
  })

  test('takes regular expressions through its route', async () => {
    const dir = await project(sources)
    const path = `/filesystem-content-search/${encoded(dir)}`
    const { body } = await call(`${path}?query=${encoded('^(package|const)\\s+needle\\b')}&regex=true`)
    expect(body).toMatchObject({ total: 2, matches: [{ path: 'src/lib/deep.go' }, { path: 'src/main.ts' }] })
    const refused = await call(`${path}?query=${encoded('(?=a)')}&regex=true`)
    expect(refused).toMatchObject({
      status: 400,
      body: { error: 'pattern: looking ahead or behind is not supported (at character 1)' },
    })
    expect((await call(`${path}?query=`)).status).toBe(400)
    expect((await call(`/filesystem-content-search/${encoded(dir)}%2Fnone?query=x`)).status).toBe(400)
  })
})

describe('tree', () => {
  test('reads all of it, or as far as it is told', async () => {
    const dir = await project(sources)
    const { body } = await call(`/filesystem/tree${dir.split('/').map(encoded).join('/')}`)
    expect(body).toMatchObject({
      path: dir,
      files: [{ name: 'README.md', path: `${dir}/README.md`, permissions: '644' }],
      subdirectories: [
        { name: '.hidden', files: [{ name: 'notes.md' }] },
        { name: 'node_modules' },
        {
          name: 'src',
          files: [{ name: 'main.ts' }],
          subdirectories: [{ files: [{ path: `${dir}/src/lib/deep.go` }] }],
        },
      ],
    })
    const tree = (options: string) => call(`/filesystem/tree/${encoded(dir)}?${options}`)
    expect((await tree('recursive=false')).body.subdirectories).toMatchObject([
      { files: [] },
      { files: [] },
      { name: 'src', subdirectories: [] },
    ])
    expect((await tree('limit=3')).body).toMatchObject({ truncated: true })
    expect((await tree('patterns=*.go&content=true')).body).toMatchObject({
      files: [],
      subdirectories: [{ subdirectories: [{ files: [{ content: 'package needle\n' }] }] }],
    })
    const shallow = await tree('excludeHidden=true&excludeDirs=node_modules&depth=2')
    expect(shallow.body.subdirectories).toMatchObject([{ name: 'src', subdirectories: [{ files: [] }] }])
    expect((await call(`/filesystem/tree/${encoded(`${dir}/README.md`)}`)).status).toBe(400)
  })

  test('as newer clients read it: one list of all files with their text, refused beyond its limits', async () => {
    const dir = await project({ ...sources, 'src/empty': '' })
    symlinkSync('main.ts', join(dir, 'src/link.ts'))
    symlinkSync('lib', join(dir, 'src/link-to-directory'))
    const tree = (options: string) => call(`/filesystem/tree/${encoded(dir)}?recursive=true&${options}`)
    const whole = (await tree('content=true&excludeDirs=node_modules&excludeHidden=true')).body
    expect(whole).toMatchObject({ path: dir, recursive: true })
    const files = whole.files as { path: string; content?: string }[]
    const texts = Object.fromEntries(files.map(({ path, content }) => [path.slice(dir.length + 1), content]))
    expect(texts).toEqual({
      'README.md': sources['README.md'],
      'src/main.ts': sources['src/main.ts'],
      'src/link.ts': sources['src/main.ts'],
      'src/link-to-directory': undefined,
      'src/lib/deep.go': sources['src/lib/deep.go'],
      'src/empty': '',
    })
    expect(whole.subdirectories).toEqual([
      { path: `${dir}/src`, name: 'src' },
      { path: `${dir}/src/lib`, name: 'lib' },
    ])
    const found = (await tree('patterns=*.go')).body
    expect(found.files).toMatchObject([{ path: `${dir}/src/lib/deep.go`, name: 'deep.go', size: 15 }])
    expect(JSON.stringify(found)).not.toContain('content')
    expect((await tree('maxFiles=8')).status).toBe(200)
    expect(await tree('maxFiles=7')).toMatchObject({
      status: 422,
      body: { error: expect.stringContaining('limit exceeded') },
    })
    const bytes = sources['README.md'].length
    expect((await tree(`content=true&patterns=*.md&excludeHidden=true&maxBytes=${bytes}`)).status).toBe(200)
    const over = await tree(`content=true&patterns=*.md&excludeHidden=true&maxBytes=${bytes - 1}`)
    expect(over).toMatchObject({ status: 422, body: { error: expect.stringContaining('limit exceeded') } })
    for (const wrong of ['maxFiles=0', 'maxFiles=100001', 'maxBytes=-1', 'maxBytes=268435457', 'content=1x'])
      expect((await tree(wrong)).status).toBe(400)
  })
})

describe('permissions and owners', () => {
  test('change without touching the content', async () => {
    const dir = await project({ f: 'kept' })
    const patch = (body: object, name = 'f') =>
      call(`/filesystem-attributes/${encoded(`${dir}/${name}`)}`, {
        method: 'PUT',
        body: JSON.stringify(body),
      })
    const [file] = (await sandbox.fs.ls(dir)).files ?? []
    expect((await patch({ permissions: '0600', owner: file?.owner, group: file?.group })).status).toBe(200)
    expect((await sandbox.fs.ls(dir)).files).toMatchObject([{ permissions: '600', owner: file?.owner }])
    expect(await sandbox.fs.read(`${dir}/f`)).toBe('kept')
    expect((await patch({ owner: 'nobody in particular' })).status).toBe(400)
    expect((await patch({ permissions: '0600' }, 'none')).status).toBe(404)
  })
})

describe('watch', () => {
  /** Events as 'OP path', until all of `wanted` came. */
  async function watched(
    path: string,
    options: { ignore?: string[]; withContent?: boolean },
    act: () => Promise<unknown>,
    ...wanted: string[]
  ): Promise<{ events: string[]; contents: Map<string, string | undefined> }> {
    const events: string[] = []
    const contents = new Map<string, string | undefined>()
    const all = Promise.withResolvers<void>()
    const handle = sandbox.fs.watch(
      path,
      (event) => {
        events.push(`${event.op} ${event.path}/${event.name}`)
        contents.set(event.name, event.content)
        if (wanted.every((each) => events.includes(each))) all.resolve()
      },
      { withContent: false, ...options, onError: all.reject },
    )
    const timer = setTimeout(() => all.reject(new Error(`only ${events}`)), 60_000)
    try {
      await begun(path.replace(/\/\*\*$/, ''), events)
      await act()
      await all.promise
    } finally {
      clearTimeout(timer)
      handle.close()
    }
    return { events: events.filter((event) => !event.endsWith('/probe')), contents }
  }

  /** The client does not tell when a watch has begun: something happens until it does. */
  async function begun(dir: string, events: unknown[]): Promise<void> {
    await eventually('the watch begins', async () => {
      await sandbox.fs.write(`${dir}/probe`, 'x')
      return events.length > 0
    })
  }

  test('tells what is created, written, renamed and removed in a directory', async () => {
    const dir = await project({ 'old.txt': '1', 'sub/x': '1' })
    const { events } = await watched(
      dir,
      {},
      async () => {
        await sandbox.fs.write(`${dir}/new.txt`, 'text')
        await sandbox.fs.write(`${dir}/sub/x`, '2')
        await sandbox.process.exec({
          command: `cd '${dir}' && mv old.txt newer.txt && rm newer.txt && touch end`,
          waitForCompletion: true,
        })
      },
      `CREATE ${dir}/new.txt`,
      `WRITE ${dir}/new.txt`,
      `RENAME ${dir}/old.txt`,
      `CREATE ${dir}/newer.txt`,
      `REMOVE ${dir}/newer.txt`,
      `CREATE ${dir}/end`,
    )
    expect(events.filter((event) => event.includes('sub/') || event.includes('.hutch'))).toEqual([])
  })

  test('tells of all below a directory, new ones too, without what is ignored, and with contents', async () => {
    const dir = await project()
    const { events, contents } = await watched(
      `${dir}/**`,
      { ignore: ['node_modules', `${dir}/out`], withContent: true },
      async () => {
        await sandbox.fs.write(`${dir}/node_modules/x/a.txt`, 'no')
        await sandbox.fs.write(`${dir}/out/b.txt`, 'no')
        await sandbox.fs.write(`${dir}/a/b/c/deep.txt`, 'deep content')
      },
      `CREATE ${dir}/a`,
      `CREATE ${dir}/a/b/c/deep.txt`,
    )
    expect(events.filter((event) => /node_modules|out/.test(event))).toEqual([])
    expect(contents.get('deep.txt')).toBe('deep content')
  })

  test('refuses what is no directory, and gives its place back when the client goes', async () => {
    const dir = await project({ f: '1' })
    const refused = await call(`/watch/filesystem/${encoded(`${dir}/f`)}`)
    expect(refused).toMatchObject({ status: 400, body: { error: `watch ${dir}/f: not a directory` } })
    for (let round = 0; round < 40; round++) {
      const controller = new AbortController()
      const path = `${sandboxPath()}/watch/filesystem/${encoded(dir)}`
      const response = await client.request(path, { signal: controller.signal })
      expect(response.status).toBe(200)
      const reader = response.body?.getReader()
      expect(new TextDecoder().decode((await reader?.read())?.value)).toBe('[keepalive]\n')
      controller.abort()
    }
  })
})
