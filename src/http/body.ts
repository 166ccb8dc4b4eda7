import type { z } from 'zod'
import { PlatformError } from '../errors.ts'
import { jsonErrorOffset, linePosition } from './json-position.ts'

/** Levels of arrays and objects in a JSON body. */
const jsonDepthMax = 100
const shownCharactersMax = 60
const shownIssuesMax = 5

/** A small body, without ever holding more than `bytesMax`; one that may be large is a `WholeBody`. @throws body_too_large */
export async function readBytes(request: Request, bytesMax: number): Promise<Uint8Array> {
  const declared = request.headers.get('content-length')
  if (declared !== null && Number(declared) > bytesMax) throw tooLarge(bytesMax, `${declared} bytes`)
  if (request.body === null) return new Uint8Array()
  const reader = request.body.getReader()
  const chunks: Uint8Array[] = []
  let size = 0
  while (true) {
    const { done, value } = await reader.read()
    if (done) break
    size += value.byteLength
    if (size > bytesMax) {
      // The rest is not waited for: the answer goes out while the client may still be sending.
      reader.cancel().catch(() => {})
      throw tooLarge(bytesMax, 'more')
    }
    chunks.push(value)
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, size)
}

/** The body as text. @throws body_too_large, bad_request for what is not UTF-8 */
export async function readText(request: Request, bytesMax: number): Promise<string> {
  return textIn(await readBytes(request, bytesMax))
}

/** @throws bad_request for what is not UTF-8 */
export function textIn(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new PlatformError('bad_request', 'The body is not valid UTF-8', { cause })
  }
}

/** @throws bad_request that says where the text stops being JSON */
export function parseJson(text: string): unknown {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    const offset = jsonErrorOffset(text)
    const { line, column } = linePosition(text, offset)
    const what = offset >= text.length ? 'it ends too early' : `unexpected ${JSON.stringify(text[offset])}`
    throw new PlatformError(
      'bad_request',
      `The body is not valid JSON: line ${line}, column ${column}: ${what}`,
      {
        cause,
        details: { line, column },
      },
    )
  }
  refuseDepth(value)
  return value
}

/** Output of the schema. @throws bad_request naming each field that is wrong; `prefix` names the whole */
export function parseWith<Schema extends z.ZodType>(
  schema: Schema,
  input: unknown,
  what: string,
): z.output<Schema> {
  const result = schema.safeParse(input)
  if (result.success) return result.data
  const issues = result.error.issues
  const shown = issues.slice(0, shownIssuesMax).map((issue) => issueMessage(issue, input, what))
  const more = issues.length - shown.length
  throw new PlatformError('bad_request', shown.join('; ') + (more > 0 ? `; and ${more} more` : ''))
}

type Issue = z.core.$ZodIssue

function issueMessage(issue: Issue, input: unknown, what: string): string {
  // Of a union, the branch that came furthest says most.
  if (issue.code === 'invalid_union') {
    const branches = issue.errors.map((issues) => issues[0]).filter((inner) => inner !== undefined)
    const deepest = branches.sort((a, b) => b.path.length - a.path.length)[0]
    if (deepest !== undefined && deepest.path.length > 0) {
      return issueMessage({ ...deepest, path: [...issue.path, ...deepest.path] } as Issue, input, what)
    }
    if (branches.length > 0) {
      const expected = branches.map((inner) => expectation(inner as Issue))
      return `${fieldName(issue.path, what)}: ${shownValue(issue.path, input)}${[...new Set(expected)].join(' or ')}`
    }
  }
  return `${fieldName(issue.path, what)}: ${shownValue(issue.path, input)}${expectation(issue)}`
}

function expectation(issue: Issue): string {
  switch (issue.code) {
    case 'unrecognized_keys':
      return `unknown field ${issue.keys.map((key) => `"${shorten(key)}"`).join(', ')}`
    case 'invalid_value':
      return `must be ${issue.values.map((value) => String(value)).join(', ')}`
    case 'invalid_type':
      return `must be ${typeWords[issue.expected] ?? article(issue.expected)}`
    case 'too_small':
      if (issue.minimum === 1 && unit(issue.origin) !== '') return 'must not be empty'
      return `must be at least ${issue.minimum}${unit(issue.origin)}`
    case 'too_big':
      return `must be at most ${issue.maximum}${unit(issue.origin)}`
    case 'not_multiple_of':
      return `must be a multiple of ${issue.divisor}`
    case 'invalid_format':
      return issue.message.startsWith('Invalid')
        ? `must match ${issue.pattern ?? issue.format}`
        : issue.message
    default:
      return issue.message
  }
}

function unit(origin: string): string {
  if (origin === 'string') return ' characters'
  if (origin === 'array' || origin === 'set') return ' entries'
  if (origin === 'object' || origin === 'record' || origin === 'map') return ' keys'
  return ''
}

/** Where the validator's word is not what JSON calls it. */
const typeWords: Record<string, string> = { int: 'a whole number', record: 'an object', map: 'an object' }

function article(type: string): string {
  return /^[aeiou]/.test(type) ? `an ${type}` : `a ${type}`
}

function fieldName(path: PropertyKey[], what: string): string {
  if (path.length === 0) return what
  const steps = path.map((step) => (typeof step === 'number' ? `[${step}]` : `.${shorten(String(step))}`))
  return steps.join('').replace(/^\./, '')
}

/** Fields that hold secrets, or whatever a user put there: their values are never repeated. */
const privateField =
  /secret|token|pass|key|credential|auth|cookie|header|private|^(envs?|value|content|input|stdin|data|command)$/i

function shownValue(path: PropertyKey[], input: unknown): string {
  let value = input
  for (const step of path) {
    if (typeof value !== 'object' || value === null) return ''
    value = (value as Record<PropertyKey, unknown>)[step]
  }
  if (value === undefined) return 'missing: '
  if (path.length === 0) return ''
  if (path.some((step) => privateField.test(String(step)))) return ''
  if (typeof value === 'string') return `"${shorten(value)}" `
  if (typeof value === 'number' || typeof value === 'boolean' || value === null) return `${value} `
  return ''
}

function shorten(text: string): string {
  return text.length <= shownCharactersMax ? text : `${text.slice(0, shownCharactersMax)}...`
}

/** @throws unsupported_media_type for form bodies, which would only yield a puzzling syntax error */
export function refuseForms(request: Request): void {
  const type = request.headers.get('content-type')
  if (type === null || !/^(multipart\/|application\/x-www-form-urlencoded)/i.test(type)) return
  throw new PlatformError(
    'unsupported_media_type',
    `Content-Type: "${shorten(type)}" is not supported here: send application/json`,
  )
}

/** Deep or prototype-setting input stops here, before any code that recurses or assigns sees it. */
function refuseDepth(root: unknown): void {
  if (typeof root !== 'object' || root === null) return
  const waiting: { value: object; depth: number }[] = [{ value: root, depth: 1 }]
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { value, depth } = next
    if (depth > jsonDepthMax) {
      throw new PlatformError('bad_request', `The body nests deeper than ${jsonDepthMax} levels`)
    }
    if (Object.hasOwn(value, '__proto__')) {
      throw new PlatformError('bad_request', 'The body has a key "__proto__", which is not allowed')
    }
    for (const inner of Object.values(value)) {
      if (typeof inner === 'object' && inner !== null) waiting.push({ value: inner, depth: depth + 1 })
    }
  }
}

export function tooLarge(bytesMax: number, got: string): PlatformError {
  return new PlatformError(
    'body_too_large',
    `The body is larger than ${bytesMax} bytes, the most allowed here: ${got}`,
  )
}
