import { PlatformError } from '../errors.ts'
import { isSecretName, redact } from '../lib/redact.ts'

export type LogStream = 'stdout' | 'stderr'

const lineCharsMax = 4096
const logLinesMax = 20_000
const logCharsMax = 4 * 1024 * 1024
/** Of a step that failed: what its message ends with. */
const tailLinesMax = 20
const tailCharsMax = 4000
/** Shorter ones are words that stand for themselves everywhere. */
const secretCharsMin = 6
const plainCharsMin = 12
const mark = '[redacted]'
/** Colours, cursor movements and the like. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what they are
const control = /\u001b\[[0-9;?]*[ -/]*[@-~]|\u001b\][^\u0007]*\u0007|[\u0000-\u0008\u000b-\u001f\u007f]/g

/** The log of a build: which step it is at, its lines without secrets, and what to say when it fails. */
export class Steps {
  readonly #onLine: (line: string, stream: LogStream) => void
  readonly #secrets: string[]
  #name = 'build'
  #tail: string[] = []
  #lines = 0
  #chars = 0

  constructor(options: { onLine(line: string, stream: LogStream): void; secrets: readonly string[] }) {
    this.#onLine = options.onLine
    this.#secrets = [...new Set(options.secrets.flatMap(spellings))].sort(
      (left, right) => right.length - left.length,
    )
  }

  /** What is done from here on, as a person would say it: "npm ci", "installing dependencies". */
  step(name: string): void {
    this.#name = name
    this.#tail = []
    this.line(`==> ${name}`, 'stdout')
    this.#tail = []
  }

  line(text: string, stream: LogStream): void {
    const line = this.#clean(text)
    this.#tail.push(line)
    if (this.#tail.length > tailLinesMax) this.#tail.shift()
    if (this.#lines > logLinesMax || this.#chars > logCharsMax) return
    this.#lines++
    this.#chars += line.length
    const isFull = this.#lines > logLinesMax || this.#chars > logCharsMax
    this.#onLine(isFull ? 'The log is full: the rest of the output is left out.' : line, stream)
  }

  /** For a step that failed: `how` is e.g. "exit code 1". */
  failed(how: string, hint = ''): PlatformError {
    let tail = this.#tail.filter((line) => line.trim() !== '').join('\n')
    if (tail.length > tailCharsMax) tail = `...${tail.slice(-tailCharsMax)}`
    const why = `the build failed at "${this.#name}": ${this.#clean(how)}`
    return new PlatformError('unprocessable', [why, hint, tail].filter((part) => part !== '').join('\n'))
  }

  #clean(text: string): string {
    // A carriage return paints over what stood there.
    const shown = text.replace(/\r+$/, '').split('\r').at(-1) ?? ''
    let line = shown.replace(control, '').slice(0, lineCharsMax)
    for (const secret of this.#secrets) line = line.replaceAll(secret, mark)
    return redact(line)
  }
}

/** Values of variables that nobody is to read: those named like secrets, and what is long enough to be one. */
export function secretsOf(variables: Record<string, string>): string[] {
  return Object.entries(variables)
    .filter(([name, value]) => value.length >= (isSecretName(name) ? secretCharsMin : plainCharsMin))
    .map(([, value]) => value)
}

/** A secret as it is, and in the forms that registries' clients write it. */
function spellings(secret: string): string[] {
  if (secret.length < secretCharsMin) return []
  return [secret, encodeURIComponent(secret), Buffer.from(secret).toString('base64').replace(/=+$/, '')]
}

/** Puts the lines of a stream together that come in pieces. */
export class LineReader {
  readonly #take: (line: string) => void
  readonly #decoder = new TextDecoder()
  #rest = ''

  constructor(take: (line: string) => void) {
    this.#take = take
  }

  /** Answers how many lines it took. */
  add(bytes: Uint8Array): number {
    const text = this.#rest + this.#decoder.decode(bytes, { stream: true })
    const lines = text.split('\n')
    this.#rest = lines.pop() ?? ''
    for (const line of lines) this.#take(line)
    // What never ends a line is no reason to keep all of it.
    if (this.#rest.length > lineCharsMax * 4) this.end()
    return lines.length
  }

  end(): void {
    const rest = this.#rest
    this.#rest = ''
    if (rest !== '') this.#take(rest)
  }
}
