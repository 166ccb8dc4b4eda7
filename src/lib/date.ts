const pattern = /^\d{4}-\d{2}-\d{2}(?:[Tt ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:[Zz]|[+-]\d{2}:?\d{2})?)?$/
const zonePattern = /(?:[Zz]|[+-]\d{2}:?\d{2})$/

/** An ISO 8601 date in milliseconds since the epoch, UTC unless it says otherwise; null when it is none. */
export function parseDateMs(text: string): number | null {
  if (!pattern.test(text)) return null
  const dateOnly = text.length === 10
  const normal = text.replace(' ', 'T')
  const ms = Date.parse(dateOnly || zonePattern.test(text.slice(10)) ? normal : `${normal}Z`)
  return Number.isFinite(ms) ? ms : null
}
