import { PlatformError } from '../errors.ts'

const dayMs = 86_400_000

/** The clocks of a time zone. Local times are told as milliseconds, as if they were UTC. */
export interface Zone {
  readonly name: string
  /** Its clocks never change. */
  readonly fixed: boolean
  /** Local time less UTC, at a moment. */
  offsetMs(atMs: number): number
  /**
   * The moments at which the local clocks show `localMs`, the earliest first: one as a rule, two when they were set
   * back over it; when they were set forward over it, the moment they would have shown it, had they gone on.
   */
  instantsOf(localMs: number): number[]
}

/** @throws bad_request, which names `field`, for a zone that is not known here */
export function parseZone(field: string, name: string): Zone {
  if (name === 'UTC') return utc
  try {
    return new IntlZone(name)
  } catch (cause) {
    const shown = JSON.stringify(name.slice(0, 64))
    throw new PlatformError(
      'bad_request',
      `${field}: ${shown} is not a time zone such as UTC or Europe/London`,
      { cause },
    )
  }
}

const utc: Zone = { name: 'UTC', fixed: true, offsetMs: () => 0, instantsOf: (localMs) => [localMs] }

class IntlZone implements Zone {
  readonly fixed = false
  readonly #format: Intl.DateTimeFormat

  constructor(readonly name: string) {
    this.#format = new Intl.DateTimeFormat('en-US', {
      timeZone: name,
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    })
  }

  offsetMs(atMs: number): number {
    const parts: Record<string, number> = {}
    for (const { type, value } of this.#format.formatToParts(atMs)) parts[type] = Number(value)
    const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = parts
    const local = Date.UTC(year, month - 1, day, hour, minute, second)
    return local - Math.floor(atMs / 1000) * 1000
  }

  instantsOf(localMs: number): number[] {
    const before = this.offsetMs(localMs - dayMs)
    const after = this.offsetMs(localMs + dayMs)
    const instants = [...new Set([localMs - before, localMs - after])]
      .filter((at) => at + this.offsetMs(at) === localMs)
      .sort((a, b) => a - b)
    return instants.length > 0 ? instants : [localMs - before]
  }
}
