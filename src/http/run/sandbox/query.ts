import { PlatformError } from '../../../errors.ts'

/** Parameters of a query string, as the clients of the sandbox API write them. */

const listItemsMax = 256

/** What is left out of finds and searches unless `excludeDirs` says otherwise. */
const excludedDirectoriesDefault = [
  'node_modules',
  'vendor',
  '.git',
  'dist',
  'build',
  'target',
  '__pycache__',
  '.venv',
  '.next',
  'coverage',
]

/** Items between commas; those within braces or brackets belong to a glob. Null when the parameter is not there. */
export function listParameter(query: URLSearchParams, name: string): string[] | null {
  const values = query.getAll(name)
  if (values.length === 0) return null
  const items = values.flatMap(splitList).filter((item) => item !== '')
  if (items.length > listItemsMax) {
    throw new PlatformError(
      'bad_request',
      `${name}: has ${items.length} items, at most ${listItemsMax} are allowed`,
    )
  }
  return items
}

function splitList(text: string): string[] {
  const items: string[] = []
  let item = ''
  let depth = 0
  for (const character of text) {
    if (character === '{') depth++
    else if (character === '}' && depth > 0) depth--
    if (character === ',' && depth === 0) {
      items.push(item.trim())
      item = ''
    } else item += character
  }
  return [...items, item.trim()]
}

/** An empty `excludeDirs` leaves nothing out. */
export function excludedDirectories(query: URLSearchParams): string[] {
  return listParameter(query, 'excludeDirs') ?? excludedDirectoriesDefault
}

export function flagParameter(query: URLSearchParams, name: string, fallback: boolean): boolean {
  const value = query.get(name)
  if (value === null || value === '') return fallback
  if (/^(?:true|t|1)$/i.test(value)) return true
  if (/^(?:false|f|0)$/i.test(value)) return false
  throw new PlatformError('bad_request', `${name}: '${value.slice(0, 20)}' is neither true nor false`)
}

export function countParameter(
  query: URLSearchParams,
  name: string,
  { fallback, max }: { fallback: number; max: number },
): number {
  const value = query.get(name)
  if (value === null || value === '') return fallback
  if (!/^\d{1,15}$/.test(value)) {
    throw new PlatformError('bad_request', `${name}: '${value.slice(0, 20)}' is not a whole number from 0 up`)
  }
  return Math.min(Number(value), max)
}

/** A count from 1 to `max`; anything else is refused rather than bent. */
export function boundedParameter(
  query: URLSearchParams,
  name: string,
  { fallback, max }: { fallback: number; max: number },
): number {
  const value = query.get(name)
  if (value === null || value === '') return fallback
  const count = Number(value)
  if (/^\d{1,15}$/.test(value) && count >= 1 && count <= max) return count
  throw new PlatformError(
    'bad_request',
    `${name}: '${value.slice(0, 20)}' is not a whole number from 1 to ${max}`,
  )
}

/** A count of which 0 means all. */
export function limitParameter(
  query: URLSearchParams,
  name: string,
  { fallback, max }: { fallback: number; max: number },
): number {
  return countParameter(query, name, { fallback, max }) || max
}
