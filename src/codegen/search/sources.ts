import { PlatformError } from '../../errors.ts'
import type { FileEntry, GuestFiles } from '../../spec/guest.ts'
import { ignoredIn } from './ignored.ts'

/** A file that is worth a look. Path absolute, inside the sandbox. */
export interface Source {
  path: string
  size: number
  modifiedMs: number
}

/** Larger ones are data, or made by programs. */
const sourceBytesMax = 512 * 1024
const sourcesMax = 20_000
const entriesMax = 200_000
const depthMax = 40

/** Made by tools, or not of this project. */
const excludedDirectories = (
  'node_modules vendor dist build target out coverage __pycache__ venv env site-packages bower_components ' +
  'jspm_packages Pods DerivedData obj'
).split(' ')
/** At the root of a machine that is its own workspace. */
const systemDirectories = 'bin boot dev etc lib lib32 lib64 media mnt proc run sbin sys usr var'
  .split(' ')
  .map((name) => `/${name}`)

const excludedNames =
  /^(?:package-lock\.json|npm-shrinkwrap\.json|yarn\.lock|pnpm-lock\.yaml|bun\.lockb?|Cargo\.lock|poetry\.lock|uv\.lock|composer\.lock|Gemfile\.lock|go\.sum)$|\.min\.(?:js|css|mjs)$|\.(?:map|snap)$/i
const binaryNames =
  /\.(?:png|jpe?g|gif|webp|avif|ico|bmp|tiff?|pdf|zip|gz|tgz|bz2|xz|zst|7z|rar|tar|jar|war|class|o|a|so|dylib|dll|exe|bin|wasm|pyc|pyo|woff2?|ttf|otf|eot|mp[34]|m4[av]|webm|mov|avi|wav|ogg|flac|sqlite3?|db|parquet|npy|npz|pt|onnx|safetensors|pkl|iso|img|deb|rpm|apk|ipa|psd)$/i

/**
 * Text files below a directory that people wrote, shallow ones first. What is hidden, a link, made by tools, or ignored by
 * a .gitignore of the project is left out. `complete`: the limits were not met.
 */
export async function sourcesBelow(
  files: GuestFiles,
  { root, project }: { root: string; project: string },
  signal: AbortSignal,
): Promise<{ sources: Source[]; complete: boolean }> {
  const sources: Source[] = []
  const below = root === '/' ? '/' : `${root}/`
  const known = root === '/' ? [...excludedDirectories, ...systemDirectories] : excludedDirectories
  const ignored = await ignoredIn(
    files,
    { directory: root, project },
    { excludeDirectories: known, depthMax, signal },
  )
  const walk = files.walk(root, {
    types: 'files',
    depthMax,
    resultsMax: entriesMax,
    excludeHidden: true,
    excludeDirectories: [...known, ...ignored.excludeDirectories],
    signal,
  })
  for (;;) {
    const { done, value } = await walk.next()
    if (done) return { sources, complete: !value.truncated && !ignored.incomplete }
    for (const entry of value) {
      if (!isSource(entry) || ignored.has(entry.name)) continue
      sources.push({ path: below + entry.name, size: entry.size, modifiedMs: entry.modifiedMs })
      if (sources.length < sourcesMax) continue
      await walk.return({ entries: 0, bytes: 0, skipped: 0, truncated: true })
      return { sources, complete: false }
    }
  }
}

function isSource({ name: path, type, size }: FileEntry): boolean {
  if (type !== 'file' || size === 0 || size > sourceBytesMax) return false
  const name = path.slice(path.lastIndexOf('/') + 1)
  return !binaryNames.test(name) && !excludedNames.test(name)
}

const binaryLookBytes = 8192
const machineLineBytes = 400
const machineFileBytesMin = 20_000

/** The bytes of a text that people wrote; null for what is binary, packed into few lines, or not there any more. */
export async function readSource(
  files: GuestFiles,
  path: string,
  signal: AbortSignal,
): Promise<Uint8Array<ArrayBuffer> | null> {
  try {
    const { body } = await files.read(path, { offset: 0, length: sourceBytesMax })
    const chunks: Uint8Array[] = []
    let bytes = 0
    for await (const chunk of body) {
      signal.throwIfAborted()
      bytes += chunk.length
      if (bytes > sourceBytesMax) return null
      chunks.push(chunk)
    }
    // A copy of its own, which can be handed to another thread.
    const whole = new Uint8Array(bytes)
    let at = 0
    for (const chunk of chunks) {
      whole.set(chunk, at)
      at += chunk.length
    }
    if (whole.subarray(0, binaryLookBytes).includes(0)) return null
    if (bytes >= machineFileBytesMin && bytes / linesIn(whole) > machineLineBytes) return null
    return whole
  } catch (error) {
    signal.throwIfAborted()
    if (PlatformError.is(error) && !error.retryable) return null
    throw error
  }
}

function linesIn(bytes: Uint8Array): number {
  let lines = 1
  for (let at = bytes.indexOf(10); at !== -1; at = bytes.indexOf(10, at + 1)) lines++
  return lines
}
