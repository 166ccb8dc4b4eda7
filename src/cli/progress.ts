import { note, paint, printable } from './output.ts'

const frames = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏']
const frameMs = 80

/**
 * What goes on, on stderr: on a terminal one line that turns with the time it took, and what was done above it; elsewhere a
 * line for each step.
 */
export class Progress implements Disposable {
  private step = ''
  private past = ''
  private startedAt = 0
  private frame = 0
  private readonly timer: Timer | null
  private readonly live: boolean

  /** `quiet`: says nothing at all. */
  constructor(private readonly quiet: boolean) {
    this.live = !quiet && process.stderr.isTTY === true && !process.env.CI && process.env.TERM !== 'dumb'
    this.timer = this.live ? setInterval(() => this.draw(), frameMs) : null
    this.timer?.unref()
  }

  /** Begins a step; the one before is done. `past`: how it is told of once it is done. */
  start(step: string, past = step): void {
    this.done()
    this.step = step
    this.past = past
    this.startedAt = performance.now()
    if (this.live) this.draw()
    else if (!this.quiet) note(`${step} ...`)
  }

  /** The step is done; `result` says more of it. */
  done(result = this.past): void {
    if (this.step === '') return
    const took = seconds(performance.now() - this.startedAt)
    this.erase()
    this.step = ''
    if (this.live)
      note(`${paint('green', '✓', process.stderr)} ${result} ${paint('dim', took, process.stderr)}`)
  }

  fail(): void {
    if (this.step === '') return
    this.erase()
    if (this.live) note(`${paint('red', '✗', process.stderr)} ${this.step}`)
    this.step = ''
  }

  /** The step goes on, and nobody looks any more. */
  leave(): void {
    this.erase()
    this.step = ''
  }

  /** A line of what is built or said, under the step that goes on. */
  line(text: string): void {
    if (this.quiet) return
    this.erase()
    note(this.live ? paint('dim', `  ${printable(text)}`, process.stderr) : `  ${printable(text)}`)
    this.draw()
  }

  [Symbol.dispose](): void {
    if (this.timer) clearInterval(this.timer)
    this.erase()
  }

  private draw(): void {
    if (!this.live || this.step === '') return
    const frame = frames[this.frame++ % frames.length] ?? ''
    const took = seconds(performance.now() - this.startedAt)
    const text = `${frame} ${this.step} ${took}`.slice(0, (process.stderr.columns || 80) - 1)
    process.stderr.write(`\r\x1b[2K${text}`)
  }

  private erase(): void {
    if (this.live && this.step !== '') process.stderr.write('\r\x1b[2K')
  }
}

export function seconds(ms: number): string {
  return ms < 10_000 ? `${(ms / 1000).toFixed(1)}s` : `${Math.round(ms / 1000)}s`
}
