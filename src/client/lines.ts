import { ClientError } from './transport.ts'

const lineCharactersMax = 16 * 1024 * 1024

/** The lines of an answer as they come, empty ones left out. */
export async function* lines(response: Response): AsyncIterable<string> {
  let rest = ''
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    rest += decoder.decode(chunk as Uint8Array, { stream: true })
    const parts = rest.split('\n')
    rest = parts.pop() ?? ''
    if (rest.length > lineCharactersMax) throw new ClientError(0, 'the platform sent a line without an end')
    for (const part of parts) if (part !== '') yield part
  }
  if (rest !== '') yield rest
}
