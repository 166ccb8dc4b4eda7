import { existsSync, statfsSync } from 'node:fs'
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises'
import { z } from 'zod'
import type { ProcessIdentity } from '../../../guest/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Logger } from '../../../lib/log.ts'
import type { MemoryKept } from '../../../spec/runtime.ts'
import { bootId } from '../../helper-process.ts'
import type { InstanceCgroup } from '../cgroups.ts'
import { type Bounds, withinBounds } from './bounds.ts'
import { dumpTree, reasonOf, restoreTree, type Stream } from './criu.ts'
import { bindSockets, prepareImages } from './images.ts'
import {
  allStopped,
  highestPid,
  letGoOn,
  obstacleOf,
  type Program,
  programsOf,
  signalAll,
  statusOf,
  unfitnessOf,
  watchedDirs,
} from './programs.ts'
import { isText, type Known, type MemoryInstance, settle, soon, streamNames } from './settling.ts'
import { forgetStopped, writeStopped } from './stopped.ts'
import { distrustOf } from './trust.ts'

export { criuPathDefault, findCriu } from './criu.ts'
export type { MemoryInstance } from './settling.ts'
export { releaseStopped } from './stopped.ts'

const recordName = 'memory.json'
const treesMax = 256
/** What keeping and putting back the memory of one instance may take. */
export interface MemoryLimits {
  /** Until all programs stand still, and process 1 has passed on what they said. */
  settleMsMax: number
  /** Of all trees together; the sandbox does nothing else meanwhile. */
  dumpMsMax: number
  restoreMsMax: number
  /** For CRIU to leave programs as they were, once it is called off; then it is killed. */
  callOffMsMax: number
  /** On top of what programs have in memory: what is told of them, and files of theirs without a name. */
  imagesMbSpare: number
  /** Files. */
  imagesMax: number
}
const memoryLimits: MemoryLimits = {
  settleMsMax: 5_000,
  dumpMsMax: 30_000,
  restoreMsMax: 60_000,
  callOffMsMax: 5_000,
  imagesMbSpare: 256,
  imagesMax: 65_536,
}
/** CRIU shares a list of its pages with a program, 16 bytes for one of 4096 that it may have; and more for what it has open. */
const addressBytesPerSharedByte = 256
const sharedBytesMin = 16 * 1024 * 1024
/** Of one program's output, in the log that goes on. */
const outputBytesMax = 40 * 1024 * 1024
/** Pids that process 1 leaves free behind those that programs had, for what is put back. */
const pidsSpare = 16
const pidMax = 4_000_000

const pipe = z.string().regex(/^pipe:\[\d+\]$/)

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
  readonly #limits: MemoryLimits

  constructor(options: {
    helperPath: string
    criuPath: string
    clock: Clock
    log: Logger
    /** What images leave free on the host. */
    freeBytesMin: number
    limits?: MemoryLimits
  }) {
    this.#helperPath = options.helperPath
    this.#criuPath = options.criuPath
    this.#clock = options.clock
    this.#log = options.log
    this.#freeBytesMin = options.freeBytesMin
    this.#limits = options.limits ?? memoryLimits
  }

  /**
   * For an instance that is frozen, and is so again afterwards. Lets its programs come to where they can be kept, freezes
   * them, lets `copyFiles` copy its disk, and writes their memory into `dir`: all is of that one moment. Answers null where
   * nothing runs. @throws what `copyFiles` does, the reason of `signal`
   */
  async capture(
    instance: MemoryInstance,
    dir: string,
    copyFiles: () => Promise<void>,
    signal?: AbortSignal,
  ): Promise<MemoryKept | null> {
    const first = programsOf(instance.process1)
    if (first.length === 0) {
      await copyFiles()
      return null
    }
    // Before anything is done to them.
    const unfit = unfitnessOf(first)
    if (unfit !== null) {
      await copyFiles()
      return { kept: false, reason: unfit }
    }
    const before = (await seenStopped(instance, first)).filter(({ stopped }) => stopped)
    const had = new Set(before.map(({ pid }) => pid))
    let running: Program[] = []
    const note = (helper: ProcessIdentity | null) =>
      writeStopped(instance.dir, { programs: running, before, helper })
    try {
      const settled = await settle(
        instance,
        (found) => {
          running = found.filter(({ pid }) => !had.has(pid))
          // Before the first is stopped: whoever takes the instance up after our end lets them go on.
          note(null)
          return running
        },
        { clock: this.#clock, msMax: this.#limits.settleMsMax, signal },
      ).catch((error) => ({ reason: reasonOf(error) }))
      signal?.throwIfAborted()
      await copyFiles()
      if ('reason' in settled) return { kept: false, ...settled }
      const reason = await this.#dump(instance, settled, had, dir, note, signal).catch(reasonOf)
      signalAll(before, 'SIGSTOP')
      signal?.throwIfAborted()
      return reason === null ? { kept: true } : { kept: false, reason }
    } finally {
      letGoOn(running)
      forgetStopped(instance.dir)
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
  async restore(
    instance: MemoryInstance,
    dir: string,
    record: MemoryRecord,
    signal?: AbortSignal,
  ): Promise<void> {
    const { guest } = instance
    const streams: Stream[] = []
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
    const deadline = this.#clock.monotonic() + this.#limits.restoreMsMax
    const late = `its programs were not put back within ${this.#limits.restoreMsMax / 1000} s`
    // One that lets itself go on could hold up what puts back the others: that is of the sandbox, too.
    const trouble = () =>
      allStopped(programsOf(instance.process1)) ? null : 'its programs do not stand still'
    await instance.group.withSpare(instance.memoryMb, () =>
      withinBounds({ clock: this.#clock, deadline, late, signal, trouble }, async (stop) => {
        for (const root of record.trees) {
          await this.#told(
            restoreTree({
              ...this.#tools(instance),
              imagesDir: `${dir}/${root}`,
              groups: groupFiles(instance.group),
              lastPid: record.lastPid,
              streams,
              stop,
            }),
          )
        }
      }),
    )
    for (const { process } of record.processes) await guest.processes.adoptions.adopted(process.id)
    const programs = programsOf(instance.process1)
    const here = new Set(programs.map(({ pidInside }) => pidInside))
    const missing = record.trees.find((root) => !here.has(root))
    if (missing !== undefined) throw new Error(`process ${missing} ended at once`)
    const distrust = distrustOf(instance, programs)
    if (distrust !== null) throw new Error(distrust)
    await guest.processes.list()
    const wereStopped = new Set(record.stopped)
    letGoOn(programs.filter(({ pidInside }) => !wereStopped.has(pidInside)))
  }

  /** Answers why they cannot be kept; null: they are. */
  async #dump(
    instance: MemoryInstance,
    known: Known,
    had: ReadonlySet<number>,
    dir: string,
    begun: (helper: ProcessIdentity) => void,
    signal?: AbortSignal,
  ): Promise<string | null> {
    const { process1, group, guest } = instance
    const { freezerDir } = group
    const programs = programsOf(process1)
    for (const program of programs) program.stopped = had.has(program.pid)
    const trees = treesOf(process1, programs)
    if (freezerDir === null || trees.length > treesMax)
      return `more than ${treesMax} programs were started apart`
    const { processes, terminals, streams, mark } = known
    const kept = trees.filter(([root]) => root !== undefined && !terminals.has(root.pidInside))
    const pipes = new Set(processes.flatMap((process) => Object.values(process.streams).filter(isText)))
    const obstacle = unfitnessOf(programs) ?? (await obstacleOf(process1, kept, pipes))
    if (obstacle !== null) return obstacle
    const roots = new Set(kept.flatMap(([root]) => (root === undefined ? [] : [root.pidInside])))
    const ended = processes.find(({ process }) => process.running && !roots.has(process.pid))
    if (ended !== undefined) return `process ${ended.process.pid} ended meanwhile`
    const record: MemoryRecord = {
      version: 1,
      bootId: bootId(),
      mark,
      lastPid: highestPid(kept.flat()) + pidsSpare,
      trees: [...roots],
      stopped: kept
        .flat()
        .filter(({ stopped }) => stopped)
        .map(({ pidInside }) => pidInside),
      processes,
    }
    if (record.lastPid > pidMax) return 'its pids are used up'
    const bytesMax = memoryBytesOf(programs) + this.#limits.imagesMbSpare * 1024 * 1024
    const { bavail, bsize } = statfsSync(dir)
    if (bavail * bsize - memoryBytesOf(programs) < this.#freeBytesMin)
      return 'the host has too little disk left for the memory'
    const watched = watchedDirs(kept)
    const sharedBytesMax = sharedBytesMin + addressBytesMax(programs) / addressBytesPerSharedByte
    const bounds: Bounds = {
      clock: this.#clock,
      deadline: this.#clock.monotonic() + this.#limits.dumpMsMax,
      late: `its memory was not kept within ${this.#limits.dumpMsMax / 1000} s`,
      signal,
      written: { dir, bytesMax, filesMax: this.#limits.imagesMax, freeBytesMin: this.#freeBytesMin },
    }
    await group.withSpare(instance.memoryMb, () =>
      withinBounds(bounds, async (stop) => {
        try {
          // None of them runs for it; and what a control group of version 1 froze cannot be taken hold of when it is stopped.
          letGoOn(programs)
          await group.freeze()
          for (const [index, root] of record.trees.entries()) {
            const imagesDir = `${dir}/${root}`
            await mkdir(imagesDir, { mode: 0o700 })
            await this.#told(
              dumpTree({
                ...{ ...this.#tools(instance), imagesDir, root, pipes: [...pipes] },
                ...{ watched, freezerDir, stop, begun },
                // All trees stand still: what is on its way is kept once.
                streams: index === 0 ? streams : [],
                fileBytesMax: bytesMax,
                sharedBytesMax,
              }),
            )
            await prepareImages(imagesDir)
          }
        } finally {
          // Also where CRIU was killed.
          await group.freeze()
        }
      }),
    )
    let thawed = false
    const bound = new Set<string>()
    const isSocket = async (path: string) => {
      // Only process 1 has something to do then.
      if (!thawed) {
        signalAll(programs, 'SIGSTOP')
        await group.thaw()
      }
      thawed = true
      return (await guest.files.stat(path).catch(() => null))?.type === 'socket'
    }
    try {
      const binding = async () => {
        for (const root of record.trees) await bindSockets(`${dir}/${root}`, isSocket, bound)
        return true
      }
      const deadline = this.#clock.monotonic() + this.#limits.settleMsMax
      if ((await soon(this.#clock, deadline, binding())) === null) return 'it did not answer in time'
    } finally {
      if (thawed) await group.freeze()
    }
    for (const { process } of processes) {
      const log = `${instance.dir}/log/${process.id}`
      if (existsSync(log)) await cp(log, `${dir}/log/${process.id}`, { recursive: true })
    }
    await writeFile(`${dir}/${recordName}`, JSON.stringify(memoryRecord.parse(record)), { mode: 0o600 })
    return null
  }

  /** The log has what CRIU says, for who looks at why it could not. */
  async #told(work: Promise<void>): Promise<void> {
    await work.catch((error) => {
      this.#log.info('CRIU could not', { error: String(error) })
      throw error
    })
  }

  #tools({ process1, uidBase }: MemoryInstance) {
    const { callOffMsMax } = this.#limits
    return { helperPath: this.#helperPath, criuPath: this.#criuPath, process1, uidBase, callOffMsMax }
  }
}

/** Frozen before and after. */
async function seenStopped({ process1, group }: MemoryInstance, seen: Program[]): Promise<Program[]> {
  if (!group.hidesStops) return seen
  await group.thaw()
  try {
    return programsOf(process1)
  } finally {
    await group.freeze()
  }
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

/** Of the one that has most, used or not. */
function addressBytesMax(programs: readonly Program[]): number {
  const kilobytes = programs.map(({ pid }) => Number.parseInt(statusOf(pid).get('VmSize') ?? '0', 10))
  return Math.max(0, ...kilobytes) * 1024
}

/** What a thread writes 0 to, to belong to the same groups as programs do. */
function groupFiles(group: InstanceCgroup): string[] {
  const files = group.v1Dirs.map((dir) => `${dir}/tasks`)
  if (group.v2Dir !== null) files.push(`${group.v2Dir}/cgroup.procs`)
  for (const file of [group.programsFile, group.programsMemoryFile]) if (file !== null) files.push(file)
  return files
}
