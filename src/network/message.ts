/** DNS messages (RFC 1035), as much of them as is needed to answer questions. What arrives is hostile. */

export const recordTypes = {
  a: 1,
  ns: 2,
  cname: 5,
  soa: 6,
  ptr: 12,
  mx: 15,
  txt: 16,
  aaaa: 28,
  srv: 33,
} as const
export const responseCodes = {
  noError: 0,
  formatError: 1,
  serverFailure: 2,
  nameError: 3,
  notImplemented: 4,
  refused: 5,
}

export interface Question {
  id: number
  /** Lower case, without the final dot. */
  name: string
  type: number
  class: number
  recursionDesired: boolean
  /** The question section as it came, so that the answer repeats its spelling. */
  section: Uint8Array
  /** Bytes of an answer that fit over UDP. */
  answerBytesMax: number
}

export interface ResourceRecord {
  type: number
  ttlSeconds: number
  data: Uint8Array
}

const headerBytes = 12
const nameBytesMax = 255
const labelBytesMax = 63
const answerBytesMin = 512
/** Larger ones would be cut into fragments on most networks; here it only bounds what is built. */
const answerBytesMaxMax = 4096
const optType = 41
const responseBit = 0x80
const truncatedBit = 0x02

/** Null: not worth an answer. A number: the response code that says what is wrong with it. */
export function parseQuery(bytes: Uint8Array): Question | { id: number; code: number } | null {
  if (bytes.length < headerBytes || (bytes[2]! & responseBit) !== 0) return null
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const id = view.getUint16(0)
  if ((bytes[2]! & 0x78) !== 0) return { id, code: responseCodes.notImplemented }
  if (view.getUint16(4) !== 1) return { id, code: responseCodes.formatError }
  const labels: string[] = []
  let at = headerBytes
  for (;;) {
    const length = bytes[at]
    if (length === undefined || length > labelBytesMax) return { id, code: responseCodes.formatError }
    at++
    if (length === 0) break
    if (at + length > bytes.length || at - headerBytes + length > nameBytesMax)
      return { id, code: responseCodes.formatError }
    labels.push(Buffer.from(bytes.subarray(at, at + length)).toString('latin1'))
    at += length
  }
  if (at + 4 > bytes.length) return { id, code: responseCodes.formatError }
  return {
    id,
    name: labels.join('.').toLowerCase(),
    type: view.getUint16(at),
    class: view.getUint16(at + 2),
    recursionDesired: (bytes[2]! & 1) !== 0,
    section: bytes.slice(headerBytes, at + 4),
    answerBytesMax: announcedBytes(bytes, view, at + 4),
  }
}

/** What the asker can take, as it says in an OPT record (RFC 6891) right behind the question. */
function announcedBytes(bytes: Uint8Array, view: DataView, at: number): number {
  const alone = view.getUint16(6) === 0 && view.getUint16(8) === 0 && view.getUint16(10) >= 1
  if (!alone || at + 11 > bytes.length || bytes[at] !== 0 || view.getUint16(at + 1) !== optType)
    return answerBytesMin
  return Math.min(Math.max(view.getUint16(at + 3), answerBytesMin), answerBytesMaxMax)
}

/** An answer with no question in it, for a query that has none that can be read. */
export function plainAnswer(id: number, code: number): Uint8Array {
  const bytes = new Uint8Array(headerBytes)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, id)
  bytes[2] = responseBit
  bytes[3] = 0x80 | code
  return bytes
}

/** Records that do not fit in `bytesMax` are left out, and the answer says that it was cut. */
export function buildAnswer(
  question: Question,
  code: number,
  records: readonly ResourceRecord[],
  bytesMax: number,
): Uint8Array {
  const bytes = new Uint8Array(bytesMax)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, question.id)
  bytes[2] = responseBit | (question.recursionDesired ? 1 : 0)
  bytes[3] = 0x80 | code
  view.setUint16(4, 1)
  bytes.set(question.section, headerBytes)
  let at = headerBytes + question.section.length
  let count = 0
  for (const { type, ttlSeconds, data } of records) {
    if (at + headerBytes + data.length > bytesMax) {
      bytes[2] |= truncatedBit
      break
    }
    // The name is that of the question, by a pointer to it.
    view.setUint16(at, 0xc000 | headerBytes)
    view.setUint16(at + 2, type)
    view.setUint16(at + 4, 1)
    view.setUint32(at + 6, ttlSeconds)
    view.setUint16(at + 10, data.length)
    bytes.set(data, at + headerBytes)
    at += headerBytes + data.length
    count++
  }
  view.setUint16(6, count)
  return bytes.subarray(0, at)
}

/** A name as data of a record: uncompressed. Null when it is none. */
export function encodeName(name: string): Uint8Array | null {
  const labels = name.replace(/\.$/, '').split('.')
  const parts: number[] = []
  for (const label of labels) {
    const text = Buffer.from(label, 'latin1')
    if (text.length === 0 || text.length > labelBytesMax) return null
    parts.push(text.length, ...text)
  }
  parts.push(0)
  return parts.length > nameBytesMax ? null : Uint8Array.from(parts)
}
