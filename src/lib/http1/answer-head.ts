/** The head of an HTTP/1 answer, read strictly: whoever wrote it may mean harm. */

import { BoundedMap } from '../bounded-map.ts'

/** An answer that is no HTTP, or not within bounds. The message says what is wrong with it, of its own words none. */
export class BadAnswer extends Error {}

/** How the body is told from what follows it; `close`: by the end of the connection. */
export type Framing =
  | { kind: 'none' }
  | { kind: 'length'; bytes: number }
  | { kind: 'chunked' }
  | { kind: 'close' }

export interface AnswerHead {
  /** Three digits: 100 to 999. */
  readonly status: number
  readonly statusText: string
  /** Names in lower case and their values, by turns, as they came. */
  readonly headers: readonly string[]
  readonly framing: Framing
  /** As far as it goes by the head, the connection can be used again. */
  readonly persistent: boolean
}

export const headersMax = 256

const statusLinePattern = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: (.*))?$/
const namePattern = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
/** Or a carriage return that ends nothing. */
const foreignPattern = /[^\t\r\n\x20-\x7e\x80-\xff]|\r(?!\n)/
const lengthPattern = /^\d{1,15}$/
const withoutBody: Framing = { kind: 'none' }
const untilClose: Framing = { kind: 'close' }
const carriageReturn = 0x0d
const inChunks: Framing = { kind: 'chunked' }

/** Programs say the same again and again, but for the second of the day; what was read lately is not read again. */
const knownHeads = new BoundedMap<string, AnswerHead>(256)
const knownCharactersMax = 1024

/**
 * Reads a head without the empty line that ends it, one character a byte (latin1). `method`: of the request.
 * @throws BadAnswer
 */
export function parseHead(text: string, method: string): AnswerHead {
  if (method === 'HEAD' || text.length > knownCharactersMax) return read(text, method)
  const known = knownHeads.get(text)
  if (known !== undefined) return known
  const head = read(text, method)
  knownHeads.set(text, head)
  return head
}

function read(text: string, method: string): AnswerHead {
  if (foreignPattern.test(text)) throw new BadAnswer('its head has characters that do not belong there')
  let end = lineEnd(text, 0)
  const match = statusLinePattern.exec(text.slice(0, end))
  if (match === null) throw new BadAnswer('it does not begin as an answer of HTTP/1')
  const status = Number(match[2])
  const headers: string[] = []
  let framing = untilClose
  let persistent = match[1] === '1'
  let length: string | null = null
  let chunked = false
  for (let at = nextLine(text, end); at < text.length; at = nextLine(text, end)) {
    end = lineEnd(text, at)
    const colon = text.indexOf(':', at)
    const name = colon < 0 || colon > end ? '' : text.slice(at, colon).toLowerCase()
    if (!namePattern.test(name)) throw new BadAnswer('one of its headers has no name')
    if (headers.length >= headersMax * 2) throw new BadAnswer(`it has more than ${headersMax} headers`)
    const value = trimmed(text, colon + 1, end)
    headers.push(name, value)
    if (name === 'content-length') {
      if (!lengthPattern.test(value) || (length !== null && length !== value)) {
        throw new BadAnswer('its Content-Length is none')
      }
      length = value
    } else if (name === 'transfer-encoding') {
      if (chunked || value.toLowerCase() !== 'chunked') {
        throw new BadAnswer('its Transfer-Encoding is another one than chunked')
      }
      chunked = true
    } else if (name === 'connection') persistent = persists(value, persistent)
  }
  if (method === 'HEAD' || status < 200 || status === 204 || status === 304) {
    framing = withoutBody
  } else if (chunked) {
    framing = inChunks
    // Two lengths, or one that its version does not know: believed once, and no further.
    if (length !== null || match[1] === '0') persistent = false
  } else if (length !== null) framing = { kind: 'length', bytes: Number(length) }
  if (framing === untilClose) persistent = false
  return { status, statusText: match[3] ?? '', headers, framing, persistent }
}

function persists(value: string, before: boolean): boolean {
  const options = value.toLowerCase()
  if (options === 'keep-alive') return true
  const all = options.split(',').map((option) => option.trim())
  if (all.includes('close')) return false
  return before || all.includes('keep-alive')
}

/** Where the line ends that begins at `at`: by a line feed, with a carriage return before it or without. */
function lineEnd(text: string, at: number): number {
  const feed = text.indexOf('\n', at)
  const end = feed < 0 ? text.length : feed
  return feed > at && text.charCodeAt(feed - 1) === carriageReturn ? feed - 1 : end
}

function nextLine(text: string, end: number): number {
  return end + (text.charCodeAt(end) === carriageReturn ? 2 : 1)
}

/** Without spaces and tabs at both ends. */
function trimmed(text: string, start: number, end: number): string {
  let from = start
  let to = end
  while (from < to && isBlank(text.charCodeAt(from))) from++
  while (to > from && isBlank(text.charCodeAt(to - 1))) to--
  return text.slice(from, to)
}

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x09
}
