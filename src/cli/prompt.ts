import { createInterface } from 'node:readline/promises'
import { UsageError } from './command.ts'
import { note, paint } from './output.ts'

const triesMax = 5
const interruptedExitCode = 130

/** Whether somebody sits there who can be asked. */
export function canAsk(): boolean {
  return Boolean(process.stdin.isTTY && process.stderr.isTTY)
}

/** Asks for a line; an empty one is `preset`. Questions go to stderr, so that they never mix with output. */
export async function ask(question: string, preset = ''): Promise<string> {
  const lines = createInterface({ input: process.stdin, output: process.stderr })
  lines.on('SIGINT', () => process.exit(interruptedExitCode))
  const gone = new AbortController()
  lines.on('close', () => gone.abort())
  try {
    const shown = preset === '' ? '' : paint('dim', ` (${preset})`, process.stderr)
    const answer = await lines.question(`${question}${shown}: `, { signal: gone.signal })
    return answer.trim() || preset
  } catch (error) {
    if (gone.signal.aborted) throw new UsageError(`there was no answer to "${question}"`)
    throw error
  } finally {
    lines.close()
  }
}

/** Asks which of a few, by number or by name; the first is the preset. @throws UsageError after a few wrong answers */
export async function choose(question: string, choices: { name: string; about: string }[]): Promise<string> {
  const width = Math.max(...choices.map(({ name }) => name.length))
  choices.forEach(({ name, about }, index) => {
    note(`  ${index + 1}  ${name.padEnd(width)}  ${paint('dim', about, process.stderr)}`)
  })
  for (let tries = 0; tries < triesMax; tries++) {
    const answer = (await ask(question, choices[0]?.name)).toLowerCase()
    const chosen = choices[Number(answer) - 1] ?? choices.find(({ name }) => name.toLowerCase() === answer)
    if (chosen) return chosen.name
    note(`${JSON.stringify(answer)} is none of ${choices.map(({ name }) => name).join(', ')}`)
  }
  throw new UsageError(`"${question}" wants one of ${choices.map(({ name }) => name).join(', ')}`)
}

/** Asks for a line that is not shown, such as a key. */
export async function askSecret(question: string): Promise<string> {
  process.stderr.write(`${question}: `)
  const { stdin } = process
  stdin.setRawMode(true)
  const decoder = new TextDecoder()
  let typed = ''
  try {
    for await (const chunk of stdin as AsyncIterable<Uint8Array>) {
      for (const character of decoder.decode(chunk, { stream: true })) {
        if (character === '\r' || character === '\n') return typed.trim()
        if (character === '\x03') process.exit(interruptedExitCode)
        if (character === '\x04') return typed.trim()
        typed = character === '\x7f' || character === '\b' ? typed.slice(0, -1) : typed + character
      }
    }
    return typed.trim()
  } finally {
    stdin.setRawMode(false)
    stdin.pause()
    process.stderr.write('\n')
  }
}
