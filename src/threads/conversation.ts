/** What was said in a thread before, for the program that goes on with it. */
import type { Entry } from './record.ts'

/** The newest; older ones are in the thread, and not sent along. */
const messagesMax = 200
const charsMax = 512 * 1024

export interface Message {
  role: 'user' | 'assistant'
  content: string
}

/** In order, up to and with the turn. */
export function conversation(entries: Entry[], turn: number): Message[] {
  const messages: Message[] = []
  let chars = 0
  for (const { role, text, turn: of } of entries.toReversed()) {
    if (role === 'event' || of > turn) continue
    chars += text.length
    if (messages.length > 0 && (messages.length >= messagesMax || chars > charsMax)) break
    messages.push({ role, content: text })
  }
  return messages.reverse()
}
