import { PlatformError } from '../errors.ts'
import { parseZone, type Zone } from './zone.ts'

/** Patterns that are this rare (29 February on a Monday: once in 28 or 40 years) are still found. */
const yearsMax = 41
const expressionCharactersMax = 1024
const dayMs = 86_400_000
const minuteMs = 60_000
const hourMs = 60 * minuteMs
const lookBackFactor = 24

const monthNames = ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec']
const dayNames = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat']

interface Field {
  name: string
  min: number
  max: number
  names?: string[]
}

const fields = [
  { name: 'minute', min: 0, max: 59 },
  { name: 'hour', min: 0, max: 23 },
  { name: 'day of month', min: 1, max: 31 },
  { name: 'month', min: 1, max: 12, names: monthNames },
  // 7 is Sunday as well as 0.
  { name: 'day of week', min: 0, max: 7, names: dayNames },
] as const satisfies Field[]

const macros = new Map([
  ['@yearly', '0 0 1 1 *'],
  ['@annually', '0 0 1 1 *'],
  ['@monthly', '0 0 1 * *'],
  ['@weekly', '0 0 * * 0'],
  ['@daily', '0 0 * * *'],
  ['@midnight', '0 0 * * *'],
  ['@hourly', '0 * * * *'],
])

export interface Cron {
  readonly zone: string
  /**
   * The first moment after `afterMs`, in milliseconds since the epoch, always a whole minute; null when there is none.
   * By the clocks of the zone: a time that a change of clocks skips comes as much later as was skipped; one that comes
   * twice counts once, unless every hour does (`*` as the hour).
   */
  next(afterMs: number): number | null
  /** The last moment after `afterMs` that is not after `untilMs`; null when there is none. */
  latest(afterMs: number, untilMs: number): number | null
}

/**
 * Reads a cron expression of five fields: minute, hour, day of month, month, day of week. Lists, ranges, steps, names
 * of months and days (three letters), and @hourly, @daily, @weekly, @monthly, @yearly. When both days are restricted,
 * either is enough. @throws bad_request, which names `field` (of the zone `zoneField`), also for a pattern that never comes
 */
export function parseCron(field: string, text: string, zone = 'UTC', zoneField = field): Cron {
  const refuse = (why: string): never => {
    const shown = JSON.stringify(text.slice(0, 80))
    throw new PlatformError(
      'bad_request',
      `${field} must be a cron expression such as "0 8 * * 1-5": ${shown} ${why}`,
    )
  }
  if (text.length > expressionCharactersMax) refuse('is too long')
  const trimmed = text.trim()
  const parts = (macros.get(trimmed.toLowerCase()) ?? trimmed).split(/\s+/)
  if (parts.length !== fields.length) {
    const count = parts[0] === '' ? 0 : parts.length
    refuse(`has ${count} ${count === 1 ? 'field' : 'fields'} instead of five (minute hour day month weekday)`)
  }
  const [minutes, hours, days, months, weekdays] = fields.map((one, at) =>
    parseField(one, parts[at] ?? '', refuse),
  ) as [Set<number>, Set<number>, Set<number>, Set<number>, Set<number>]
  if (weekdays.has(7)) weekdays.add(0)
  const anyDay = isAny(parts[2])
  const anyWeekday = isAny(parts[4])
  const cron = new Pattern({
    minutes: ascending(minutes),
    hours: ascending(hours),
    everyHour: (parts[1] ?? '').startsWith('*'),
    zone: parseZone(zoneField, zone),
    matchesDay: (month, day, weekday) => {
      if (!months.has(month)) return false
      // As in every cron: one that begins with a star leaves the choice to the other.
      if (anyDay || anyWeekday) return days.has(day) && weekdays.has(weekday)
      return days.has(day) || weekdays.has(weekday)
    },
  })
  if (cron.next(0) === null) refuse('never comes: no month has that day')
  return cron
}

function isAny(part: string | undefined): boolean {
  return part?.startsWith('*') || part === '?'
}

function ascending(values: Set<number>): number[] {
  return [...values].sort((a, b) => a - b)
}

function parseField(field: Field, text: string, refuse: (why: string) => never): Set<number> {
  const values = new Set<number>()
  for (const item of text.split(',')) {
    const match = /^([^/]+)(?:\/(\d{1,4}))?$/.exec(item)
    const [, range = '', stepText] = match ?? []
    const step = stepText === undefined ? 1 : Number(stepText)
    if (!match || step < 1) refuse(`has ${JSON.stringify(item.slice(0, 20))} as ${field.name}`)
    const [first, last] = bounds(field, range, stepText !== undefined, refuse)
    for (let value = first; value <= last; value += step) values.add(value)
  }
  return values
}

function bounds(
  field: Field,
  range: string,
  stepped: boolean,
  refuse: (why: string) => never,
): [number, number] {
  // A star counts each weekday once.
  const last = field.max === 7 ? 6 : field.max
  if (range === '*') return [field.min, last]
  if (range === '?' && field.name.startsWith('day')) return [field.min, last]
  const [from = '', to, ...rest] = range.split('-')
  const start = numberOf(field, from)
  let end = to === undefined ? (stepped ? last : start) : numberOf(field, to)
  // Saturday to Sunday.
  if (to !== undefined && end === 0 && field.max === 7 && start !== null && start > 0) end = 7
  if (start === null || end === null || rest.length > 0) {
    const allowed = `${field.min} to ${field.max}${field.names ? `, or ${field.names[0]} to ${field.names.at(-1)}` : ''}`
    return refuse(`has ${JSON.stringify(range.slice(0, 20))} as ${field.name}, which is ${allowed}`)
  }
  if (start > end)
    return refuse(`has a range as ${field.name} that ends before it begins: ${range.slice(0, 20)}`)
  return [start, end]
}

function numberOf(field: Field, text: string): number | null {
  const named = field.names?.indexOf(text.toLowerCase()) ?? -1
  if (named >= 0) return named + field.min
  if (!/^\d{1,2}$/.test(text)) return null
  const value = Number(text)
  return value >= field.min && value <= field.max ? value : null
}

class Pattern implements Cron {
  readonly zone: string
  readonly #zone: Zone
  readonly #minutes: number[]
  readonly #hours: number[]
  readonly #everyHour: boolean
  readonly #matchesDay: (month: number, day: number, weekday: number) => boolean

  constructor(options: {
    minutes: number[]
    hours: number[]
    everyHour: boolean
    zone: Zone
    matchesDay: (month: number, day: number, weekday: number) => boolean
  }) {
    this.#zone = options.zone
    this.zone = options.zone.name
    this.#minutes = options.minutes
    this.#hours = options.hours
    this.#everyHour = options.everyHour
    this.#matchesDay = options.matchesDay
  }

  next(afterMs: number): number | null {
    // Local times are counted as if they were UTC. Clocks never change by more than a day.
    const firstDay = Math.floor((afterMs + this.#zone.offsetMs(afterMs)) / dayMs) - 1
    let best: number | null = null
    for (let day = firstDay; day < firstDay + yearsMax * 366; day++) {
      // A change of clocks may bring a time of the next day before one of this day.
      if (best !== null && day * dayMs > best + this.#zone.offsetMs(best) + dayMs) break
      const date = new Date(day * dayMs)
      if (!this.#matchesDay(date.getUTCMonth() + 1, date.getUTCDate(), date.getUTCDay())) continue
      const found = this.#firstOn(day * dayMs, afterMs)
      if (found !== null && (best === null || found < best)) best = found
      // Nothing can come before it where no clocks change.
      if (best !== null && this.#zone.fixed) break
    }
    return best
  }

  latest(afterMs: number, untilMs: number): number | null {
    // Back by steps that grow: what comes often is found in the first, and is gone through for as long as that one is.
    for (let backMs = hourMs; ; backMs *= lookBackFactor) {
      const from = Math.max(afterMs, untilMs - backMs)
      let found: number | null = null
      for (let at = this.next(from); at !== null && at <= untilMs; at = this.next(at)) found = at
      if (found !== null || from === afterMs) return found
    }
  }

  /** The first moment after `afterMs` that this local day has. */
  #firstOn(dayStart: number, afterMs: number): number | null {
    const offset = this.#zone.offsetMs(dayStart - dayMs)
    const steady = this.#zone.fixed || offset === this.#zone.offsetMs(dayStart + 2 * dayMs)
    let best: number | null = null
    for (const hour of this.#hours) {
      const hourStart = dayStart + hour * 60 * minuteMs
      if (steady && hourStart + 60 * minuteMs - offset <= afterMs) continue
      for (const minute of this.#minutes) {
        const local = hourStart + minute * minuteMs
        if (steady) {
          if (local - offset > afterMs) return local - offset
          continue
        }
        for (const at of this.#instantsOf(local)) {
          if (at > afterMs && (best === null || at < best)) best = at
        }
      }
    }
    return best
  }

  #instantsOf(local: number): number[] {
    const instants = this.#zone.instantsOf(local)
    return this.#everyHour ? instants : instants.slice(0, 1)
  }
}
