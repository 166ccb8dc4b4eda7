import { PlatformError } from '../../errors.ts'
import type { GuestProcesses } from '../../spec/guest.ts'
import {
  inlineOutputBytesMax,
  lateOutputBytesMax,
  type OutputChunk,
  type OutputSummary,
  OutputTail,
} from './output.ts'
import type { ProcessRecord } from './records.ts'
import { type Run, readRestartNote, until } from './run.ts'

/** What a process wrote and writes, over all of its runs that are kept: one text, with a note where it was restarted. */
export class ProcessOutput {
  private inlineState: { tail: OutputTail; runId: number; offset: number } | null = null
  private inlineReading: Promise<unknown> = Promise.resolve()

  /** `record` and `runs` are as they are at each moment. */
  constructor(
    private readonly processes: Pick<GuestProcesses, 'output'>,
    private readonly record: ProcessRecord,
    private readonly runs: readonly Run[],
  ) {}

  /** The last `bytesMax` bytes of each stream. */
  async last(bytesMax: number): Promise<OutputSummary> {
    const tail = new OutputTail(bytesMax)
    for (const { id } of [...this.record.runs]) {
      await this.read(tail, id, 0)
      this.readNote(tail, id)
    }
    if (this.complete) tail.end()
    return tail.summary()
  }

  /**
   * Everything that is kept of the output and, while the process runs, what it goes on to write, in batches. Ends with
   * it. A follower that is slow slows the process down; one that came late is told of what is gone, and has the last
   * `lateOutputBytesMax` of each run. What it was given is added to `tail`, which saves reading it again at the end. A batch holds no longer than until the next is asked for.
   */
  async *follow(signal: AbortSignal, tail?: OutputTail): AsyncIterable<OutputChunk[]> {
    let lastRunId = 0
    while (!signal.aborted) {
      const run = this.runs.find(({ id }) => id > lastRunId)
      if (!run) return
      lastRunId = run.id
      try {
        for await (const batch of this.processes.output(run.id, {
          follow: true,
          reuseMemory: true,
          lastBytes: lateOutputBytesMax,
          signal,
        })) {
          if (tail) for (const record of batch) tail.push(record)
          yield batch
        }
      } catch (error) {
        if (signal.aborted) return
        if (!(PlatformError.is(error) && error.code === 'not_found')) throw error
      }
      await until(run.settled, signal)
      const note = this.noteOf(run.id)
      if (note) {
        tail?.pushText('stdout', note)
        yield [{ kind: 'restart', note, ...readRestartNote(note) }]
      }
    }
  }

  /**
   * The last `inlineOutputBytesMax` bytes of each stream. Kept from one look to the next, so that polling a chatty
   * process does not read all of its output each time.
   */
  inline(): Promise<OutputSummary> {
    const reading = this.inlineReading.then(async () => {
      const state = this.inlineState ?? { tail: new OutputTail(inlineOutputBytesMax), runId: 0, offset: 0 }
      this.inlineState = state
      const { complete } = this
      for (const { id } of [...this.record.runs]) {
        if (id < state.runId) continue
        if (id > state.runId) {
          state.runId = id
          state.offset = 0
        }
        if (state.offset !== Number.POSITIVE_INFINITY)
          state.offset = await this.read(state.tail, id, state.offset)
        const isLast = id === this.runs.at(-1)?.id
        if ((!isLast || complete) && state.offset !== Number.POSITIVE_INFINITY) {
          state.offset = Number.POSITIVE_INFINITY
          this.readNote(state.tail, id)
          if (isLast) state.tail.end()
        }
      }
      return state.tail.summary()
    })
    this.inlineReading = reading.catch(() => this.release())
    return reading
  }

  /** Gives back what is kept between looks. */
  release(): void {
    this.inlineState = null
  }

  /** Nothing will be added to it. */
  private get complete(): boolean {
    return this.record.ended !== null
  }

  private async read(tail: OutputTail, runId: number, fromOffset: number): Promise<number> {
    let offset = fromOffset
    try {
      for await (const batch of this.processes.output(runId, { fromOffset, reuseMemory: true })) {
        for (const record of batch) {
          tail.push(record)
          offset = record.endOffset
        }
      }
    } catch (error) {
      // Output of a machine that was started again is gone; the record of the process stays.
      if (!(PlatformError.is(error) && error.code === 'not_found')) throw error
    }
    return offset
  }

  private readNote(tail: OutputTail, runId: number): void {
    const note = this.noteOf(runId)
    if (note) tail.pushText('stdout', note)
  }

  private noteOf(runId: number): string | null {
    return this.record.runs.find(({ id }) => id === runId)?.note ?? null
  }
}
