import { PlatformError } from '../errors.ts'
import type { GuestProcess } from '../spec/guest.ts'
import type { ProcessRecord } from './codec.ts'

/** What the host knows of a process inside. */
export interface Tracked {
  process: GuestProcess
  endOffset: number
}

export function tracked(record: ProcessRecord): Tracked {
  const running = record.state === 'running'
  return {
    endOffset: record.endOffset,
    process: {
      id: record.id,
      pid: record.pid,
      running,
      startedAt: record.startedMs,
      endedAt: running ? null : record.endedMs,
      exitCode: record.state === 'exited' ? record.code : null,
      signal: record.state === 'signaled' ? record.code : null,
    },
  }
}

export function unknownProcess(id: number): PlatformError {
  return new PlatformError('not_found', `process ${id} is not known in this sandbox`)
}
