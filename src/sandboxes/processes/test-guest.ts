import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Guest, GuestProcess, GuestProcesses, OutputRecord, SpawnSpec } from '../../spec/guest.ts'

/** For tests of the process policy: a guest whose processes do what the test says. */
export class ScriptedGuest implements Guest {
  readonly spawned: SpawnSpec[] = []
  readonly signals: { id: number; signal: number; scope: string }[] = []
  readonly forgotten: number[] = []
  readonly stdin = new Map<number, string>()
  /** What the process of this id, and what it started, listens on; and whether any of that lives. */
  readonly listeners = new Map<number, number[]>()
  failSpawn: Error | null = null
  /** A start waits for it. */
  spawnGate: Promise<unknown> | null = null
  /** Called with each signal: what the program does about it. */
  onSignal: (id: number, signal: number) => void = (id, signal) => this.end(id, { signal })
  onSpawn: (spec: SpawnSpec) => void = () => {}
  private readonly known = new Map<
    number,
    { process: GuestProcess; output: OutputRecord[]; offset: number }
  >()
  private readonly exitListeners = new Set<(process: GuestProcess) => void>()
  private waiters: (() => void)[] = []

  constructor(private readonly clock: Clock) {}

  write(id: number, kind: 'stdout' | 'stderr', text: string | Uint8Array): void {
    const entry = this.entry(id)
    const data = typeof text === 'string' ? new TextEncoder().encode(text) : text
    entry.offset += 16 + data.length
    entry.output.push({ kind, at: this.clock.now(), endOffset: entry.offset, data })
    this.wake()
  }

  end(id: number, how: { exitCode?: number; signal?: number }): void {
    const { process } = this.entry(id)
    if (!process.running) return
    process.running = false
    process.endedAt = this.clock.now()
    process.exitCode = how.signal === undefined ? (how.exitCode ?? 0) : null
    process.signal = how.signal ?? null
    for (const listener of this.exitListeners) listener({ ...process })
    this.wake()
  }

  readonly processes: GuestProcesses = {
    spawn: async (spec) => {
      if (this.spawnGate) await this.spawnGate
      if (this.failSpawn) throw this.failSpawn
      this.spawned.push(spec)
      const process: GuestProcess = {
        id: spec.id,
        pid: 1000 + spec.id,
        running: true,
        startedAt: this.clock.now(),
        endedAt: null,
        exitCode: null,
        signal: null,
      }
      this.known.set(spec.id, { process, output: [], offset: 0 })
      this.onSpawn(spec)
      return { pid: process.pid, startedAt: process.startedAt }
    },
    signal: async (id, signal, scope) => {
      if (!this.entry(id).process.running) throw new PlatformError('not_found', 'it does not run')
      this.signals.push({ id, signal, scope })
      this.onSignal(id, signal)
    },
    list: async () => [...this.known.values()].map(({ process }) => ({ ...process })),
    forget: async (id) => {
      this.forgotten.push(id)
      this.known.delete(id)
    },
    wait: async () => {
      throw new Error('not scripted')
    },
    onExit: (listener) => {
      this.exitListeners.add(listener)
      return () => this.exitListeners.delete(listener)
    },
    writeStdin: async (id, data) => {
      this.stdin.set(id, (this.stdin.get(id) ?? '') + Buffer.from(data).toString())
    },
    closeStdin: async (id) => {
      this.stdin.set(id, `${this.stdin.get(id) ?? ''}<end>`)
    },
    resize: async () => {},
    descent: async (id) => {
      const ports = this.listeners.get(id) ?? []
      const running = this.known.get(id)?.process.running === true
      const sockets = ports.map((localPort) => ({
        pid: 1000 + id,
        processName: 'server',
        protocol: 'tcp' as const,
        state: 'LISTEN',
        localAddress: '0.0.0.0',
        localPort,
        remoteAddress: '0.0.0.0',
        remotePort: 0,
      }))
      return { living: running || ports.length > 0 ? 1 : 0, sockets }
    },
    output: (id, options = {}) => this.outputOf(id, options),
  }

  readonly files = {
    stat: async (path: string) => {
      if (path.includes('missing'))
        throw new PlatformError('not_found', 'no such file', { details: { errno: 'ENOENT' } })
      return { name: path, type: 'directory', mode: 0o755, uid: 0, gid: 0, size: 0, modifiedMs: 0, links: 1 }
    },
  } as unknown as Guest['files']

  private async *outputOf(
    id: number,
    {
      fromOffset = 0,
      follow = false,
      signal,
    }: { fromOffset?: number; follow?: boolean; signal?: AbortSignal },
  ): AsyncGenerator<OutputRecord[]> {
    const entry = this.entry(id)
    let offset = fromOffset
    for (;;) {
      const fresh = entry.output.filter((record) => record.endOffset > offset)
      const ended = !entry.process.running
      if (fresh.length > 0) {
        offset = fresh[fresh.length - 1]!.endOffset
        yield fresh
        continue
      }
      if (!follow || ended || signal?.aborted) return
      await new Promise<void>((resolve) => {
        this.waiters.push(resolve)
        signal?.addEventListener('abort', () => resolve(), { once: true })
      })
    }
  }

  private entry(id: number) {
    const entry = this.known.get(id)
    if (!entry) throw new PlatformError('not_found', `no process ${id}`)
    return entry
  }

  private wake(): void {
    const waiters = this.waiters
    this.waiters = []
    for (const resolve of waiters) resolve()
  }
}
