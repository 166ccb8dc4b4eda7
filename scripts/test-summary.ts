export interface Counts {
  passed: number
  failed: number
  skipped: number
}

const failuresMax = 50
const failureLinesMax = 200
const lineCharsMax = 2_000
// biome-ignore lint/suspicious/noControlCharactersInRegex: colours are taken out
const colours = /\x1b\[[0-9;]*m/g

/** Gathers, from the output of `bun test` given in pieces, what was printed of each test that failed. */
export class Failures {
  readonly texts: string[] = []
  #piece = ''
  #file = ''
  /** Since the last test: it belongs to the next one. */
  #lines: string[] = []
  #rulesLeft = 0
  #justKept = false
  #over = false

  push(piece: string): void {
    const lines = (this.#piece + piece).split('\n')
    this.#piece = (lines.pop() ?? '').slice(-lineCharsMax)
    for (const line of lines) this.#take(line.replace(colours, '').slice(-lineCharsMax))
  }

  #take(line: string): void {
    // Behind it the names are listed once more.
    this.#over ||= /^\d+ tests? (failed|skipped|todo):$/.test(line)
    if (this.#over) return
    // A test that took too long says so below its name.
    if (this.#justKept && line.startsWith('  ^ ')) this.texts.push(`${this.texts.pop()}\n${line}`)
    this.#justKept = false
    const file = /^(\S+\.test\.ts):$/.exec(line)?.[1]
    if (file) this.#file = file
    if (file || /^\((pass|skip|todo)\) /.test(line) || line === '# Unhandled error between tests') {
      this.#lines = []
      this.#rulesLeft = line.startsWith('#') ? 2 : 0
      return
    }
    this.#lines.push(line)
    if (this.#lines.length > failureLinesMax) this.#lines.shift()
    const errorEnds = this.#rulesLeft > 0 && /^-{20,}$/.test(line) && --this.#rulesLeft === 0
    // What a child process printed may stand before it in the same line.
    if (errorEnds || /\(fail\) .+ \[[\d.]+m?s\]$/.test(line)) this.#keep()
  }

  #keep(): void {
    this.#justKept = this.texts.length < failuresMax
    if (this.#justKept) this.texts.push(`${this.#file}:\n${this.#lines.join('\n').trim()}`)
    this.#lines = []
  }
}

/** The counts in the last summary block of `bun test`, or null when there is none. */
export function readSummary(output: string): Counts | null {
  const lines = output.replace(colours, '').split('\n')
  let end = lines.findLastIndex((line) => /^Ran \d+ tests? across \d+ files?\./.test(line))
  if (end === -1) return null
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 }
  let found = false
  let errors = 0
  while (--end >= 0) {
    const line = lines[end]!
    const match =
      /^\s*(\d+) (pass|fail|skip|todo|error|errors|filtered out|expect\(\) calls|snapshots.*)$/.exec(line)
    if (!match) {
      if (line.trim() === '' && !found) continue
      break
    }
    const count = Number(match[1])
    if (match[2] === 'pass') {
      counts.passed += count
      found = true
    } else if (match[2] === 'fail') counts.failed += count
    else if (match[2]!.startsWith('error')) errors += count
    else if (match[2] === 'skip' || match[2] === 'todo') counts.skipped += count
  }
  // An error outside a test is usually counted among the failures as well, but never missed.
  counts.failed = Math.max(counts.failed, errors)
  return found ? counts : null
}

export function addCounts(a: Counts, b: Counts): Counts {
  return { passed: a.passed + b.passed, failed: a.failed + b.failed, skipped: a.skipped + b.skipped }
}

export function countsLine(counts: Counts): string {
  return `${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`
}
