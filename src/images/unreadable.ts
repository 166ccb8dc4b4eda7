import { PlatformError } from '../errors.ts'

/** What not everybody on the host may read: root inside would own it, and read it. */
const unreadable = ['(', '-type', 'd', '!', '-perm', '-005', '-o', '!', '-type', 'd', '!', '-type', 'l']
const unreadableTest = [...unreadable, '!', '-perm', '-004', ')']
const printedBytesMax = 16 * 1024 * 1024
/** Most of a first look is waiting for a disk, which answers many at once. */
const looksAtOnce = 8
/** Of directories, so that none has much more to do than the others, and programs are started seldom. */
const partsPerLook = 3

export interface LookOptions {
  /** What stands before the program, such as `nice`; then it looks at one thing after the other. */
  how: string[]
  /** A directory at the top that is not looked at. */
  without?: string
  signal: AbortSignal
}

/**
 * What not everybody may read below a directory, without what is below that, by path from there, one byte a character.
 * Other file systems in it are not looked at.
 * @throws unavailable, also when something went away meanwhile
 */
export async function unreadableBelow(
  root: string,
  { how, without, signal }: LookOptions,
): Promise<string[]> {
  const skipped = without === undefined ? [] : ['-path', `./${without}`, '-prune', '-o']
  const tests = [...unreadableTest, '-prune']
  const whole = async () => namesIn(await find(['.'], [...skipped, ...tests, '-print0'], root, how, signal))
  if (how.length > 0) return whole()
  // The first two levels, and what is to be looked into below them: with its file system, which has to be that of the top.
  const told = await find(
    ['.'],
    [
      ...['-maxdepth', '2', ...skipped, ...tests, '-printf', 'hidden %p\\0'],
      ...[
        '-o',
        '-path',
        '.',
        '-printf',
        '%D\\0',
        '-o',
        '-path',
        './*/*',
        '-type',
        'd',
        '-printf',
        '%D %p\\0',
      ],
    ],
    root,
    [],
    signal,
  )
  const [top = '', ...lines] = told.split('\0').slice(0, -1)
  if (top === 'hidden .') return ['.']
  const after = (mark: string) =>
    lines.filter((line) => line.startsWith(`${mark} ./`)).map((line) => line.slice(mark.length + 1))
  const directories = after(top)
  const found = after('hidden').map(withoutDot)
  // Arguments are text, and these names are bytes.
  if (directories.some((path) => Buffer.byteLength(path) !== path.length)) return whole()
  const partLength = Math.max(1, Math.ceil(directories.length / (looksAtOnce * partsPerLook)))
  const look = async () => {
    while (directories.length > 0) {
      const part = directories.splice(0, partLength)
      const printed = await find(part, ['-mindepth', '1', ...tests, '-print0'], root, [], signal)
      for (const path of namesIn(printed)) found.push(path)
    }
  }
  await Promise.all(Array.from({ length: looksAtOnce }, look))
  return found
}

/** Takes out of a copy what not everybody may read in it. `paths`, relative to `root`, must exist. */
export async function removeUnreadable(
  root: string,
  how: string[],
  paths: string[] = ['.'],
  signal?: AbortSignal,
): Promise<void> {
  await find(paths, [...unreadableTest, '-prune', '-exec', 'rm', '-rf', '--', '{}', '+'], root, how, signal)
}

function namesIn(printed: string): string[] {
  return printed.split('\0').slice(0, -1).map(withoutDot)
}

/** The directory itself is `.`. */
function withoutDot(path: string): string {
  return path.startsWith('./') ? path.slice('./'.length) : path
}

/** What it prints, one byte a character. */
async function find(
  paths: string[],
  tests: string[],
  root: string,
  how: string[],
  signal?: AbortSignal,
): Promise<string> {
  signal?.throwIfAborted()
  if (Bun.which('find') === null) {
    throw new PlatformError('unavailable', 'this host has no program find: sudo apt-get install -y findutils')
  }
  const child = Bun.spawn([...how, 'find', ...paths, '-xdev', ...tests], {
    cwd: root,
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    env: { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C' },
    ...(signal ? { signal } : {}),
  })
  const printed = (async () => {
    const chunks: Uint8Array[] = []
    let bytes = 0
    for await (const chunk of child.stdout) {
      bytes += chunk.length
      if (bytes <= printedBytesMax) chunks.push(chunk)
    }
    return bytes > printedBytesMax ? null : Buffer.concat(chunks).toString('latin1')
  })()
  const [code, errors, output] = await Promise.all([child.exited, new Response(child.stderr).text(), printed])
  signal?.throwIfAborted()
  if (code !== 0) {
    throw new PlatformError('unavailable', `what may be seen of ${root} could not be told (find failed)`, {
      cause: errors.slice(0, 2000),
    })
  }
  if (output === null) {
    throw new PlatformError('unavailable', `${root} has too many files that not everybody may read`)
  }
  return output
}
