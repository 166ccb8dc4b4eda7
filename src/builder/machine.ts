/** Machines that things are built in: instances of the host image with layers on top, gone when the build is. */
import { PlatformError } from '../errors.ts'
import type { Instances } from '../instances/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { Pace } from '../lib/pace.ts'
import type { FileToWrite } from '../spec/guest.ts'
import type { Instance, RootFilesystem } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { LineReader, type LogStream } from './steps.ts'

/** Of whom instances of builds are. */
const buildOwnerKind = 'build'
const pidsMax = 4096
const restMsMax = 30_000
/** What is shown lies on the machine's disk until it was read. */
const outputBytesMax = 1024 * 1024
const hostname = 'build'
/** What a program of a build may say; one that says more waits. */
const bytesPerSecondMax = 2 * 1024 * 1024
const burstBytesMax = 4 * 1024 * 1024
/** However short the lines in it are, taking it holds nobody up. */
const pieceBytes = 1024

export interface MachineOptions {
  workspace: string
  /** For people: what is built. */
  name: string
  root: RootFilesystem
  memoryMb: number
  storageMb: number
  env: Record<string, string>
  workingDir: string
  /** As of an instance. */
  ownMounts?: string
}

export interface Command {
  argv: string[]
  /** Complete: nothing is added. */
  env: Record<string, string>
  workingDir: string
  onLine(line: string, stream: LogStream): void
}

export interface CommandExit {
  exitCode: number | null
  signal: number | null
}

export class BuildMachines {
  readonly #clock: Clock
  readonly #instances: Instances
  readonly #store: Store
  readonly #log: Logger

  constructor(options: { instances: Instances; store: Store; clock: Clock; log: Logger }) {
    this.#clock = options.clock
    this.#instances = options.instances
    this.#store = options.store
    this.#log = options.log
  }

  /** At start: those that a platform before this one left. */
  removeLeft(): void {
    for (const { id } of this.#instances.owned(buildOwnerKind)) void this.#remove(id)
  }

  /** @throws what making an instance throws, the signal's reason */
  async open(options: MachineOptions, signal: AbortSignal): Promise<BuildMachine> {
    signal.throwIfAborted()
    const { workspace, name, root, ...rest } = options
    const instance = await this.#instances.create(
      { kind: buildOwnerKind, workspace, name },
      { hostname, image: root, pidsMax, ...rest, ephemeral: true, withoutApi: true },
      (step) => this.#store.batch([step, inWorkspace(workspace)]),
    )
    // It must not fall asleep while a compiler thinks.
    let hold: Disposable = this.#instances.hold(instance.id)
    const machine = new BuildMachine(instance, this.#clock, {
      rest: () => hold[Symbol.dispose](),
      wake: async (stop) => {
        hold = await this.#instances.acquire(instance.id, stop)
      },
      end: async () => {
        hold[Symbol.dispose]()
        await this.#remove(instance.id)
      },
    })
    if (signal.aborted) {
      await machine[Symbol.asyncDispose]()
      throw signal.reason
    }
    return machine
  }

  async #remove(id: string): Promise<void> {
    try {
      const { gone } = await this.#instances.destroy(id, (step) => this.#store.batch([step]))
      await gone
    } catch (error) {
      // Its record says that it is to go: the next start goes on.
      if (!PlatformError.is(error) || error.code !== 'not_found')
        this.#log.warn('a machine of a build was not removed', { instance: id, error })
    }
  }
}

interface MachineUpkeep {
  rest(): void
  wake(signal: AbortSignal): Promise<void>
  end(): Promise<void>
}

/** One machine. Everything of it goes when it is disposed, programs that still run included. */
export class BuildMachine implements AsyncDisposable {
  readonly instance: Instance
  readonly #clock: Clock
  readonly #upkeep: MachineUpkeep
  #nextProcess = 1
  #ended: Promise<void> | null = null

  constructor(instance: Instance, clock: Clock, upkeep: MachineUpkeep) {
    this.instance = instance
    this.#clock = clock
    this.#upkeep = upkeep
  }

  /** Runs a program to its end. @throws the signal's reason: it is ended then, with everything it started */
  async run(command: Command, signal: AbortSignal): Promise<CommandExit> {
    signal.throwIfAborted()
    const { processes } = this.instance.guest
    const id = this.#nextProcess++
    const { argv, env, workingDir, onLine } = command
    await processes.spawn({ id, argv, env, workingDir, stdin: 'null', outputBytesMax })
    const lines = {
      stdout: new LineReader((line) => onLine(line, 'stdout')),
      stderr: new LineReader((line) => onLine(line, 'stderr')),
    }
    try {
      const pace = new Pace({ perSecond: bytesPerSecondMax, burst: burstBytesMax, clock: this.#clock })
      for await (const records of processes.output(id, { follow: true, signal })) {
        for (const { kind, data } of records) {
          for (let at = 0; kind !== 'truncated' && at < data.length; at += pieceBytes) {
            const piece = data.subarray(at, at + pieceBytes)
            const wait = pace.pass(piece.length, signal, lines[kind].add(piece))
            if (wait !== null) await wait
          }
        }
      }
      lines.stdout.end()
      lines.stderr.end()
      const { exitCode, signal: endedBy } = await processes.wait(id, signal)
      await processes.forget(id)
      return { exitCode, signal: endedBy }
    } catch (error) {
      if (signal.aborted) {
        await processes.signal(id, 9, 'tree').catch(() => {})
        throw signal.reason
      }
      throw error
    }
  }

  /** As `run`, for what is short and whose output is what is wanted. */
  async output(
    command: Omit<Command, 'onLine'>,
    signal: AbortSignal,
  ): Promise<CommandExit & { stdout: string }> {
    const lines: string[] = []
    let chars = 0
    const exit = await this.run(
      {
        ...command,
        onLine: (line, stream) => {
          if (stream !== 'stdout' || chars > outputBytesMax) return
          chars += line.length
          lines.push(line)
        },
      },
      signal,
    )
    return { ...exit, stdout: lines.join('\n') }
  }

  /** Ends what its programs left running, and lets it fall asleep, until `wake`. */
  async rest(): Promise<void> {
    const argv = ['/bin/sh', '-c', 'kill -9 -1']
    await this.output({ argv, env: {}, workingDir: '/' }, AbortSignal.timeout(restMsMax))
    this.#upkeep.rest()
  }

  /** @throws workload_not_found, workload_unavailable */
  async wake(signal: AbortSignal): Promise<void> {
    await this.#upkeep.wake(signal)
  }

  async write(files: readonly FileToWrite[]): Promise<void> {
    await this.instance.guest.files.writeAll(files)
  }

  /** A file's bytes as they are read from inside. */
  async *read(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const { body } = await this.instance.guest.files.read(path)
    const reader = body.getReader()
    try {
      for (;;) {
        signal.throwIfAborted()
        const { done, value } = await reader.read()
        if (done) return
        yield value
      }
    } finally {
      await reader.cancel().catch(() => {})
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended ??= this.#upkeep.end()
    await this.#ended
  }
}
