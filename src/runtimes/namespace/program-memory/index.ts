import { existsSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { z } from 'zod'
import type { GuestClient, ProcessIdentity } from '../../../guest/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Logger } from '../../../lib/log.ts'
import type { MemoryKept } from '../../../spec/runtime.ts'
import { bootId } from '../../helper-process.ts'
import type { InstanceCgroup } from '../cgroups.ts'
import { dumpTree, restoreTree } from './criu.ts'
import { bindSockets, prepareImages } from './images.ts'
import {
  allStopped,
  highestPid,
  isWaiting,
  letGoOn,
  link,
  obstacleOf,
  type Program,
  programsOf,
  signalAll,
  statusOf,
  watchedDirs,
} from './programs.ts'

export { criuPathDefault, findCriu } from './criu.ts'

const recordName = 'memory.json'
/** In the directory of an instance whose programs are stopped: who they are. */
const stoppedName = 'stopped.json'
const treesMax = 256
const stopMsMax = 20_000
const stopStepMs = 1
/** On top of what programs have in memory, for what is told of them. */
const imagesMbSpare = 16
/** Of one program's output, in the log that goes on. */
const outputBytesMax = 40 * 1024 * 1024
/** Pids that process 1 leaves free behind those that programs had, for what is put back. */
const pidsSpare = 16
const pidMax = 4_000_000

const pipe = z.string().regex(/^pipe:\[\d+\]$/)
const streamNames = ['stdin', 'stdout', 'stderr'] as const

const memoryRecord = z.strictObject({
  version: z.literal(1),
  /** Clocks and processors are those of one boot. */
  bootId: z.string(),
  lastPid: z.number().int().positive(),
  /** What process 1 marks programs with. */
  mark: z.number().int().nonnegative(),
  /** Roots of trees, by their pids inside; images of each are in a directory of that name. */
  trees: z.array(z.number().int().positive()).max(treesMax),
  /** Pids inside of those that had been stopped. */
  stopped: z.array(z.number().int().positive()),
  processes: z.array(
    z.strictObject({
      process: z.strictObject({
        id: z.number().int().positive(),
        pid: z.number().int().positive(),
        running: z.boolean(),
        startedAt: z.number(),
        endedAt: z.number().nullable(),
        exitCode: z.number().nullable(),
        signal: z.number().nullable(),
      }),
      streams: z.strictObject({ stdin: pipe.nullable(), stdout: pipe.nullable(), stderr: pipe.nullable() }),
    }),
  ),
})
export type MemoryRecord = z.infer<typeof memoryRecord>

const stoppedRecord = z.array(z.object({ pid: z.number().int(), startTime: z.number() }))

/** An instance, as far as its memory is concerned. */
export interface MemoryInstance {
  /** Its directory. */
  dir: string
  process1: ProcessIdentity
  guest: GuestClient
  group: InstanceCgroup
  uidBase: number
}

/**
 * Memory of programs, kept by CRIU in the files of a snapshot, and programs that go on from there in another instance, with
 * the pids that they had. Kept is all that programs of an instance are, or nothing: then it is said why.
 */
export class ProgramMemory {
  readonly #helperPath: string
  readonly #criuPath: string
  readonly #clock: Clock
  readonly #log: Logger
  readonly #freeBytesMin: number

  constructor(options: {
    helperPath: string
    criuPath: string
    clock: Clock
    log: Logger
    /** What images leave free on the host. */
    freeBytesMin: number
  }) {
    this.#helperPath = options.helperPath
    this.#criuPath = options.criuPath
    this.#clock = options.clock
    this.#log = options.log
    this.#freeBytesMin = options.freeBytesMin
  }

  /**
   * For an instance that is frozen, and is so again afterwards. Stops its programs, lets `copyFiles` copy its disk, and writes
   * their memory into `dir`, so that all is of the moment in which it was frozen. Answers null where nothing
   * runs.
   */
  async capture(
    instance: MemoryInstance,
    dir: string,
    copyFiles: () => Promise<void>,
  ): Promise<MemoryKept | null> {
    const first = programsOf(instance.process1)
    if (first.length === 0) {
      await copyFiles()
      return null
    }
    const had = new Set(first.filter(({ stopped }) => stopped).map(({ pid }) => pid))
    let running: Program[] = []
    try {
      const programs = await this.#standStill(instance, (found) => {
        running = found.filter(({ pid }) => !had.has(pid))
        // Before the first is stopped: whoever takes the instance up after our end lets them go on.
        writeFileSync(`${instance.dir}/${stoppedName}`, JSON.stringify(running), { mode: 0o600 })
        return running
      })
      await copyFiles()
      if (programs === null) return { kept: false, reason: 'its programs did not stop' }
      for (const program of programs) program.stopped = had.has(program.pid)
      const reason = await this.#dump(instance, programs, dir).catch((error) => reasonOf(error))
      return reason === null ? { kept: true } : { kept: false, reason }
    } finally {
      letGoOn(running)
      rmSync(`${instance.dir}/${stoppedName}`, { force: true })
    }
  }

  /** What was kept with a snapshot; null: no memory, or none that can be used any more. */
  async recordOf(dir: string): Promise<MemoryRecord | null> {
    const text = await readFile(`${dir}/${recordName}`, 'utf8').catch(() => null)
    return text === null ? null : memoryRecord.parse(JSON.parse(text))
  }

  /** Why what was kept is of no use any more; null: it is. */
  staleness(record: MemoryRecord): string | null {
    return record.bootId === bootId() ? null : 'the host was started again since'
  }

  /** Before its process 1 is started: what the programs had written. */
  async placeLogs(dir: string, instanceDir: string): Promise<void> {
    if (existsSync(`${dir}/log`)) await cp(`${dir}/log`, `${instanceDir}/log`, { recursive: true })
  }

  /** Into a new instance, in which nothing runs yet. When it rejects, the instance is of no use. */
  async restore(instance: MemoryInstance, dir: string, record: MemoryRecord): Promise<void> {
    const { guest } = instance
    const streams: { key: string; descriptor: number }[] = []
    for (const { process, streams: had } of record.processes) {
      const open = { stdin: had.stdin !== null, stdout: had.stdout !== null, stderr: had.stderr !== null }
      await guest.processes.adoptions.adopt({
        process,
        streams: open,
        ...{ mark: record.mark, outputBytesMax },
      })
      const descriptors = await guest.processes.adoptions.descriptors(process.id)
      for (const name of streamNames) {
        const key = had[name]
        const descriptor = descriptors[name]
        if (key !== null && descriptor !== null) streams.push({ key, descriptor })
      }
    }
    const workDir = `${instance.dir}/criu`
    try {
      for (const root of record.trees) {
        await this.#inWork(workDir, () =>
          restoreTree({
            ...this.#tools(instance, workDir),
            imagesDir: `${dir}/${root}`,
            groups: groupFiles(instance.group),
            lastPid: record.lastPid,
            streams,
          }),
        )
      }
      for (const { process } of record.processes) await guest.processes.adoptions.adopted(process.id)
      const programs = programsOf(instance.process1)
      const here = new Set(programs.map(({ pidInside }) => pidInside))
      const missing = record.trees.find((root) => !here.has(root))
      if (missing !== undefined) throw new Error(`process ${missing} ended at once`)
      await guest.processes.list()
      const wereStopped = new Set(record.stopped)
      letGoOn(programs.filter(({ pidInside }) => !wereStopped.has(pidInside)))
    } finally {
      await rm(workDir, { recursive: true, force: true })
    }
  }

  async #dump(instance: MemoryInstance, programs: Program[], dir: string): Promise<string | null> {
    const { process1, group, guest } = instance
    const trees = treesOf(process1, programs)
    if (trees.length > treesMax) return `more than ${treesMax} programs were started apart`
    const { bavail, bsize } = statfsSync(dir)
    if (bavail * bsize - memoryBytesOf(programs) - imagesMbSpare * 1024 * 1024 < this.#freeBytesMin)
      return 'the host has too little disk left for the memory'
    const workDir = `${dir}/criu`
    await group.thaw()
    try {
      const { processes, terminals, descriptors, mark } = await knownOf(guest, process1)
      const kept = trees.filter(([root]) => root !== undefined && !terminals.has(root.pidInside))
      const pipes = new Set(processes.flatMap(({ streams }) => Object.values(streams).filter(isText)))
      const obstacle = obstacleOf(process1, kept, pipes) ?? (await keptElsewhere(guest))
      if (obstacle !== null) return obstacle
      const record: MemoryRecord = {
        version: 1,
        bootId: bootId(),
        mark,
        lastPid: highestPid(kept.flat()) + pidsSpare,
        trees: kept.flatMap(([root]) => (root === undefined ? [] : [root.pidInside])),
        stopped: kept
          .flat()
          .filter(({ stopped }) => stopped)
          .map(({ pidInside }) => pidInside),
        processes,
      }
      if (record.lastPid > pidMax) return 'its pids are used up'
      const bound = new Set<string>()
      const isSocket = async (path: string) =>
        (await guest.files.stat(path).catch(() => null))?.type === 'socket'
      for (const root of record.trees) {
        const imagesDir = `${dir}/${root}`
        await mkdir(imagesDir, { mode: 0o700 })
        await this.#inWork(workDir, () =>
          dumpTree({
            ...{ ...this.#tools(instance, workDir), imagesDir, root },
            ...{ pipes: [...pipes], descriptors, watched: watchedDirs(kept) },
          }),
        )
        await prepareImages(imagesDir)
        await bindSockets(imagesDir, isSocket, bound)
      }
      for (const { process } of processes) {
        const log = `${instance.dir}/log/${process.id}`
        if (existsSync(log)) await cp(log, `${dir}/log/${process.id}`, { recursive: true })
      }
      await writeFile(`${dir}/${recordName}`, JSON.stringify(memoryRecord.parse(record)), { mode: 0o600 })
      return null
    } finally {
      await group.freeze()
    }
  }

  /** The log of what CRIU does is there for who looks at why it could not. */
  async #inWork(workDir: string, work: () => Promise<void>): Promise<void> {
    await rm(workDir, { recursive: true, force: true })
    await mkdir(`${workDir}/plugins`, { recursive: true, mode: 0o700 })
    try {
      await work()
    } catch (error) {
      this.#log.info('CRIU could not', { error: String(error) })
      throw error
    } finally {
      await rm(workDir, { recursive: true, force: true })
    }
  }

  /**
   * Frozen before and after. Who began a program and waits for that to be executed does not stop before; that one is let go
   * on until it is. Answers all programs once they are stopped; null: they are not in time.
   */
  async #standStill(
    { process1, group }: MemoryInstance,
    toStop: (found: Program[]) => Program[],
  ): Promise<Program[] | null> {
    const deadline = this.#clock.monotonic() + stopMsMax
    /** Once each: a second one would wait, and be heard in the middle of what CRIU has it do. */
    const told = new Set<number>()
    const stop = (programs: Program[]) => {
      signalAll(
        programs.filter(({ pid }) => !told.has(pid)),
        'SIGSTOP',
      )
      for (const { pid } of programs) told.add(pid)
    }
    stop(toStop(programsOf(process1)))
    await group.thaw()
    try {
      for (;;) {
        await this.#clock.sleep(stopStepMs)
        const programs = programsOf(process1)
        if (allStopped(programs)) return programs
        if (this.#clock.monotonic() > deadline) return null
        const waiting = new Set(programs.filter(({ pid }) => isWaiting(pid)).map(({ pid }) => pid))
        const stopping = toStop(programs)
        stop(stopping.filter(({ parent }) => !waiting.has(parent)))
        const begun = stopping.filter(({ pid, parent }) => waiting.has(parent) && told.has(pid))
        signalAll(begun, 'SIGCONT')
        for (const { pid } of begun) told.delete(pid)
      }
    } finally {
      await group.freeze()
    }
  }

  #tools(instance: MemoryInstance, workDir: string) {
    const { process1, uidBase } = instance
    return { helperPath: this.#helperPath, criuPath: this.#criuPath, process1, uidBase, workDir }
  }
}

/** Of an instance that this process did not stop itself: its programs go on. */
export function releaseStopped(instanceDir: string): void {
  const path = `${instanceDir}/${stoppedName}`
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch {
    return
  }
  const found = stoppedRecord.safeParse(JSON.parse(text))
  if (found.success) letGoOn(found.data)
  rmSync(path, { force: true })
}

/** What process 1 knows of, but for what is on a terminal: who sat at that does not sit at that of a copy. */
async function knownOf(guest: GuestClient, process1: ProcessIdentity) {
  const processes: MemoryRecord['processes'] = []
  const terminals = new Set<number>()
  const descriptors: { input: boolean; descriptor: number }[] = []
  let mark = 0
  for (const process of await guest.processes.list()) {
    const has = await guest.processes.adoptions.descriptors(process.id)
    mark = has.mark
    if (has.pty) {
      if (process.running) terminals.add(process.pid)
      continue
    }
    const [stdin = null, stdout = null, stderr = null] = streamNames.map((name) => {
      const descriptor = has[name]
      if (descriptor === null) return null
      descriptors.push({ input: name === 'stdin', descriptor })
      return link(`${process1.pid}/fd/${descriptor}`)
    })
    processes.push({ process, streams: { stdin, stdout, stderr } })
  }
  return { processes, terminals, descriptors, mark }
}

/** What programs may have left in memory that is no program's; null: nothing. */
async function keptElsewhere({ files }: GuestClient): Promise<string | null> {
  for await (const entries of files.list('/dev/shm')) {
    if (entries.length > 0) return 'there are files in /dev/shm'
  }
  for (const kind of ['shm', 'sem', 'msg']) {
    const { body } = await files.read(`/proc/sysvipc/${kind}`)
    // The first line says what those behind it are.
    if ((await new Response(body).text()).trim().includes('\n')) return `there is System V ipc (${kind})`
  }
  return null
}

/** What was started by process 1, or fell to it, each with all below it; the root of each comes first. */
function treesOf(guest: ProcessIdentity, programs: readonly Program[]): Program[][] {
  const children = Map.groupBy(programs, ({ parent }) => parent)
  return (children.get(guest.pid) ?? []).map((root) => {
    const tree = [root]
    for (const program of tree) tree.push(...(children.get(program.pid) ?? []))
    return tree
  })
}

function memoryBytesOf(programs: readonly Program[]): number {
  let kilobytes = 0
  for (const { pid } of programs) {
    const status = statusOf(pid)
    for (const name of ['RssAnon', 'RssShmem', 'VmSwap'])
      kilobytes += Number.parseInt(status.get(name) ?? '0', 10)
  }
  return kilobytes * 1024
}

/** What a thread writes 0 to, to belong to the same groups as programs do. */
function groupFiles(group: InstanceCgroup): string[] {
  const files = group.v1Dirs.map((dir) => `${dir}/tasks`)
  if (group.v2Dir !== null) files.push(`${group.v2Dir}/cgroup.procs`)
  for (const file of [group.programsFile, group.programsMemoryFile]) if (file !== null) files.push(file)
  return files
}

function isText(value: string | null): value is string {
  return value !== null
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message.slice(0, 300) : String(error)
}
