import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { PlatformError } from '../errors.ts'
import { randomText } from '../lib/ids.ts'
import { treeContract } from './runtime.contract-trees.ts'
import type {
  GuestProcess,
  Instance,
  InstanceSpec,
  OutputRecord,
  RootFilesystem,
  Runtime,
  SpawnSpec,
} from './runtime.ts'

/** What the suite needs of a driver under test. */
export interface RuntimeUnderTest extends AsyncDisposable {
  runtime: Runtime
  image: RootFilesystem
  /** A directory inside that may be written to, other than the working directory. */
  scratchDir: string
  workingDir: string
  /** The same host with the driver opened anew, as after a restart. Absent when nothing survives that. */
  reopen?: () => Promise<Runtime>
  /** A port that the programs of the instance may listen on. */
  port: number
}

/** Why the suite cannot run here. */
export interface RuntimeSkip {
  skip: string
}

const waitMs = 60_000
const testTimeoutMs = 120_000
const env = { PATH: '/usr/local/bin:/usr/bin:/bin' }

/** Every runtime driver passes this suite. */
export async function runtimeContract(
  name: string,
  makeRuntime: () => Promise<RuntimeUnderTest | RuntimeSkip>,
  options: { isolation: 'kernel-shared' | 'virtual-machine' | 'none' },
): Promise<void> {
  setDefaultTimeout(testTimeoutMs)
  const made = await makeRuntime()
  if ('skip' in made) {
    test.skip(`${name}: the runtime contract (skipped: ${made.skip})`, () => {})
    return
  }
  describe(`${name}: the runtime contract`, () => suite(made, options))
}

function suite(under: RuntimeUnderTest, options: { isolation: string }) {
  const { image, scratchDir, workingDir } = under
  let runtime = under.runtime
  let instance: Instance
  let nextProcessId = 1

  const specOf = (more: Partial<InstanceSpec> = {}): InstanceSpec => ({
    id: `contract${randomText(12)}`,
    hostname: 'contract',
    image,
    memoryMb: 256,
    storageMb: 256,
    pidsMax: 128,
    env: {},
    workingDir,
    ...more,
  })
  const spec = specOf()

  beforeAll(async () => {
    instance = await runtime.create(spec)
  })
  afterAll(async () => {
    for (const id of await runtime.list()) await runtime.destroy(id)
    await under[Symbol.asyncDispose]()
  })

  const start = async (argv: string[], more: Partial<SpawnSpec> = {}): Promise<number> => {
    const id = nextProcessId++
    await instance.guest.processes.spawn({ id, argv, env, workingDir, stdin: 'null', ...more })
    return id
  }
  const run = async (argv: string[], more: Partial<SpawnSpec> = {}) => {
    const id = await start(argv, more)
    const ended = await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    return { ...ended, ...(await outputOf(instance, id)) }
  }
  const path = () => `${scratchDir}/${randomText(12)}`

  test('says what it is', () => {
    expect(runtime.capabilities.isolation as string).toBe(options.isolation)
    expect(Object.values(runtime.capabilities.limits).every((limit) => limit.length > 0)).toBe(true)
    expect(instance.freeze !== undefined).toBe(runtime.capabilities.standby !== 'none')
  })

  test('an instance has a handle that survives JSON, and is listed', async () => {
    expect(JSON.parse(JSON.stringify(instance.handle))).toEqual(instance.handle)
    expect(instance.handle.id).toBe(spec.id)
    expect(await runtime.list()).toContain(spec.id)
  })

  test('an id that exists, or is none, is refused and harms nobody', async () => {
    expect(await codeOf(runtime.create(specOf({ id: spec.id })))).toBe('already_exists')
    expect(await codeOf(runtime.create(specOf({ id: '../escape' })))).toBe('bad_request')
    expect((await run(['true'])).exitCode).toBe(0)
  })

  test('an aborted create leaves nothing', async () => {
    const aborted = specOf({ signal: AbortSignal.abort(new Error('not wanted any more')) })
    await expect(runtime.create(aborted)).rejects.toThrow('not wanted any more')
    expect(await runtime.list()).not.toContain(aborted.id)
  })

  test('programs end with their exit code, and times that make sense', async () => {
    const [ok, failed, three] = await Promise.all([
      run(['true']),
      run(['false']),
      run(['sh', '-c', 'exit 3']),
    ])
    expect([ok.exitCode, failed.exitCode, three.exitCode]).toEqual([0, 1, 3])
    expect(ok.signal).toBeNull()
    expect(ok.running).toBe(false)
    expect(ok.endedAt).toBeGreaterThanOrEqual(ok.startedAt)
  })

  test('output is there once the program ended, by stream', async () => {
    expect((await run(['echo', 'hello', 'world'])).stdout).toBe('hello world\n')
    const failed = await run(['cat', `${scratchDir}/is-not-there`])
    expect(failed.stdout).toBe('')
    expect(failed.stderr).toContain('is-not-there')
  })

  test('a program gets the environment and the directory it was given, nothing else', async () => {
    const told = await run(['env'], { env: { PATH: env.PATH, ONE: 'a=b c' } })
    expect(told.stdout.split('\n').filter(Boolean).sort()).toEqual(['ONE=a=b c', `PATH=${env.PATH}`])
    expect((await run(['pwd'], { workingDir: scratchDir })).stdout).toBe(`${scratchDir}\n`)
  })

  test('a program that cannot be started says so', async () => {
    expect(await codeOf(start(['no-such-program-here']))).toBe('unprocessable')
    expect(await codeOf(start(['true'], { workingDir: `${scratchDir}/no-such-directory` }))).toBe(
      'unprocessable',
    )
  })

  test('a signal ends a program, once', async () => {
    const id = await start(['sleep', '60'])
    await instance.guest.processes.signal(id, 15, 'process')
    const ended = await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect(ended).toMatchObject({ running: false, exitCode: null, signal: 15 })
    expect(await codeOf(instance.guest.processes.signal(id, 15, 'process'))).toBe('not_found')
    expect(await codeOf(instance.guest.processes.signal(2 ** 30, 15, 'process'))).toBe('not_found')
  })

  test('stdin reaches the program; without one, or once closed, it is refused', async () => {
    const id = await start(['cat'], { stdin: 'pipe' })
    await instance.guest.processes.writeStdin(id, Buffer.from('first '))
    await instance.guest.processes.writeStdin(id, Buffer.from('second'))
    await instance.guest.processes.closeStdin(id)
    await instance.guest.processes.closeStdin(id)
    expect(await codeOf(instance.guest.processes.writeStdin(id, Buffer.from('late')))).toBe('conflict')
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect((await outputOf(instance, id)).stdout).toBe('first second')
    const without = await start(['sleep', '60'])
    expect(await codeOf(instance.guest.processes.writeStdin(without, Buffer.from('x')))).toBe('conflict')
    await instance.guest.processes.signal(without, 9, 'group')
  })

  test('every exit is told once to every listener, also what ended before it listened', async () => {
    const before = await start(['true'])
    await instance.guest.processes.wait(before, AbortSignal.timeout(waitMs))
    const told = new Map<number, number>()
    const stop = instance.guest.processes.onExit(({ id }) => told.set(id, (told.get(id) ?? 0) + 1))
    const after = await Promise.all([start(['true']), start(['false']), start(['true'])])
    for (const id of after) await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    await eventually(() => [before, ...after].every((id) => told.has(id)))
    expect([before, ...after].map((id) => told.get(id))).toEqual([1, 1, 1, 1])
    stop()
    const unheard = await start(['true'])
    await instance.guest.processes.wait(unheard, AbortSignal.timeout(waitMs))
    expect(told.has(unheard)).toBe(false)
  })

  test('an ended process is known until it is forgotten', async () => {
    const id = await start(['sleep', '60'])
    expect(await codeOf(instance.guest.processes.forget(id))).toBe('conflict')
    await instance.guest.processes.signal(id, 9, 'process')
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    const find = async () => (await instance.guest.processes.list()).find((process) => process.id === id)
    expect(await find()).toMatchObject({ id, running: false, signal: 9 } satisfies Partial<GuestProcess>)
    await instance.guest.processes.forget(id)
    await instance.guest.processes.forget(id)
    expect(await find()).toBeUndefined()
    expect(await codeOf(instance.guest.processes.wait(id))).toBe('not_found')
  })

  test('waiting can be given up', async () => {
    const id = await start(['sleep', '60'])
    const controller = new AbortController()
    const waiting = instance.guest.processes.wait(id, controller.signal)
    controller.abort(new Error('enough'))
    await expect(waiting).rejects.toThrow('enough')
    await instance.guest.processes.signal(id, 9, 'process')
  })

  test('output can be read on from where one stopped', async () => {
    const id = await start(['cat'], { stdin: 'pipe' })
    const follow = instance.guest.processes.output(id, { follow: true, signal: AbortSignal.timeout(waitMs) })
    const records = follow[Symbol.asyncIterator]()
    await instance.guest.processes.writeStdin(id, Buffer.from('one'))
    const first = (await records.next()).value as OutputRecord[]
    expect(textOf(first)).toBe('one')
    await records.return?.()
    await instance.guest.processes.writeStdin(id, Buffer.from('two'))
    await instance.guest.processes.closeStdin(id)
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect((await outputOf(instance, id, first.at(-1)?.endOffset)).stdout).toBe('two')
    expect((await outputOf(instance, id)).stdout).toBe('onetwo')
  })

  test('old output goes first, and that is said', async () => {
    const bytes = 4 * 1024 * 1024
    const id = await start(['head', '-c', String(bytes), '/dev/zero'], { outputBytesMax: 512 * 1024 })
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    const records: OutputRecord[] = []
    for await (const batch of instance.guest.processes.output(id)) records.push(...batch)
    expect(records[0]?.kind).toBe('truncated')
    const kept = records.reduce((sum, { data }) => sum + data.length, 0)
    expect(kept).toBeGreaterThan(256 * 1024)
    expect(kept).toBeLessThanOrEqual(640 * 1024)
  })

  test('a follower misses nothing, however little is kept', async () => {
    const bytes = 3 * 1024 * 1024
    const id = await start(['cat'], { stdin: 'pipe', outputBytesMax: bytes * 2 })
    let seen = 0
    const following = (async () => {
      const output = instance.guest.processes.output(id, {
        follow: true,
        signal: AbortSignal.timeout(waitMs),
      })
      for await (const records of output) {
        expect(records.every(({ kind }) => kind === 'stdout')).toBe(true)
        seen += records.reduce((sum, { data }) => sum + data.length, 0)
      }
    })()
    for (let sent = 0; sent < bytes; sent += 65_536) {
      await instance.guest.processes.writeStdin(id, new Uint8Array(65_536).fill(65))
    }
    await instance.guest.processes.closeStdin(id)
    await following
    expect(seen).toBe(bytes)
  })

  test('a file is written whole and read back, with its parents', async () => {
    const file = `${path()}/deep/er/file.txt`
    const written = await instance.guest.files.write(file, Buffer.from('content'))
    expect(written).toMatchObject({ type: 'file', size: 7, mode: 0o644 })
    const read = await instance.guest.files.read(file)
    expect(read.entry.size).toBe(7)
    expect(await new Response(read.body).text()).toBe('content')
    const part = await instance.guest.files.read(file, { offset: 3, length: 2 })
    expect(await new Response(part.body).text()).toBe('te')
    expect((await run(['cat', file])).stdout).toBe('content')
  })

  test('a large body is streamed both ways', async () => {
    const file = path()
    const chunk = new Uint8Array(100_000).map((_, at) => at % 251)
    let left = 50
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (left-- > 0) controller.enqueue(chunk)
        else controller.close()
      },
    })
    expect((await instance.guest.files.write(file, body)).size).toBe(5_000_000)
    const back = new Uint8Array(
      await new Response((await instance.guest.files.read(file)).body).arrayBuffer(),
    )
    expect(back.length).toBe(5_000_000)
    expect(Buffer.from(back.subarray(4_900_000)).equals(chunk)).toBe(true)
  })

  test("a body may use its memory again for each chunk, and what is read is its reader's", async () => {
    const file = path()
    const expected = Buffer.alloc(20 * 70_000)
    const memory = new Uint8Array(70_000)
    let chunks = 0
    const body = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          if (chunks === 20) return controller.close()
          expected.set(memory.fill(++chunks), (chunks - 1) * memory.length)
          controller.enqueue(memory)
        },
      },
      { highWaterMark: 0 },
    )
    await instance.guest.files.write(file, body)
    for (let round = 0; round < 2; round++) {
      const { body: back } = await instance.guest.files.read(file)
      const hash = new Bun.CryptoHasher('sha1')
      for await (const chunk of back) {
        hash.update(chunk)
        chunk.fill(0)
      }
      expect(hash.digest('hex')).toBe(new Bun.CryptoHasher('sha1').update(expected).digest('hex'))
    }
  })

  test('a file that is opened to be sent is the one that was there then, until it is let go of', async () => {
    const { files } = instance.guest
    const file = path()
    for (const bytes of [7, 300_000, 20_000_000]) {
      const content = Buffer.alloc(bytes, 'content ')
      await files.write(file, content)
      const opened = (await files.open?.(file)) ?? (await files.read(file))
      await files.write(file, Buffer.from('other'))
      expect(opened.entry).toMatchObject({ type: 'file', size: bytes })
      if ('body' in opened) {
        const read = Buffer.from(await new Response(opened.body).arrayBuffer())
        expect(read.equals(content)).toBe(true)
      } else {
        using handed = opened.file
        expect(handed).toMatchObject({ bytes, revoked: false })
        expect(readFileSync(handed.descriptor).equals(content)).toBe(true)
      }
    }
    expect(await codeOf(files.open?.(`${file}.none`) ?? files.read(`${file}.none`))).toBe('not_found')
  })

  test('a write that fails midway leaves the old file', async () => {
    const file = path()
    await instance.guest.files.write(file, Buffer.from('old'))
    let sent = 0
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (sent++ < 3) controller.enqueue(new Uint8Array(300_000))
        else controller.error(new Error('the client went away'))
      },
    })
    await expect(instance.guest.files.write(file, body)).rejects.toThrow('the client went away')
    const { body: kept } = await instance.guest.files.read(file)
    expect(await new Response(kept).text()).toBe('old')
  })

  test('a read that is cancelled leaves room for the next', async () => {
    const file = path()
    await instance.guest.files.write(file, new Uint8Array(8 * 1024 * 1024))
    for (let round = 0; round < 40; round++) {
      const { body } = await instance.guest.files.read(file)
      const reader = body.getReader()
      await reader.read()
      await reader.cancel()
    }
    expect((await instance.guest.files.stat(file)).size).toBe(8 * 1024 * 1024)
  })

  test('directories are made, listed and removed', async () => {
    const dir = path()
    await instance.guest.files.makeDirectory(`${dir}/a/b`, { parents: true })
    await instance.guest.files.makeDirectory(`${dir}/a/b`, { parents: true })
    expect(await codeOf(instance.guest.files.makeDirectory(`${dir}/a`))).toBe('already_exists')
    for (let i = 0; i < 300; i++) await instance.guest.files.write(`${dir}/a/file-${i}`, Buffer.from('x'))
    const names: string[] = []
    for await (const entries of instance.guest.files.list(`${dir}/a`))
      names.push(...entries.map(({ name }) => name))
    expect(names.length).toBe(301)
    expect(new Set(names)).toContain('file-299')
    expect(await codeOf(instance.guest.files.remove(dir))).toBe('conflict')
    await instance.guest.files.remove(dir, { recursive: true })
    expect(await codeOf(instance.guest.files.stat(dir))).toBe('not_found')
  })

  test('links are told from what they point to, and written through', async () => {
    const [file, link] = [path(), path()]
    await instance.guest.files.write(file, Buffer.from('1'))
    await run(['ln', '-s', file, link])
    expect(await instance.guest.files.stat(link, { follow: false })).toMatchObject({
      type: 'symlink',
      linkTarget: file,
    })
    expect((await instance.guest.files.stat(link)).type).toBe('file')
    await instance.guest.files.write(link, Buffer.from('22'))
    expect((await instance.guest.files.stat(file)).size).toBe(2)
    expect(await instance.guest.files.realPath(link)).toBe(file)
    await instance.guest.files.remove(link)
    expect((await instance.guest.files.stat(file)).size).toBe(2)
  })

  test('files are renamed and change their mode, which a write keeps', async () => {
    const [from, to] = [path(), path()]
    await instance.guest.files.write(from, Buffer.from('x'), { mode: 0o600 })
    await instance.guest.files.rename(from, to)
    await instance.guest.files.setMode(to, 0o750)
    await instance.guest.files.write(to, Buffer.from('y'), { newFileMode: 0o640 })
    expect((await instance.guest.files.stat(to)).mode).toBe(0o750)
    expect(await codeOf(instance.guest.files.stat(from))).toBe('not_found')
  })

  test('what cannot be done with a file has its code', async () => {
    const { files } = instance.guest
    const dir = path()
    await files.makeDirectory(dir)
    const missing = `${dir}/missing`
    expect(await codeOf(files.read(missing))).toBe('not_found')
    expect(await codeOf(files.read(dir))).toBe('conflict')
    expect(await codeOf(files.write(dir, Buffer.from('x')))).toBe('conflict')
    expect(await codeOf(files.remove(missing))).toBe('not_found')
    expect(await codeOf(files.setMode(missing, 0o600))).toBe('not_found')
    expect(await codeOf(files.realPath(missing))).toBe('not_found')
    expect(await codeOf(files.stat(`${dir}/nul\0`))).toBe('bad_request')
    expect(await codeOf(files.stat('relative'))).toBe('bad_request')
    expect(await codeOf(collect(files.list(missing)))).toBe('not_found')
    await files.write(`${dir}/file`, Buffer.from('x'))
    expect(await codeOf(files.stat(`${dir}/file/below`))).toBe('conflict')
    expect(await codeOf(collect(files.list(`${dir}/file`)))).toBe('conflict')
  })

  test('many file operations at once all end', async () => {
    const dir = path()
    const names = Array.from({ length: 200 }, (_, at) => `${dir}/${at}`)
    await Promise.all(names.map((name) => instance.guest.files.write(name, Buffer.from(name))))
    const sizes = await Promise.all(names.map(async (name) => (await instance.guest.files.stat(name)).size))
    expect(sizes).toEqual(names.map((name) => name.length))
  })

  treeContract(() => instance.guest.files, scratchDir)

  test('a port inside can be asked for, and reached', async () => {
    const port = under.port
    expect(await instance.listening(port)).toBe(false)
    const id = await start(['python3', '-m', 'http.server', String(port)])
    await eventually(() => instance.listening(port))
    const { origin, unix } = await instance.address(port)
    const response = await fetch(`${origin}/`, unix === undefined ? {} : { unix })
    expect(response.status).toBe(200)
    await response.arrayBuffer()
    await instance.guest.processes.signal(id, 9, 'group')
    await eventually(async () => !(await instance.listening(port)))
  })

  test('a frozen instance answers once it is thawed', async () => {
    if (!instance.freeze || !instance.thaw) return
    expect(instance.frozen).toBe(false)
    await instance.freeze()
    await instance.freeze()
    expect(instance.frozen).toBe(true)
    let answered = false
    const ending = run(['true']).then((ended) => {
      answered = true
      return ended
    })
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(answered).toBe(false)
    await instance.thaw()
    await instance.thaw()
    expect(instance.frozen).toBe(false)
    expect((await ending).exitCode).toBe(0)
  })

  test('a freeze that is called off leaves everything running', async () => {
    if (!instance.freeze) return
    const asked = new AbortController()
    const reason = new Error('somebody came')
    asked.abort(reason)
    expect(
      await instance.freeze(asked.signal).then(
        () => null,
        (error) => error,
      ),
    ).toBe(reason)
    expect(instance.frozen).toBe(false)
    expect((await run(['true'])).exitCode).toBe(0)
  })

  test('statistics are numbers', async () => {
    const stats = await instance.stats()
    for (const value of [stats.memoryBytes, stats.cpuMs, stats.processes]) {
      expect(Number.isFinite(value) && value >= 0).toBe(true)
    }
  })

  test('a handle leads back to its instance, and a foreign or ended one to nothing', async () => {
    const again = await runtime.recover(instance.handle)
    expect(again?.id).toBe(spec.id)
    expect(await runtime.recover({ ...instance.handle, driver: 'another' })).toBeNull()
    const other = await runtime.create(specOf())
    await runtime.destroy(other.id)
    expect(await runtime.recover(other.handle)).toBeNull()
  })

  test('instances outlive a driver that is closed and opened again', async () => {
    if (!under.reopen) {
      expect(runtime.capabilities.survivesRestart).toBe(false)
      return
    }
    const id = await start(['cat'], { stdin: 'pipe' })
    const meanwhile = await start(['sleep', '0.3'])
    await instance.guest.processes.writeStdin(id, Buffer.from('before '))
    const handle = JSON.parse(JSON.stringify(instance.handle))
    await runtime[Symbol.asyncDispose]()
    runtime = await under.reopen()
    const recovered = await runtime.recover(handle)
    if (!recovered) throw new Error('the instance is gone')
    instance = recovered
    const told: number[] = []
    instance.guest.processes.onExit((process) => told.push(process.id))
    await eventually(() => told.includes(meanwhile))
    await instance.guest.processes.writeStdin(id, Buffer.from('after'))
    await instance.guest.processes.closeStdin(id)
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect((await outputOf(instance, id)).stdout).toBe('before after')
  })

  test('a frozen instance is found frozen, and goes on where it was', async () => {
    if (!under.reopen || !instance.freeze) return
    const id = await start(['sh', '-c', 'read line; echo "read $line"'], { stdin: 'pipe' })
    await instance.freeze()
    const { handle } = instance
    await instance[Symbol.asyncDispose]()
    await runtime[Symbol.asyncDispose]()
    runtime = await under.reopen()
    const found = await runtime.recover(handle)
    if (!found) throw new Error('the instance was not found again')
    instance = found
    expect(instance.frozen).toBe(true)
    const listing = instance.guest.processes.list()
    await instance.thaw?.()
    expect((await listing).find((process) => process.id === id)?.running).toBe(true)
    await instance.guest.processes.writeStdin(id, Buffer.from('on\n'))
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect((await outputOf(instance, id)).stdout).toBe('read on\n')
  })

  test('a stopped instance keeps its files and starts again', async () => {
    const file = path()
    await instance.guest.files.write(file, Buffer.from('kept'))
    const id = await start(['sleep', '60'])
    const waiting = codeOf(instance.guest.processes.wait(id))
    await instance.stop()
    await instance.stop()
    expect((await instance.exited).reason).toBe('stopped')
    await waiting
    expect(await codeOf(instance.guest.processes.list())).toBe('unavailable')
    expect(await runtime.recover(instance.handle)).toBeNull()
    expect(await runtime.list()).toContain(spec.id)
    instance = await runtime.restart(spec)
    const { body } = await instance.guest.files.read(file)
    expect(await new Response(body).text()).toBe('kept')
    expect((await run(['true'])).exitCode).toBe(0)
    expect(await codeOf(runtime.restart(specOf()))).toBe('not_found')
  })

  test('a packed instance takes little room, and comes back with its files', async () => {
    expect([runtime.pack !== undefined, runtime.unpack !== undefined]).toEqual(
      Array(2).fill(runtime.capabilities.archive),
    )
    if (!runtime.pack || !runtime.unpack) return
    const own = specOf()
    let packed = await runtime.create(own)
    const [file, link, other] = [path(), path(), path()]
    await packed.guest.files.write(file, Buffer.from('kept\n'), { mode: 0o640 })
    await packed.guest.files.write(other, Buffer.alloc(300_000, 'x'))
    await packed.guest.processes.spawn({
      id: 1,
      argv: ['ln', '-s', file, link],
      env,
      workingDir,
      stdin: 'null',
    })
    await packed.guest.processes.wait(1, AbortSignal.timeout(waitMs))
    const called = new AbortController()
    called.abort(new Error('called off'))
    expect(
      await runtime.pack(own.id, called.signal).then(
        () => '',
        (error) => error.message,
      ),
    ).toBe('called off')
    packed = await runtime.restart(own)
    expect((await packed.guest.files.stat(file)).size).toBe(5)
    const bytes = await runtime.pack(own.id)
    expect(bytes).toBeGreaterThan(0)
    expect(await runtime.pack(own.id)).toBe(bytes)
    expect(await runtime.list()).toContain(own.id)
    expect(await codeOf(runtime.restart(own))).toBe('not_found')
    await runtime.unpack(own.id)
    await runtime.unpack(own.id)
    packed = await runtime.restart(own)
    expect(await packed.guest.files.stat(file)).toMatchObject({ size: 5, mode: 0o640 })
    expect(await packed.guest.files.realPath(link)).toBe(await packed.guest.files.realPath(file))
    const { body } = await packed.guest.files.read(other)
    expect(Buffer.from(await new Response(body).arrayBuffer()).equals(Buffer.alloc(300_000, 'x'))).toBe(true)
    await runtime.pack(own.id)
    await runtime.destroy(own.id)
    expect(await runtime.list()).not.toContain(own.id)
  })

  test('a snapshot has the files of one moment, and new instances have them', async () => {
    const { snapshots } = runtime
    expect(snapshots !== undefined).toBe(runtime.capabilities.snapshots)
    if (!snapshots) return
    const own = specOf()
    const source = await runtime.create(own)
    const [file, link, large] = [path(), path(), path()]
    await source.guest.files.write(file, Buffer.from('then\n'), { mode: 0o640 })
    await source.guest.files.write(large, Buffer.alloc(3_000_000, 'x'))
    await source.guest.processes.spawn({
      id: 1,
      argv: ['ln', '-s', file, link],
      env,
      workingDir,
      stdin: 'null',
    })
    await source.guest.processes.wait(1, AbortSignal.timeout(waitMs))
    const id = `snapshot${randomText(12)}`
    expect(await codeOf(snapshots.capture(own.id, id))).toBe('conflict')
    expect(await codeOf(snapshots.capture(`unknown${randomText(12)}`, id))).toBe('not_found')
    expect(await codeOf(snapshots.complete(id))).toBe('not_found')
    await source.freeze?.()
    await snapshots.capture(own.id, id)
    await source.thaw?.()
    const later = (spec: InstanceSpec) => runtime.create({ ...spec, snapshotId: id })
    expect(await codeOf(later(specOf()))).toBe('not_found')
    expect(await snapshots.list()).toContain(id)
    const bytes = await snapshots.complete(id)
    expect(bytes).toBeGreaterThanOrEqual(3_000_000)
    expect(await snapshots.complete(id)).toBe(bytes)
    await source.guest.files.write(file, Buffer.from('later\n'))
    await runtime.destroy(own.id)

    const specs = [specOf(), specOf()]
    const copies = await Promise.all(specs.map(later))
    for (const [index, { guest }] of copies.entries()) {
      expect(await guest.files.stat(file)).toMatchObject({ size: 5, mode: 0o640 })
      expect(await guest.files.realPath(link)).toBe(await guest.files.realPath(file))
      expect((await guest.files.stat(large)).size).toBe(3_000_000)
      await guest.files.write(file, Buffer.from('x'.repeat(index + 10)))
    }
    const sizes = await Promise.all(copies.map(async ({ guest }) => (await guest.files.stat(file)).size))
    expect(sizes).toEqual([10, 11])
    const [first = specOf()] = specs
    expect((await (await runtime.restart(first)).guest.files.stat(file)).size).toBe(10)

    // What is packed, or has been stopped, stands still as well.
    const another = `snapshot${randomText(12)}`
    await copies[1]?.stop()
    await snapshots.capture(specs[1]?.id ?? '', another)
    await snapshots.complete(another)
    await snapshots.remove(another)
    if (runtime.pack) {
      await runtime.pack(first.id)
      await snapshots.capture(first.id, another)
      await snapshots.complete(another)
      const unpacked = await runtime.create({ ...specOf(), snapshotId: another })
      expect((await unpacked.guest.files.stat(file)).size).toBe(10)
      await runtime.destroy(unpacked.id)
    }
    const called = new AbortController()
    called.abort(new Error('called off'))
    await expect(snapshots.capture(first.id, `snapshot${randomText(12)}`, called.signal)).rejects.toThrow(
      'called off',
    )
    for (const { id } of specs) await runtime.destroy(id)
    await snapshots.remove(id)
    await snapshots.remove(id)
    await snapshots.remove(another)
    expect(await snapshots.list()).toEqual([])
  })

  test('a snapshot is sound while programs write, and has all that was written before it or nothing', async () => {
    const { snapshots } = runtime
    if (!snapshots || runtime.capabilities.isolation === 'none') return
    const own = specOf()
    const source = await runtime.create(own)
    const target = path()
    await source.guest.processes.spawn({
      id: 1,
      argv: ['sh', '-c', `i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i > ${target}-$i; done`],
      env,
      workingDir,
      stdin: 'null',
    })
    await eventually(() => exists(source, `${target}-50`))
    const id = `snapshot${randomText(12)}`
    await source.freeze?.()
    await snapshots.capture(own.id, id)
    await source.thaw?.()
    await snapshots.complete(id)
    await runtime.destroy(own.id)
    const copy = await runtime.create({ ...specOf(), snapshotId: id })
    const command = `set -- ${target}-*; i=0; while [ $((i+=1)) -lt $# ]; do read -r n < ${target}-$i; [ "$n" = $i ] || exit 1; done; [ $# -ge 50 ]`
    await copy.guest.processes.spawn({ id: 1, argv: ['sh', '-c', command], env, workingDir, stdin: 'null' })
    expect((await copy.guest.processes.wait(1, AbortSignal.timeout(waitMs))).exitCode).toBe(0)
    await runtime.destroy(copy.id)
    await snapshots.remove(id)
  })

  test('destroying leaves nothing, twice as well', async () => {
    const doomed = await runtime.create(specOf())
    await doomed.guest.processes.spawn({ id: 1, argv: ['sleep', '60'], env, workingDir, stdin: 'null' })
    await Promise.all([runtime.destroy(doomed.id), runtime.destroy(doomed.id)])
    await runtime.destroy(doomed.id)
    await runtime.destroy(`unknown${randomText(12)}`)
    expect((await doomed.exited).reason).toBe('killed')
    expect(await runtime.list()).not.toContain(doomed.id)
  })

  test('many are created at once and go at once', async () => {
    const many = await Promise.all(Array.from({ length: 16 }, () => runtime.create(specOf())))
    const hosts = await Promise.all(
      many.map(async ({ guest }) => {
        await guest.processes.spawn({ id: 1, argv: ['true'], env, workingDir, stdin: 'null' })
        return (await guest.processes.wait(1, AbortSignal.timeout(waitMs))).exitCode
      }),
    )
    expect(hosts.every((exitCode) => exitCode === 0)).toBe(true)
    await Promise.all(many.map(({ id }) => runtime.destroy(id)))
    const left = await runtime.list()
    expect(many.filter(({ id }) => left.includes(id))).toEqual([])
  })
}

async function exists(instance: Instance, path: string): Promise<boolean> {
  return await instance.guest.files.stat(path).then(
    () => true,
    () => false,
  )
}

async function outputOf(instance: Instance, id: number, fromOffset = 0) {
  const records: OutputRecord[] = []
  for await (const batch of instance.guest.processes.output(id, { fromOffset })) records.push(...batch)
  return {
    stdout: textOf(records.filter(({ kind }) => kind === 'stdout')),
    stderr: textOf(records.filter(({ kind }) => kind === 'stderr')),
  }
}

function textOf(records: OutputRecord[]): string {
  return Buffer.concat(records.map(({ data }) => data)).toString()
}

async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const all: Item[] = []
  for await (const item of items) all.push(item)
  return all
}

/** The code that a promise rejects with, '' when it does not. */
async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return ''
  } catch (error) {
    if (PlatformError.is(error)) return error.code
    throw error
  }
}

async function eventually(holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + waitMs
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error('did not come true in time')
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
