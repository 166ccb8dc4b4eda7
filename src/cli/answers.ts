import { messageOf } from '../client/index.ts'
import { messageIn } from '../lib/spoken-text.ts'
import { paint } from './output.ts'

/** Says whether an error is the platform's or the program's. */
const sourceHeader = 'x-blaxel-source'

/** What a whole answer says: JSON laid out for reading. */
export function readable(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text.trimEnd()
  }
}

/** Of a whole answer the text that it is about, where it is JSON in a shape that is known here. */
export function spokenAnswer(text: string): string {
  try {
    return messageIn(text) ?? JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text.trimEnd()
  }
}

/** What the platform itself refused, in its words; null for an answer of the program's, which is not read then. */
export async function platformRefusal(response: Response): Promise<string | null> {
  if (response.ok || response.headers.get(sourceHeader) !== 'platform') return null
  const said = messageOf(await response.text())
  return said ?? `the platform answered ${response.status} ${response.statusText}`.trim()
}

export function requestLine(method: string, url: string, response: Response, tookMs: number): string {
  return paint('dim', `${method} ${url} ${response.status} in ${Math.round(tookMs)} ms`, process.stderr)
}
