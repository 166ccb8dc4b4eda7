/** What programs say in their answers, as text: whole, or piece by piece, in the shapes that models stream in. */

/** How a line of server-sent events begins. */
const eventField = /^(data|event|id|retry)?:/
const eventFieldCharsMax = 'retry:'.length
const breaksCharsMax = 1024
const lineCharsMax = 10 * 1024 * 1024

/** Whether an answer is to be shown as it comes. */
export function isStream(response: Response): boolean {
  const type = response.headers.get('content-type') ?? ''
  return /text\/event-stream|application\/x-ndjson|application\/jsonl/.test(type)
}

/**
 * The text that a stream of a program says, piece by piece: of server-sent events and of JSON lines what their messages
 * are (in the shapes that models stream in), else the text itself.
 */
export async function* spokenText(response: Response): AsyncIterable<string> {
  const pieces = decoded(response)
  if (!isStream(response)) return yield* pieces
  const events = (response.headers.get('content-type') ?? '').includes('event-stream')
  const { text, begins } = events ? await opened(pieces) : { text: pieces, begins: '' }
  // Agents made from the cloud's templates send plain text as a stream of events.
  if (events && !eventField.test(begins)) return yield* text
  for await (const line of textLines(text)) {
    if (events && !line.startsWith('data:')) continue
    const data = events ? line.slice('data:'.length).replace(/^ /, '') : line
    if (data === '[DONE]') return
    if (data !== '') yield messageIn(data) ?? `${data}\n`
  }
}

/** The text that a message of a program is about; null: it is in no shape that is known here. */
export function messageIn(data: string): string | null {
  let value: unknown
  try {
    value = JSON.parse(data)
  } catch {
    return null
  }
  if (typeof value === 'string') return value
  if (typeof value !== 'object' || value === null) return null
  const { choices, delta, ...rest } = value as {
    choices?: { delta?: { content?: unknown } }[]
    delta?: unknown
  } & Record<string, unknown>
  const said =
    choices?.[0]?.delta?.content ??
    (typeof delta === 'object' ? (delta as { text?: unknown } | null)?.text : delta)
  if (typeof said === 'string') return said
  // A model's last word, or its first, has no text.
  if (Array.isArray(choices)) return ''
  for (const key of ['content', 'text', 'message', 'output']) {
    if (typeof rest[key] === 'string') return rest[key]
  }
  return null
}

/** A text, and what it begins with behind its first line breaks: as much as says whether it is one of events. */
async function opened(
  pieces: AsyncGenerator<string, void>,
): Promise<{ text: AsyncIterable<string>; begins: string }> {
  let held = ''
  while (held.trimStart().length < eventFieldCharsMax && held.length < breaksCharsMax) {
    const { done, value } = await pieces.next()
    if (done) break
    held += value
  }
  const text = async function* () {
    try {
      yield held
      yield* pieces
    } finally {
      await pieces.return()
    }
  }
  return { text: text(), begins: held.trimStart() }
}

async function* decoded(response: Response): AsyncGenerator<string, void> {
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) yield decoder.decode(chunk as Uint8Array, { stream: true })
}

async function* textLines(text: AsyncIterable<string>): AsyncIterable<string> {
  let rest = ''
  for await (const piece of text) {
    rest += piece
    const parts = rest.split(/\r\n|\n/)
    rest = parts.pop() ?? ''
    if (rest.length > lineCharsMax) throw new Error('the answer has a line without an end')
    yield* parts
  }
  if (rest !== '') yield rest
}
