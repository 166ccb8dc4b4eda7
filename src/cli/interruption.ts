import { sameTarget, type Target } from './command.ts'
import { note } from './output.ts'
import type { Progress } from './progress.ts'
import { spelled } from './shell.ts'

const interruptedExitCode = 130

/** Ctrl-C says what goes on without us. */
export class Interruption implements Disposable {
  /** Whether the platform knows of it already. */
  begun = false
  /** How to look at it afterwards, once it goes on by itself. */
  watch: string | null = null

  constructor(
    private readonly progress: Progress,
    private readonly target: Target,
  ) {
    process.on('SIGINT', this.#interrupted)
    process.on('SIGTERM', this.#interrupted)
  }

  readonly #interrupted = () => {
    this.progress.leave()
    if (this.watch !== null) note(`it goes on without us: ${spelled(sameTarget(this.watch, this.target))}`)
    else
      note(this.begun ? 'its code was not sent whole: what was there before stays' : 'nothing was deployed')
    process.exit(interruptedExitCode)
  };

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#interrupted)
    process.off('SIGTERM', this.#interrupted)
  }
}
