/** What was said in a thread before, for the program that goes on with it. */
import type { EntryBody } from './record.ts'

/** The newest; older ones are in the thread, and not sent along. */
const messagesMax = 200
const charsMax = 512 * 1024

export interface Message {
  role: 'user' | 'assistant'
  content: string
}

/** In order, up to and with the turn; of what is in the thread, the newest first. */
export async function conversation(newest: AsyncIterable<EntryBody>, turn: number): Promise<Message[]> {
  const messages: Message[] = []
  let chars = 0
  for await (const { role, text, turn: of } of newest) {
    if (role === 'event' || of > turn) continue
    chars += text.length
    if (messages.length > 0 && (messages.length >= messagesMax || chars > charsMax)) break
    messages.push({ role, content: text })
  }
  return messages.reverse()
}
