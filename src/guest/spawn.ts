import { PlatformError } from '../errors.ts'
import { outputBytesMaxDefault, type SpawnSpec } from '../spec/guest.ts'
import { processIdMax } from './codec.ts'
import { printable } from './errno.ts'
import { FrameTooLargeError, FrameType, FrameWriter } from './frame.ts'

const spawnFlags = { stdin: 1, pty: 2 }

/** The frame that starts a program. @throws bad_request naming what cannot be sent */
export function spawnFrame(spec: SpawnSpec, workingDir: string): Uint8Array {
  if (!Number.isInteger(spec.id) || spec.id < 1 || spec.id > processIdMax) {
    throw new PlatformError('bad_request', `process id ${spec.id} is not between 1 and 2^31`)
  }
  const [program] = spec.argv
  if (program === undefined || program === '')
    throw new PlatformError('bad_request', 'there is no program to start')
  if (spec.pty) checkTerminal(spec.pty.cols, spec.pty.rows)
  const env = Object.entries(spec.env).map(([name, value]) => {
    if (name === '' || name.includes('=')) {
      throw new PlatformError('bad_request', `${quoted(name)} is not a name of an environment variable`)
    }
    return `${name}=${value}`
  })
  for (const [field, values] of [
    ['working directory', [workingDir]],
    ['argument', spec.argv],
    ['environment variable', env],
  ] as const) {
    if (values.some((value) => value.includes('\0')))
      throw new PlatformError('bad_request', `${field} contains NUL`)
  }
  const flags = (spec.stdin === 'pipe' ? spawnFlags.stdin : 0) | (spec.pty ? spawnFlags.pty : 0)
  try {
    return new FrameWriter(FrameType.spawn, spec.id, 1024)
      .u32(flags)
      .u32(spec.uid ?? 0)
      .u32(spec.gid ?? 0)
      .u16(spec.pty?.cols ?? 0)
      .u16(spec.pty?.rows ?? 0)
      .u64(spec.outputBytesMax ?? outputBytesMaxDefault)
      .str(workingDir)
      .strings(spec.argv)
      .strings(env)
      .finish()
  } catch (error) {
    if (!(error instanceof FrameTooLargeError)) throw error
    throw new PlatformError('bad_request', 'arguments and environment are longer than 1 MiB together')
  }
}

/** @throws bad_request for a size that no terminal has */
export function checkTerminal(cols: number, rows: number) {
  for (const [field, value] of [
    ['cols', cols],
    ['rows', rows],
  ] as const) {
    if (!Number.isInteger(value) || value < 1 || value > 65_535) {
      throw new PlatformError('bad_request', `${field} ${value} of the terminal is not between 1 and 65535`)
    }
  }
}

/** A program's name, fit for a message. */
export function quoted(text: string | undefined): string {
  return JSON.stringify(printable((text ?? '').slice(0, 200)))
}
