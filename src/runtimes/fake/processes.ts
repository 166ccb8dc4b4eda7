import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import {
  type GuestProcess,
  type GuestProcesses,
  type OutputRecord,
  outputBytesMaxDefault,
  type ProcessDescent,
  type SpawnSpec,
} from '../../spec/guest.ts'
import type { FakeFiles } from './files.ts'
import type { FakeProgram } from './programs.ts'

/** As in the real log, so that offsets behave alike. */
const recordHeaderBytes = 16
const sigkill = 9

class Ended extends Error {
  constructor(readonly signal: number) {
    super(`signal ${signal}`)
  }
}

interface FakeProcess {
  process: GuestProcess
  spec: SpawnSpec
  records: OutputRecord[]
  startOffset: number
  endOffset: number
  stdin: { open: boolean; chunks: Uint8Array[]; changed: PromiseWithResolvers<void> }
  abort: AbortController
  ended: PromiseWithResolvers<GuestProcess>
  servers: { port: number; server: Bun.Server<undefined> }[]
  changed: Set<() => void>
}

export interface FakeProcessesOptions {
  programs: Record<string, FakeProgram>
  files: FakeFiles
  clock: Clock
}

/** Processes that are functions. */
export class FakeProcesses implements GuestProcesses {
  #known = new Map<number, FakeProcess>()
  #listeners = new Set<(process: GuestProcess) => void>()
  #nextPid = 2
  #failure: PlatformError | null = null
  #frozen: PromiseWithResolvers<void> | null = null

  constructor(private readonly options: FakeProcessesOptions) {}

  async spawn(spec: SpawnSpec): Promise<{ pid: number; startedAt: number }> {
    await this.#ready()
    const [name = ''] = spec.argv
    const program = this.options.programs[name.slice(name.lastIndexOf('/') + 1)]
    if (!program)
      throw new PlatformError('unprocessable', `cannot start "${name}": exec: No such file or directory`)
    await this.options.files.stat(spec.workingDir).catch(() => {
      throw new PlatformError('unprocessable', `cannot start "${name}": chdir: No such file or directory`)
    })
    if (this.#known.has(spec.id)) throw new PlatformError('unprocessable', `process ${spec.id} exists`)
    const startedAt = this.options.clock.now()
    const pid = this.#nextPid++
    const fake: FakeProcess = {
      process: { id: spec.id, pid, running: true, startedAt, endedAt: null, exitCode: null, signal: null },
      spec,
      records: [],
      startOffset: 0,
      endOffset: 0,
      stdin: { open: spec.stdin === 'pipe', chunks: [], changed: Promise.withResolvers() },
      abort: new AbortController(),
      ended: Promise.withResolvers(),
      servers: [],
      changed: new Set(),
    }
    fake.abort.signal.addEventListener('abort', () => fake.stdin.changed.resolve())
    this.#known.set(spec.id, fake)
    void this.#run(fake, program)
    return { pid, startedAt }
  }

  async signal(id: number, signal: number): Promise<void> {
    await this.#ready()
    const fake = this.#known.get(id)
    if (!fake?.process.running) throw new PlatformError('not_found', `process ${id} does not run`)
    if (signal !== 0) fake.abort.abort(new Ended(signal))
  }

  async list(): Promise<GuestProcess[]> {
    await this.#ready()
    return [...this.#known.values()].map(({ process }) => ({ ...process }))
  }

  async forget(id: number): Promise<void> {
    await this.#ready()
    if (this.#known.get(id)?.process.running) {
      throw new PlatformError('conflict', `process ${id} runs: only an ended process can be forgotten`)
    }
    this.#known.delete(id)
  }

  async wait(id: number, signal?: AbortSignal): Promise<GuestProcess> {
    await this.#ready()
    const fake = this.#get(id)
    if (!signal) return fake.ended.promise
    signal.throwIfAborted()
    return Promise.race([
      fake.ended.promise,
      new Promise<never>((_, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason), { once: true })
      }),
    ])
  }

  onExit(listener: (process: GuestProcess) => void): () => void {
    const entry = (process: GuestProcess) => listener(process)
    this.#listeners.add(entry)
    queueMicrotask(() => {
      for (const { process } of this.#known.values())
        if (!process.running && this.#listeners.has(entry)) entry(process)
    })
    return () => this.#listeners.delete(entry)
  }

  async writeStdin(id: number, data: Uint8Array): Promise<void> {
    await this.#ready()
    const fake = this.#get(id)
    if (!fake.stdin.open || !fake.process.running) {
      const why = fake.spec.stdin === 'pipe' ? 'is closed' : 'was not opened'
      throw new PlatformError('conflict', `stdin of process ${id} ${why}`)
    }
    fake.stdin.chunks.push(data.slice())
    fake.stdin.changed.resolve()
  }

  async closeStdin(id: number): Promise<void> {
    await this.#ready()
    const fake = this.#get(id)
    if (fake.spec.stdin !== 'pipe')
      throw new PlatformError('conflict', `stdin of process ${id} was not opened`)
    fake.stdin.open = false
    fake.stdin.changed.resolve()
  }

  async descent(id: number): Promise<ProcessDescent> {
    await this.#ready()
    const fake = this.#known.get(id)
    if (!fake?.process.running) return { living: 0, sockets: [] }
    const sockets = fake.servers.map(({ port }) => ({
      pid: fake.process.pid,
      processName: fake.spec.argv[0] ?? '',
      protocol: 'tcp' as const,
      state: 'LISTEN',
      localAddress: '127.0.0.1',
      localPort: port,
      remoteAddress: '0.0.0.0',
      remotePort: 0,
    }))
    return { living: 1, sockets }
  }

  async resize(id: number): Promise<void> {
    await this.#ready()
    if (!this.#get(id).spec.pty) throw new PlatformError('conflict', `process ${id} has no terminal`)
  }

  async *output(
    id: number,
    options: { fromOffset?: number; follow?: boolean; signal?: AbortSignal } = {},
  ): AsyncGenerator<OutputRecord[]> {
    const fake = this.#get(id)
    let position = options.fromOffset ?? 0
    for (;;) {
      options.signal?.throwIfAborted()
      const running = fake.process.running
      if (position < fake.startOffset) {
        position = fake.startOffset
        yield [{ kind: 'truncated', at: 0, endOffset: position, data: new Uint8Array(0) }]
      }
      const records = fake.records.filter(({ endOffset }) => endOffset > position)
      if (records.length > 0) {
        position = fake.endOffset
        yield records
        continue
      }
      if (!running || !options.follow) return
      await new Promise<void>((resolve) => {
        fake.changed.add(resolve)
        options.signal?.addEventListener('abort', () => resolve(), { once: true })
      })
    }
  }

  /** The real port behind a port of the instance, null when nothing listens. */
  portOf(port: number): number | null {
    for (const { servers } of this.#known.values()) {
      for (const { server, port: inside } of servers) if (inside === port) return server.port ?? null
    }
    return null
  }

  get frozen(): boolean {
    return this.#frozen !== null
  }

  freeze(): void {
    this.#frozen ??= Promise.withResolvers()
  }

  thaw(): void {
    this.#frozen?.resolve()
    this.#frozen = null
  }

  get running(): number {
    return [...this.#known.values()].filter(({ process }) => process.running).length
  }

  async endAll(error: PlatformError): Promise<void> {
    this.#failure = error
    this.thaw()
    const running = [...this.#known.values()].filter(({ process }) => process.running)
    for (const { abort } of running) abort.abort(new Ended(sigkill))
    await Promise.all(running.map(({ ended }) => ended.promise))
  }

  async #ready(): Promise<void> {
    await this.#frozen?.promise
    if (this.#failure) throw this.#failure
  }

  #get(id: number): FakeProcess {
    const fake = this.#known.get(id)
    if (!fake) throw new PlatformError('not_found', `process ${id} is not known in this sandbox`)
    return fake
  }

  async #run(fake: FakeProcess, program: FakeProgram): Promise<void> {
    const { abort, spec } = fake
    const { clock, files } = this.options
    const write = async (kind: 'stdout' | 'stderr', data: Uint8Array) => {
      await Promise.resolve()
      abort.signal.throwIfAborted()
      this.#append(fake, kind, data)
    }
    const encoder = new TextEncoder()
    let exitCode: number | null = null
    let signal: number | null = null
    try {
      exitCode = await program({
        argv: spec.argv,
        env: spec.env,
        workingDir: spec.workingDir,
        files,
        signal: abort.signal,
        stdout: (text) => write('stdout', typeof text === 'string' ? encoder.encode(text) : text),
        stderr: (text) => write('stderr', encoder.encode(text)),
        sleep: (ms) => clock.sleep(ms, abort.signal),
        stdin: () => readStdin(fake),
        serve: (port, handler) => {
          const server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: (request) => handler(request) })
          fake.servers.push({ port, server })
        },
      })
    } catch (error) {
      if (error instanceof Ended) signal = error.signal
      else {
        this.#append(fake, 'stderr', encoder.encode(`${String(error)}\n`))
        exitCode = 1
      }
    }
    for (const { server } of fake.servers.splice(0)) await server.stop(true)
    fake.process = { ...fake.process, running: false, endedAt: clock.now(), exitCode, signal }
    fake.stdin.open = false
    fake.ended.resolve(fake.process)
    this.#changed(fake)
    for (const listener of this.#listeners) listener(fake.process)
  }

  #append(fake: FakeProcess, kind: 'stdout' | 'stderr', data: Uint8Array) {
    if (data.length === 0) return
    fake.endOffset += recordHeaderBytes + data.length
    fake.records.push({ kind, at: this.options.clock.now(), endOffset: fake.endOffset, data: data.slice() })
    while (fake.endOffset - fake.startOffset > (fake.spec.outputBytesMax ?? outputBytesMaxDefault)) {
      const oldest = fake.records.shift()
      if (!oldest) break
      fake.startOffset = oldest.endOffset
    }
    this.#changed(fake)
  }

  #changed(fake: FakeProcess) {
    const changed = [...fake.changed]
    fake.changed.clear()
    for (const wake of changed) wake()
  }
}

async function* readStdin({ stdin, abort }: FakeProcess): AsyncGenerator<Uint8Array> {
  for (;;) {
    abort.signal.throwIfAborted()
    const chunk = stdin.chunks.shift()
    if (chunk) yield chunk
    else if (stdin.open) {
      stdin.changed = Promise.withResolvers()
      await stdin.changed.promise
    } else return
  }
}
