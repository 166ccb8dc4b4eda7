import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { Connections } from '../lib/http1/index.ts'
import { randomText } from '../lib/ids.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { GuestProcess, OutputRecord, SpawnSpec } from './guest.ts'
import { type ContractContext, env, outputOf, textOf, waitMs } from './runtime.contract-context.ts'
import { copiesContract } from './runtime.contract-copies.ts'
import { filesContract } from './runtime.contract-files.ts'
import { treeContract } from './runtime.contract-trees.ts'
import type { Instance, InstanceSpec, RootFilesystem, Runtime } from './runtime.ts'

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

const testTimeoutMs = 120_000

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
  const context: ContractContext = {
    get runtime() {
      return runtime
    },
    get instance() {
      return instance
    },
    workingDir,
    specOf,
    run,
    path,
  }

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
    expect(await refusalCodeOf(runtime.create(specOf({ id: spec.id })))).toBe('already_exists')
    expect(await refusalCodeOf(runtime.create(specOf({ id: '../escape' })))).toBe('bad_request')
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
    expect(await refusalCodeOf(start(['no-such-program-here']))).toBe('unprocessable')
    expect(await refusalCodeOf(start(['true'], { workingDir: `${scratchDir}/no-such-directory` }))).toBe(
      'unprocessable',
    )
  })

  test('a signal ends a program, once', async () => {
    const id = await start(['sleep', '60'])
    await instance.guest.processes.signal(id, 15, 'process')
    const ended = await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect(ended).toMatchObject({ running: false, exitCode: null, signal: 15 })
    expect(await refusalCodeOf(instance.guest.processes.signal(id, 15, 'process'))).toBe('not_found')
    expect(await refusalCodeOf(instance.guest.processes.signal(2 ** 30, 15, 'process'))).toBe('not_found')
  })

  test('stdin reaches the program; without one, or once closed, it is refused', async () => {
    const id = await start(['cat'], { stdin: 'pipe' })
    await instance.guest.processes.writeStdin(id, Buffer.from('first '))
    await instance.guest.processes.writeStdin(id, Buffer.from('second'))
    await instance.guest.processes.closeStdin(id)
    await instance.guest.processes.closeStdin(id)
    expect(await refusalCodeOf(instance.guest.processes.writeStdin(id, Buffer.from('late')))).toBe('conflict')
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    expect((await outputOf(instance, id)).stdout).toBe('first second')
    const without = await start(['sleep', '60'])
    expect(await refusalCodeOf(instance.guest.processes.writeStdin(without, Buffer.from('x')))).toBe(
      'conflict',
    )
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
    expect(await refusalCodeOf(instance.guest.processes.forget(id))).toBe('conflict')
    await instance.guest.processes.signal(id, 9, 'process')
    await instance.guest.processes.wait(id, AbortSignal.timeout(waitMs))
    const find = async () => (await instance.guest.processes.list()).find((process) => process.id === id)
    expect(await find()).toMatchObject({ id, running: false, signal: 9 } satisfies Partial<GuestProcess>)
    await instance.guest.processes.forget(id)
    await instance.guest.processes.forget(id)
    expect(await find()).toBeUndefined()
    expect(await refusalCodeOf(instance.guest.processes.wait(id))).toBe('not_found')
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

  filesContract(context)
  treeContract(() => context.instance.guest.files, scratchDir)

  test('a port inside can be asked for, and reached', async () => {
    const port = under.port
    expect(await instance.listening(port)).toBe(false)
    const id = await start(['python3', '-m', 'http.server', String(port)])
    await eventually(() => instance.listening(port))
    const address = await instance.address(port)
    const { origin, unix } = address
    const response = await fetch(`${origin}/`, unix === undefined ? {} : { unix })
    expect(response.status).toBe(200)
    await response.arrayBuffer()
    const head = 'GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n'
    const call = new Connections().send(address, { method: 'GET', head, body: null, bodyBytes: null })
    expect((await call.answered).status).toBe(200)
    expect((await call.bytes()).byteLength).toBeGreaterThan(0)
    // What an instance sends to its own address stays inside.
    const way = instance.wayOut(Uint8Array.of(127, 0, 0, 1), port)
    const again = new Connections().send(way, { method: 'GET', head, body: null, bodyBytes: null })
    expect((await again.answered).status).toBe(200)
    await again.cancel()
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
    const waiting = refusalCodeOf(instance.guest.processes.wait(id))
    await instance.stop()
    await instance.stop()
    expect((await instance.exited).reason).toBe('stopped')
    await waiting
    expect(await refusalCodeOf(instance.guest.processes.list())).toBe('unavailable')
    expect(await runtime.recover(instance.handle)).toBeNull()
    expect(await runtime.list()).toContain(spec.id)
    instance = await runtime.restart(spec)
    const { body } = await instance.guest.files.read(file)
    expect(await new Response(body).text()).toBe('kept')
    expect((await run(['true'])).exitCode).toBe(0)
    expect(await refusalCodeOf(runtime.restart(specOf()))).toBe('not_found')
  })

  copiesContract(context)

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
