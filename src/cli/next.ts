import { sameTarget, type Target } from './command.ts'
import { note, paint } from './output.ts'
import { spelled } from './shell.ts'

/** What somebody is likely to type next, with the flags that reach the same platform and workspace. */
export function noteNext(line: string, flags: Target): void {
  note(paint('dim', `next: ${spelled(sameTarget(line, flags))}`, process.stderr))
}
