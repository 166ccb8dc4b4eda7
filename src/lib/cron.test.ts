import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { PlatformError } from '../errors.ts'
import { parseCron } from './cron.ts'
import { parseZone } from './zone.ts'

const minuteMs = 60_000
const at = (text: string) => Date.parse(text)
const next = (expression: string, after: string, zone?: string) => {
  const found = parseCron('value', expression, zone).next(at(after))
  return found === null ? null : new Date(found).toISOString().replace(':00.000Z', 'Z')
}

/** The moments that follow. */
function series(expression: string, after: string, count: number, zone?: string): string[] {
  const cron = parseCron('value', expression, zone)
  const found: string[] = []
  let moment = at(after)
  for (let index = 0; index < count; index++) {
    moment = cron.next(moment) ?? Number.NaN
    found.push(new Date(moment).toISOString().replace(':00.000Z', 'Z'))
  }
  return found
}

test.each([
  ['* * * * *', '2026-03-01T10:00:30Z', '2026-03-01T10:01Z'],
  ['* * * * *', '2026-03-01T10:00:00Z', '2026-03-01T10:01Z'],
  ['0 8 * * 1-5', '2026-03-06T08:00Z', '2026-03-09T08:00Z'],
  ['0 8 * * MON-FRI', '2026-03-06T08:00Z', '2026-03-09T08:00Z'],
  ['*/15 * * * *', '2026-03-01T10:46Z', '2026-03-01T11:00Z'],
  ['5/20 * * * *', '2026-03-01T10:26Z', '2026-03-01T10:45Z'],
  ['10-30/10,59 * * * *', '2026-03-01T10:30Z', '2026-03-01T10:59Z'],
  ['0 0 1 jan *', '2026-03-01T10:00Z', '2027-01-01T00:00Z'],
  ['0 0 29 2 *', '2026-03-01T10:00Z', '2028-02-29T00:00Z'],
  ['0 0 29 2 *', '2096-03-01T10:00Z', '2104-02-29T00:00Z'],
  ['0 0 31 * *', '2026-03-31T00:00Z', '2026-05-31T00:00Z'],
  ['0 12 * * 7', '2026-03-06T08:00Z', '2026-03-08T12:00Z'],
  ['0 12 * * 0', '2026-03-06T08:00Z', '2026-03-08T12:00Z'],
  ['0 12 * * SAT-SUN', '2026-03-07T12:00Z', '2026-03-08T12:00Z'],
  ['0 0 13 * 5', '2026-03-06T00:00Z', '2026-03-13T00:00Z'],
  ['0 0 1 * 5', '2026-03-28T00:00Z', '2026-04-01T00:00Z'],
  ['0 0 ? * 5', '2026-03-28T00:00Z', '2026-04-03T00:00Z'],
  ['  0   0\t* * * ', '2026-03-28T00:00Z', '2026-03-29T00:00Z'],
  ['@hourly', '2026-03-28T00:10Z', '2026-03-28T01:00Z'],
  ['@Yearly', '2026-03-28T00:10Z', '2027-01-01T00:00Z'],
  ['59 23 31 12 *', '1999-12-31T23:58Z', '1999-12-31T23:59Z'],
])('%s after %s is %s', (expression, after, expected) => {
  expect(next(expression, after)).toBe(expected)
})

test.each([
  ['', '0 fields'],
  ['* * * *', '4 fields'],
  ['* * * * * *', '6 fields'],
  ['60 * * * *', '"60" as minute, which is 0 to 59'],
  ['* 24 * * *', '"24" as hour'],
  ['* * 0 * *', '"0" as day of month'],
  ['* * * 13 *', '"13" as month, which is 1 to 12, or jan to dec'],
  ['* * * * 8', '"8" as day of week'],
  ['* * * * mond', '"mond" as day of week'],
  ['*/0 * * * *', '"*/0" as minute'],
  ['1-2-3 * * * *', '"1-2-3" as minute'],
  ['30-10 * * * *', 'ends before it begins'],
  ['1, * * * *', 'as minute'],
  ['-1 * * * *', 'as minute'],
  ['1.5 * * * *', 'as minute'],
  ['? * * * *', '"?" as minute'],
  ['0 0 31 2 *', 'never comes'],
  ['0 0 30 2 *', 'never comes'],
  ['0 0 L * *', '"L" as day of month'],
  ['@reboot', '1 field '],
  ['__proto__', '1 field '],
])('%p is refused: %s', (expression, why) => {
  let error: unknown
  try {
    parseCron('value', expression)
  } catch (caught) {
    error = caught
  }
  if (!PlatformError.is(error)) throw new Error('it was not refused')
  expect([error.code, error.message]).toEqual(['bad_request', expect.stringContaining(why)])
  expect(error.message).toStartWith('value must be a cron expression')
})

test('an unknown zone is refused by its name', () => {
  expect(() => parseCron('value', '* * * * *', 'Mars/Olympus')).toThrow('"Mars/Olympus" is not a time zone')
})

test('a zone has its own midnight', () => {
  expect(next('0 0 * * *', '2026-01-10T12:00Z', 'Asia/Tokyo')).toBe('2026-01-10T15:00Z')
  expect(next('30 9 * * 1', '2026-01-10T12:00Z', 'Asia/Kolkata')).toBe('2026-01-12T04:00Z')
})

test('a time that the clocks skip comes as much later, once', () => {
  // In London 01:00 became 02:00 on 29 March 2026.
  expect(series('30 1 * * *', '2026-03-28T00:00Z', 3, 'Europe/London')).toEqual([
    '2026-03-28T01:30Z',
    '2026-03-29T01:30Z',
    '2026-03-30T00:30Z',
  ])
  expect(series('*/30 * * * *', '2026-03-29T00:00Z', 4, 'Europe/London')).toEqual([
    '2026-03-29T00:30Z',
    '2026-03-29T01:00Z',
    '2026-03-29T01:30Z',
    '2026-03-29T02:00Z',
  ])
})

test('a time that comes twice counts once, unless every hour does', () => {
  // In New York 02:00 became 01:00 on 1 November 2026.
  expect(series('30 1 * * *', '2026-10-31T12:00Z', 2, 'America/New_York')).toEqual([
    '2026-11-01T05:30Z',
    '2026-11-02T06:30Z',
  ])
  expect(series('30 * * * *', '2026-11-01T04:00Z', 4, 'America/New_York')).toEqual([
    '2026-11-01T04:30Z',
    '2026-11-01T05:30Z',
    '2026-11-01T06:30Z',
    '2026-11-01T07:30Z',
  ])
})

test('clocks that change at midnight lose no day', () => {
  // In Sao Paulo midnight became 01:00 on 4 November 2018.
  expect(series('0 0 * * *', '2018-11-03T00:00Z', 3, 'America/Sao_Paulo')).toEqual([
    '2018-11-03T03:00Z',
    '2018-11-04T03:00Z',
    '2018-11-05T02:00Z',
  ])
})

const field = (min: number, max: number) =>
  fc.oneof(
    { weight: 3, arbitrary: fc.constant('*') },
    fc.integer({ min: 1, max: max - min + 1 }).map((step) => `*/${step}`),
    fc
      .uniqueArray(fc.integer({ min, max }), { minLength: 1, maxLength: 4 })
      .map((values) => values.join(',')),
    fc
      .tuple(fc.integer({ min, max }), fc.integer({ min, max }), fc.integer({ min: 1, max: 7 }))
      .map(([a, b, step]) => `${Math.min(a, b)}-${Math.max(a, b)}/${step}`),
  )
const expressions = fc
  .tuple(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6))
  .map((parts) => parts.join(' '))
const moments = fc.integer({ min: at('2015-01-01T00:00Z'), max: at('2035-01-01T00:00Z') })

/** Whether one field of an expression allows a value, by the plainest reading. */
function allows(text: string, value: number, min: number): boolean {
  return text.split(',').some((item) => {
    const [range = '', step = '1'] = item.split('/')
    const [from, to] = range === '*' ? [min, 99] : range.split('-').map(Number)
    const last = to ?? from!
    return value >= from! && value <= last && (value - from!) % Number(step) === 0
  })
}

function matches(expression: string, local: Date): boolean {
  const [minute, hour, day, month, weekday] = expression.split(' ') as [
    string,
    string,
    string,
    string,
    string,
  ]
  const byDay = allows(day, local.getUTCDate(), 1)
  const byWeekday = allows(weekday, local.getUTCDay(), 0)
  const either = !day.startsWith('*') && !weekday.startsWith('*')
  return (
    allows(minute, local.getUTCMinutes(), 0) &&
    allows(hour, local.getUTCHours(), 0) &&
    allows(month, local.getUTCMonth() + 1, 1) &&
    (either ? byDay || byWeekday : byDay && byWeekday)
  )
}

test('what is found matches, and nothing between does', () => {
  fc.assert(
    fc.property(expressions, moments, (expression, after) => {
      const found = parseCron('value', expression).next(after)
      if (found === null) throw new Error('nothing was found')
      expect(found).toBeGreaterThan(after)
      expect(found % minuteMs).toBe(0)
      expect(matches(expression, new Date(found))).toBe(true)
      const first = (Math.floor(after / minuteMs) + 1) * minuteMs
      // Two days, minute for minute.
      for (let moment = first; moment < Math.min(found, first + 2880 * minuteMs); moment += minuteMs) {
        if (matches(expression, new Date(moment))) {
          throw new Error(`${expression} was due at ${new Date(moment).toISOString()} already`)
        }
      }
    }),
    { numRuns: 300 },
  )
})

test('in any zone, through changes of its clocks, every hour is met minute for minute', () => {
  const zones = [
    'Europe/London',
    'America/New_York',
    'Australia/Lord_Howe',
    'Asia/Kolkata',
    'America/Sao_Paulo',
  ]
  const changes = [
    '2026-03-29T01:00Z',
    '2026-10-25T01:00Z',
    '2026-03-08T07:00Z',
    '2026-11-01T06:00Z',
    '2026-04-04T15:00Z',
    '2026-10-03T15:30Z',
    '2018-11-04T03:00Z',
    '2018-02-18T02:00Z',
  ]
  fc.assert(
    fc.property(
      fc.constantFrom(...zones),
      fc.constantFrom(...changes),
      fc.integer({ min: -300, max: 300 }),
      field(0, 59),
      (zoneName, change, minutes, minuteField) => {
        const zone = parseZone('zone', zoneName)
        const after = at(change) + minutes * minuteMs
        const expression = `${minuteField} * * * *`
        const found = parseCron('value', expression, zoneName).next(after)
        let expected = (Math.floor(after / minuteMs) + 1) * minuteMs
        while (!matches(expression, new Date(expected + zone.offsetMs(expected)))) expected += minuteMs
        // A skipped time may come on top, as much later as was skipped.
        if (found !== expected) {
          expect(found).toBeLessThan(expected)
          const wouldShow = (found ?? 0) + zone.offsetMs((found ?? 0) - 86_400_000)
          expect(matches(expression, new Date(wouldShow))).toBe(true)
        }
      },
    ),
    { numRuns: 100 },
  )
})

test('whatever the expression, it is read or refused, and the moments only rise', () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 40, unit: 'binary' }), (text) => {
      try {
        parseCron('value', text)
      } catch (error) {
        expect(PlatformError.is(error)).toBe(true)
      }
    }),
    { numRuns: 500 },
  )
  fc.assert(
    fc.property(expressions, moments, fc.constantFrom('UTC', 'Europe/London'), (expression, after, zone) => {
      const cron = parseCron('value', expression, zone)
      let last = after
      for (let index = 0; index < 5; index++) {
        const found = cron.next(last)
        if (found === null || found <= last) throw new Error(`${expression}: ${found} after ${last}`)
        last = found
      }
    }),
    { numRuns: 100 },
  )
})
