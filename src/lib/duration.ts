import { PlatformError } from '../errors.ts'

const unitMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 } as const

/** Ten years: what is longer is a mistake, and would not fit a date for ever. */
export const durationMsMax = 3650 * unitMs.d

/**
 * Milliseconds of a duration such as `30s`, `5m`, `1h`, `2d` or `1w`: one positive whole number and one unit.
 * @throws bad_request, which names `field`
 */
export function parseDuration(field: string, text: string, maxMs = durationMsMax): number {
  const match = /^([0-9]{1,12})([smhdw])$/.exec(text)
  if (!match) {
    const shown = JSON.stringify(text.slice(0, 40))
    throw new PlatformError(
      'bad_request',
      `${field} must be a duration such as 30s, 5m, 1h, 2d or 1w, got ${shown}`,
    )
  }
  const ms = Number(match[1]) * unitMs[match[2] as keyof typeof unitMs]
  if (ms === 0) throw new PlatformError('bad_request', `${field} must be longer than nothing, got "${text}"`)
  if (ms > maxMs) {
    throw new PlatformError('bad_request', `${field} must be at most ${formatDuration(maxMs)}, got "${text}"`)
  }
  return ms
}

/** For people, in its two largest units: `250ms`, `1.5s`, `2m 5s`, `3h`, `4d 2h`. */
export function formatDuration(ms: number): string {
  if (!Number.isFinite(ms)) return String(ms)
  if (ms < 0) return `-${formatDuration(-ms)}`
  if (Math.round(ms) < unitMs.s) return `${Math.round(ms)}ms`
  if (ms < 9950) return `${Number((ms / unitMs.s).toFixed(1))}s`
  const seconds = Math.round(ms / unitMs.s)
  const parts: [number, string][] = [
    [Math.floor(seconds / 86_400), 'd'],
    [Math.floor(seconds / 3600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'm'],
    [seconds % 60, 's'],
  ]
  const first = parts.findIndex(([amount]) => amount > 0)
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount}${unit}`)
    .join(' ')
}
