import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { capture } from './capture.ts'

/** Makes dist/hutch-helper, the native launcher, keeper and guest. */

const root = join(import.meta.dir, '..')
const sourceDir = join(root, 'src', 'guest')
const helperPath = join(root, 'dist', 'hutch-helper')
const stampPath = join(root, 'dist', 'hutch-helper.json')
/** With the larger of the C libraries; musl makes an eighth of it. */
const helperBytesMax = 1_100_000
/** Programs of their own, not parts of the helper. */
const otherPrograms = ['fuzz.c']

const flags = [
  '-std=gnu11',
  '-Os',
  '-Wall',
  '-Wextra',
  '-fstack-protector-strong',
  '-ffunction-sections',
  '-fdata-sections',
  // Nothing here unwinds its stack.
  '-fno-unwind-tables',
  '-fno-asynchronous-unwind-tables',
  '-Wl,--no-eh-frame-hdr',
  '-Wl,--gc-sections',
  '-Wl,-z,relro,-z,now,-z,noexecstack',
  '-s',
]

export interface HelperBuild {
  path: string
  /** Of the file, lower-case hexadecimal. */
  sha256: string
}

interface Compiler {
  command: string[]
  isMusl: boolean
}

let building: Promise<HelperBuild> | undefined

/** Compiles when a source, the compiler or the flags changed since the last time. */
export function buildHelper(): Promise<HelperBuild> {
  building ??= build()
  return building
}

async function build(): Promise<HelperBuild> {
  const compilers = findCompilers()
  const sources = sourceHash(compilers)
  const last = lastBuild(sources)
  if (last) return last
  mkdirSync(join(root, 'dist'), { recursive: true })
  const failures: string[] = []
  for (const compiler of compilers) {
    // Renamed into place: builds may run at the same time, and a running helper cannot be written to.
    const made = join(root, 'dist', `.hutch-helper-${process.pid}`)
    try {
      await compileHelper(compiler, made)
      const bytes = statSync(made).size
      if (bytes > helperBytesMax)
        throw new Error(`the helper has ${bytes} bytes, at most ${helperBytesMax} are wanted`)
      const sha256 = hashOf(readFileSync(made))
      renameSync(made, helperPath)
      const stamp = join(root, 'dist', `.hutch-helper-${process.pid}.json`)
      writeFileSync(stamp, JSON.stringify({ sources, sha256 }))
      renameSync(stamp, stampPath)
      return { path: helperPath, sha256 }
    } catch (error) {
      failures.push(`${compiler.command.join(' ')}: ${error instanceof Error ? error.message : error}`)
    } finally {
      rmSync(made, { force: true })
    }
  }
  throw new Error(`The native helper cannot be built.\n${failures.join('\n')}`)
}

/** Compiles src/guest to a static program. Exported for the test that wants it without a warning. */
export async function compileHelper(
  compiler: Compiler,
  output: string,
  extraFlags: string[] = [],
): Promise<void> {
  const headers = compiler.isMusl ? kernelHeaders() : undefined
  try {
    const include = headers ? ['-idirafter', headers] : []
    const files = sourceFiles('.c').map((name) => join(sourceDir, name))
    // Not every C library has the start-up code of a static program at a random address.
    let errors = ''
    for (const link of [['-static-pie', '-fPIE'], ['-static']]) {
      const result = await capture([
        ...compiler.command,
        ...flags,
        ...extraFlags,
        ...include,
        ...link,
        ...files,
        '-o',
        output,
      ])
      if (result.code === 0 && isStatic(output) && (await runs(output))) return
      errors = result.stderr || 'the program made is not static, or does not run'
    }
    throw new Error(errors)
  } finally {
    if (headers) rmSync(headers, { recursive: true, force: true })
  }
}

/** A program that names no interpreter: some wrappers take -static-pie for -pie. */
function isStatic(path: string): boolean {
  const elf = readFileSync(path)
  const [table, entryBytes, entries] = [
    Number(elf.readBigUInt64LE(32)),
    elf.readUInt16LE(54),
    elf.readUInt16LE(56),
  ]
  const interpreter = 3
  for (let i = 0; i < entries; i++) if (elf.readUInt32LE(table + i * entryBytes) === interpreter) return false
  return true
}

async function runs(path: string): Promise<boolean> {
  const result = await capture([path, 'version'])
  return result.code === 0
}

/** What to try, in order: musl makes the helper an eighth of the size, which every instance has in memory. */
export function findCompilers(): Compiler[] {
  const given = process.env.CC?.trim()
  if (given) return [{ command: given.split(/\s+/), isMusl: given.includes('musl') }]
  const found: Compiler[] = []
  if (onPath('musl-gcc') && kernelHeaderDirs()) found.push({ command: ['musl-gcc'], isMusl: true })
  const usual = ['cc', 'gcc', 'clang'].find(onPath)
  if (usual) found.push({ command: [usual], isMusl: false })
  if (found.length === 0) {
    throw new Error(
      'A C compiler is missing. Install one with: apt-get install -y gcc libc6-dev (musl-tools besides makes a smaller helper)',
    )
  }
  return found
}

function onPath(name: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some((dir) => {
    try {
      accessSync(join(dir, name), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

function kernelHeaderDirs(): Record<string, string> | undefined {
  const triplet = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`
  const places = {
    linux: ['/usr/include/linux'],
    'asm-generic': ['/usr/include/asm-generic'],
    asm: [`/usr/include/${triplet}/asm`, '/usr/include/asm'],
  }
  const dirs: Record<string, string> = {}
  for (const [name, candidates] of Object.entries(places)) {
    const dir = candidates.find((candidate) => existsSync(candidate))
    if (!dir) return undefined
    dirs[name] = dir
  }
  return dirs
}

/** musl comes without the kernel's headers; the rest of the system's must stay out of its sight. */
function kernelHeaders(): string {
  const dirs = kernelHeaderDirs()
  if (!dirs)
    throw new Error('the kernel headers are missing; install them with: apt-get install -y linux-libc-dev')
  const made = mkdtempSync(join(tmpdir(), 'hutch-headers-'))
  for (const [name, dir] of Object.entries(dirs)) symlinkSync(dir, join(made, name))
  return made
}

function sourceFiles(extension: string): string[] {
  return readdirSync(sourceDir)
    .filter((name) => name.endsWith(extension) && !otherPrograms.includes(name))
    .sort()
}

function sourceHash(compilers: Compiler[]): string {
  const hash = createHash('sha256')
  hash.update(JSON.stringify([compilers, flags, process.arch]))
  for (const name of [...sourceFiles('.c'), ...sourceFiles('.h')]) {
    hash
      .update(`${name}\0`)
      .update(readFileSync(join(sourceDir, name)))
      .update('\0')
  }
  hash.update(readFileSync(import.meta.path))
  return hash.digest('hex')
}

function lastBuild(sources: string): HelperBuild | undefined {
  if (!existsSync(stampPath) || !existsSync(helperPath)) return undefined
  const sha256 = hashOf(readFileSync(helperPath))
  return readFileSync(stampPath, 'utf8') === JSON.stringify({ sources, sha256 })
    ? { path: helperPath, sha256 }
    : undefined
}

function hashOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

if (import.meta.main) {
  try {
    const made = await buildHelper()
    process.stdout.write(`${made.path} ${made.sha256}\n`)
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}\n`)
    process.exit(1)
  }
}
