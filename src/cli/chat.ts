import { createInterface } from 'node:readline/promises'
import { isStream, spokenText } from '../lib/spoken-text.ts'
import { platformRefusal, requestLine, spokenAnswer } from './answers.ts'
import { withHints } from './client.ts'
import { CommandError, command } from './command.ts'
import { addressOf, headersOf, type InvokeFlags, invoke, requestFlags, runningKind } from './invoking.ts'
import { note, paint, print } from './output.ts'

/** Says which conversation a message is of, for agents that keep any. */
const threadHeader = 'x-blaxel-thread-id'

export const chat = command({
  name: 'chat',
  summary: 'Talks with an agent: each line is sent, and what it answers is printed as it comes.',
  usage: 'AGENT',
  flags: requestFlags,
  positionals: [1, 1],
  notes: [
    `The agent gets POST {"inputs": LINE}, with the same ${threadHeader} for the whole conversation.`,
    'Ctrl-C ends an answer, or the conversation; so does Ctrl-D. Lines may also come from a file or a pipe.',
  ],
  async run({ flags, positionals }) {
    const [name = ''] = positionals
    const headers = {
      [threadHeader]: crypto.randomUUID(),
      'content-type': 'application/json',
      ...headersOf(flags.header),
    }
    const asked = process.stdin.isTTY === true
    // Whoever mistyped the name learns it before the first question.
    if (!flags.local) await addressOf(flags, runningKind('agent'), name)
    const lines = createInterface({ input: process.stdin, output: process.stdout, terminal: asked })
    let answering: AbortController | null = null
    lines.on('SIGINT', () => {
      if (answering === null) lines.close()
      else answering.abort()
    })
    const prompt = asked ? paint('bold', 'you> ') : ''
    lines.setPrompt(prompt)
    if (asked) {
      note(paint('dim', `${name} listens; Ctrl-D ends the conversation`, process.stderr))
      lines.prompt()
    }
    let lineCount = 0
    let failed = false
    for await (const line of lines) {
      if (line.trim() !== '') {
        lineCount++
        answering = new AbortController()
        const { signal } = answering
        const saying = withHints(flags, () => say(flags, name, line, headers, signal))
        const said = await saying.catch((error: unknown) => {
          // On a terminal the conversation goes on: what failed once may come back.
          if (!asked || !(error instanceof CommandError)) {
            lines.close()
            throw error
          }
          note(`${paint('red', 'error:', process.stderr)} ${error.message}`)
          return false
        })
        failed ||= !said && !answering.signal.aborted
        answering = null
        if (failed && !asked) break
      }
      if (asked) lines.prompt()
    }
    lines.close()
    if (lineCount === 0 && !asked) note('nothing was asked: no line came on standard input')
    return failed && !asked ? 1 : 0
  },
})

/** Answers whether the agent did. */
async function say(
  flags: InvokeFlags & { debug?: boolean | undefined; json?: boolean | undefined },
  name: string,
  inputs: string,
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<boolean> {
  const startedAt = performance.now()
  const invocation = {
    method: 'POST',
    path: '/',
    params: [['stream', 'true']] as [string, string][],
    headers,
    body: JSON.stringify({ inputs }),
    signal,
  }
  try {
    const { url, response } = await invoke(flags, runningKind('agent'), name, invocation)
    if (flags.debug) note(requestLine('POST', url, response, performance.now() - startedAt))
    if (flags.json) {
      let answer = ''
      for await (const piece of spokenText(response)) answer += piece
      print(JSON.stringify({ inputs, status: response.status, answer }))
      return response.ok
    }
    if (!response.ok) {
      const said = (await platformRefusal(response)) ?? spokenAnswer(await response.text())
      note(`${paint('red', 'error:', process.stderr)} ${response.status}: ${said}`)
      return false
    }
    if (isStream(response) || (response.headers.get('content-type') ?? '').startsWith('text/plain')) {
      for await (const piece of spokenText(response)) process.stdout.write(piece)
      process.stdout.write('\n')
    } else process.stdout.write(`${spokenAnswer(await response.text())}\n`)
    return true
  } catch (error) {
    if (!signal.aborted) throw error
    process.stdout.write('\n')
    return false
  }
}
