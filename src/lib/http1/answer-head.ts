/** The head of an HTTP/1 answer, read strictly: whoever wrote it may mean harm. */

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
  status: number
  statusText: string
  /** Names in lower case and their values, by turns, as they came. */
  headers: string[]
  framing: Framing
  /** As far as it goes by the head, the connection can be used again. */
  persistent: boolean
}

export const headersMax = 256

const statusLinePattern = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: (.*))?$/
const namePattern = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
const foreignPattern = /[^\t\n\x20-\x7e\x80-\xff]/
const lengthPattern = /^\d{1,15}$/
const withoutBody: Framing = { kind: 'none' }
const untilClose: Framing = { kind: 'close' }
const inChunks: Framing = { kind: 'chunked' }

/**
 * Reads a head without the empty line that ends it, one character a byte (latin1). `method`: of the request.
 * @throws BadAnswer
 */
export function parseHead(text: string, method: string): AnswerHead {
  const lines = (text.includes('\r') ? text.replaceAll('\r\n', '\n') : text).split('\n')
  // What is left of carriage returns stands alone, where nobody knows what it means.
  if (foreignPattern.test(text.includes('\r') ? lines.join('\n') : text)) {
    throw new BadAnswer('its head has characters that do not belong there')
  }
  const match = statusLinePattern.exec(lines[0] ?? '')
  if (match === null) throw new BadAnswer('it does not begin as an answer of HTTP/1')
  if (lines.length - 1 > headersMax) throw new BadAnswer(`it has more than ${headersMax} headers`)
  const head: AnswerHead = {
    status: Number(match[2]),
    statusText: match[3] ?? '',
    headers: [],
    framing: untilClose,
    persistent: match[1] === '1',
  }
  const { headers } = head
  let length: string | null = null
  let chunked = false
  for (let at = 1; at < lines.length; at++) {
    const line = lines[at] ?? ''
    const colon = line.indexOf(':')
    const name = line.slice(0, Math.max(colon, 0)).toLowerCase()
    if (!namePattern.test(name)) throw new BadAnswer('one of its headers has no name')
    const value = trimmed(line, colon + 1)
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
    } else if (name === 'connection') head.persistent = persists(value, head.persistent)
  }
  if (method === 'HEAD' || head.status < 200 || head.status === 204 || head.status === 304) {
    head.framing = withoutBody
  } else if (chunked) {
    head.framing = inChunks
    // Two lengths, or one that its version does not know: believed once, and no further.
    if (length !== null || match[1] === '0') head.persistent = false
  } else if (length !== null) head.framing = { kind: 'length', bytes: Number(length) }
  if (head.framing === untilClose) head.persistent = false
  return head
}

function persists(value: string, before: boolean): boolean {
  const options = value.toLowerCase()
  if (options === 'keep-alive') return true
  const all = options.split(',').map((option) => option.trim())
  if (all.includes('close')) return false
  return before || all.includes('keep-alive')
}

/** From `start` on, without spaces and tabs at both ends. */
function trimmed(line: string, start: number): string {
  let end = line.length
  let from = start
  while (from < end && isBlank(line.charCodeAt(from))) from++
  while (end > from && isBlank(line.charCodeAt(end - 1))) end--
  return line.slice(from, end)
}

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x09
}
