import { PlatformError } from '../../errors.ts'

const nameCharsMax = 256
/** What execve takes as one argument. */
const commandBytesMax = 128 * 1024 - 1

/** @throws unprocessable */
export function checkName(name: string): void {
  const problem =
    name.length > nameCharsMax
      ? `is ${name.length} characters long, at most ${nameCharsMax} are allowed`
      : /[/\0]/.test(name)
        ? "must not contain '/' or NUL"
        : null
  if (problem) throw new PlatformError('unprocessable', `name '${name.slice(0, 64)}' ${problem}`)
}

/** @throws unprocessable */
export function checkCommand(command: string): void {
  if (command.includes('\0')) throw new PlatformError('unprocessable', 'command must not contain NUL')
  const bytes = Buffer.byteLength(command)
  if (bytes > commandBytesMax) {
    throw new PlatformError(
      'unprocessable',
      `command is ${bytes} bytes long, at most ${commandBytesMax} can be run: write it to a file and run that`,
    )
  }
}
