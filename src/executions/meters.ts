import type { Clock } from '../lib/clock.ts'
import type { ExecutionStatus } from './execution.ts'

const bucketMs = 1000
const windowMs = 60_000

export interface SourceMeter {
  acceptedTotal: number
  startedTotal: number
  retriedTotal: number
  endedTotal: Partial<Record<ExecutionStatus, number>>
  /** Over the last minute. */
  acceptedPerSecond: number
  startedPerSecond: number
  endedPerSecond: number
}

/** What happened since the platform started, by workspace and source, and how much of it in the last minute. */
export class Meters {
  readonly #clock: Clock
  readonly #meters = new Map<string, Map<string, Meter>>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  accepted(workspace: string, source: string): void {
    const meter = this.#of(workspace, source)
    meter.acceptedTotal++
    meter.accepted.add(this.#clock.monotonic())
  }

  started(workspace: string, source: string, attempt: number): void {
    const meter = this.#of(workspace, source)
    meter.startedTotal++
    if (attempt > 1) meter.retriedTotal++
    meter.started.add(this.#clock.monotonic())
  }

  ended(workspace: string, source: string, status: ExecutionStatus): void {
    const meter = this.#of(workspace, source)
    meter.endedTotal[status] = (meter.endedTotal[status] ?? 0) + 1
    meter.ended.add(this.#clock.monotonic())
  }

  read(workspace: string, source: string): SourceMeter {
    const { acceptedTotal, startedTotal, retriedTotal, endedTotal, accepted, started, ended } = this.#of(
      workspace,
      source,
    )
    const now = this.#clock.monotonic()
    return {
      acceptedTotal,
      startedTotal,
      retriedTotal,
      endedTotal: { ...endedTotal },
      acceptedPerSecond: accepted.perSecond(now),
      startedPerSecond: started.perSecond(now),
      endedPerSecond: ended.perSecond(now),
    }
  }

  forget(workspace: string): void {
    this.#meters.delete(workspace)
  }

  #of(workspace: string, source: string): Meter {
    const sources = this.#meters.get(workspace) ?? new Map<string, Meter>()
    this.#meters.set(workspace, sources)
    let meter = sources.get(source)
    if (!meter) {
      meter = {
        acceptedTotal: 0,
        startedTotal: 0,
        retriedTotal: 0,
        endedTotal: {},
        accepted: new Rate(),
        started: new Rate(),
        ended: new Rate(),
      }
      sources.set(source, meter)
    }
    return meter
  }
}

interface Meter {
  acceptedTotal: number
  startedTotal: number
  retriedTotal: number
  endedTotal: Partial<Record<ExecutionStatus, number>>
  accepted: Rate
  started: Rate
  ended: Rate
}

/** How many in each of the last sixty seconds. */
class Rate {
  readonly #counts = new Array<number>(windowMs / bucketMs).fill(0)
  #bucket = 0

  add(nowMs: number): void {
    this.#turn(nowMs)
    const index = this.#bucket % this.#counts.length
    this.#counts[index] = (this.#counts[index] ?? 0) + 1
  }

  perSecond(nowMs: number): number {
    this.#turn(nowMs)
    const total = this.#counts.reduce((sum, count) => sum + count, 0)
    return Math.round((total / (windowMs / 1000)) * 100) / 100
  }

  #turn(nowMs: number): void {
    const bucket = Math.floor(nowMs / bucketMs)
    const steps = Math.min(bucket - this.#bucket, this.#counts.length)
    for (let step = 1; step <= steps; step++) this.#counts[(bucket - steps + step) % this.#counts.length] = 0
    if (bucket > this.#bucket) this.#bucket = bucket
  }
}
