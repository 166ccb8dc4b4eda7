import { PlatformError } from '../errors.ts'
import type { GuestProcess } from '../spec/guest.ts'
import { readError } from './codec.ts'
import { errnoName } from './errno.ts'
import { type Frame, FrameType, FrameWriter } from './frame.ts'
import { PayloadReader } from './payload.ts'
import type { Requests } from './requests.ts'

/** What process 1 holds of a program's standard streams, by numbers of its own descriptors; null: not open. */
export interface ProcessDescriptors {
  pty: boolean
  /** What this process 1 marks programs with, whoever they descend from. */
  mark: number
  stdin: number | null
  stdout: number | null
  stderr: number | null
}

/** A program that comes from another machine, with those of its streams that were open there. */
export interface Adoption {
  process: GuestProcess
  streams: { stdin: boolean; stdout: boolean; stderr: boolean }
  /** Of the process 1 that it was with. */
  mark: number
  outputBytesMax: number
}

const nothing = 0xffff_ffff

/** Programs that process 1 did not start itself, but is to know as if it had. */
export class Adoptions {
  readonly #requests: Pick<Requests, 'request'>

  constructor(requests: Pick<Requests, 'request'>) {
    this.#requests = requests
  }

  /** @throws not_found */
  async descriptors(id: number): Promise<ProcessDescriptors> {
    const frame = new FrameWriter(FrameType.descriptors, id).finish()
    const answer = await this.#requests.request(id, frame, FrameType.descriptorsOk)
    if (answer.type === FrameType.error) throw refused(id, answer)
    const reader = new PayloadReader(answer.payload)
    const pty = reader.u8() === 1
    const mark = reader.u32()
    const [stdin, stdout, stderr] = [reader.u32(), reader.u32(), reader.u32()].map((fd) =>
      fd === nothing ? null : fd,
    )
    reader.end()
    return { pty, mark, stdin: stdin ?? null, stdout: stdout ?? null, stderr: stderr ?? null }
  }

  /** Makes its streams and goes on with its log; the program is put there before `adopted`. @throws conflict */
  async adopt({ process, streams, mark, outputBytesMax }: Adoption): Promise<void> {
    const { id, pid, running, exitCode, signal, startedAt, endedAt } = process
    const frame = new FrameWriter(FrameType.adopt, id)
      .u32((streams.stdin ? 1 : 0) | (streams.stdout ? 2 : 0) | (streams.stderr ? 4 : 0))
      .u32(mark)
      .u32(pid)
      .u8(running ? 1 : signal === null ? 2 : 3)
      .u32(signal ?? exitCode ?? 0)
      .u64(startedAt)
      .u64(endedAt ?? 0)
      .u64(outputBytesMax)
      .finish()
    const answer = await this.#requests.request(id, frame, FrameType.ok)
    if (answer.type === FrameType.error) throw refused(id, answer)
  }

  /** It has its ends of the streams. */
  async adopted(id: number): Promise<void> {
    const frame = new FrameWriter(FrameType.adopted, id).u8(1).finish()
    const answer = await this.#requests.request(id, frame, FrameType.ok)
    if (answer.type === FrameType.error) throw refused(id, answer)
  }
}

function refused(id: number, answer: Frame): PlatformError {
  const name = errnoName(readError(answer.payload).errno)
  return new PlatformError(
    name === 'ESRCH' ? 'not_found' : 'conflict',
    `process ${id} cannot be taken over: ${name}`,
  )
}
