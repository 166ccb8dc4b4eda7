import { createInterface } from 'node:readline/promises'
import { Writable } from 'node:stream'
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
  const shown = preset === '' ? '' : paint('dim', ` (${preset})`, process.stderr)
  return (await line(`${question}${shown}: `, process.stderr, question)) || preset
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
  const hidden = new Writable({ write: (_chunk, _encoding, done) => done() })
  try {
    return await line('', hidden, question, () => process.stderr.write(`${question}: `))
  } finally {
    process.stderr.write('\n')
  }
}

/** `ready`: from now on the terminal shows nothing by itself. */
async function line(
  prompt: string,
  output: NodeJS.WritableStream,
  question: string,
  ready: () => void = () => {},
): Promise<string> {
  const lines = createInterface({ input: process.stdin, output, terminal: true })
  ready()
  lines.on('SIGINT', () => process.exit(interruptedExitCode))
  const gone = new AbortController()
  lines.on('close', () => gone.abort())
  try {
    return (await lines.question(prompt, { signal: gone.signal })).trim()
  } catch (error) {
    if (gone.signal.aborted) throw new UsageError(`there was no answer to "${question}"`)
    throw error
  } finally {
    lines.close()
  }
}
