import { PlatformError } from '../../errors.ts'
import type { FileEntry, GuestFiles } from '../../spec/runtime.ts'

/** A file that is worth a look. Path absolute, inside the sandbox. */
export interface Source {
  path: string
  size: number
  modifiedMs: number
}

/** Larger ones are data, or made by programs. */
export const sourceBytesMax = 512 * 1024
const sourcesMax = 20_000
const directoriesMax = 10_000
const depthMax = 40
const entriesMax = 400_000
const directoriesAtOnce = 8

/** Made by tools, or not of this project. */
const excludedDirectories = new Set(
  (
    'node_modules vendor dist build target out coverage __pycache__ venv env site-packages bower_components ' +
    'jspm_packages Pods DerivedData obj'
  ).split(' '),
)
/** At the root of a machine that is its own workspace. */
const systemDirectories = new Set(
  'bin boot dev etc lib lib32 lib64 media mnt proc run sbin sys usr var'.split(' '),
)

const excludedNames =
  /^(?:package-lock\.json|npm-shrinkwrap\.json|yarn\.lock|pnpm-lock\.yaml|bun\.lockb?|Cargo\.lock|poetry\.lock|uv\.lock|composer\.lock|Gemfile\.lock|go\.sum)$|\.min\.(?:js|css|mjs)$|\.(?:map|snap)$/i
const binaryNames =
  /\.(?:png|jpe?g|gif|webp|avif|ico|bmp|tiff?|pdf|zip|gz|tgz|bz2|xz|zst|7z|rar|tar|jar|war|class|o|a|so|dylib|dll|exe|bin|wasm|pyc|pyo|woff2?|ttf|otf|eot|mp[34]|m4[av]|webm|mov|avi|wav|ogg|flac|sqlite3?|db|parquet|npy|npz|pt|onnx|safetensors|pkl|iso|img|deb|rpm|apk|ipa|psd)$/i

/**
 * Text files below a directory that people wrote, shallow ones first. What is hidden, a link, or made by tools is left
 * out; a directory that cannot be read is as good as empty, except the first. `complete`: the limits were not met.
 */
export async function sourcesBelow(
  files: GuestFiles,
  root: string,
  signal: AbortSignal,
): Promise<{ sources: Source[]; complete: boolean }> {
  const sources: Source[] = []
  let level = [root]
  let directories = 0
  let entries = 0
  let complete = true
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > depthMax) return { sources, complete: false }
    const below: string[] = []
    const waiting = level
    const visit = async () => {
      for (let directory = waiting.shift(); directory !== undefined; directory = waiting.shift()) {
        if (++directories > directoriesMax || entries > entriesMax || sources.length >= sourcesMax) {
          complete = false
          return
        }
        try {
          for await (const batch of files.list(directory)) {
            signal.throwIfAborted()
            entries += batch.length
            for (const entry of batch) {
              const path = directory === '/' ? `/${entry.name}` : `${directory}/${entry.name}`
              if (entry.type === 'directory') {
                if (isWorthEntering(entry.name, directory)) below.push(path)
              } else if (isSource(entry))
                sources.push({ path, size: entry.size, modifiedMs: entry.modifiedMs })
            }
            if (entries > entriesMax) break
          }
        } catch (error) {
          if (depth === 0 || !PlatformError.is(error) || error.retryable) throw error
        }
      }
    }
    await Promise.all(Array.from({ length: directoriesAtOnce }, visit))
    if (!complete) break
    level = below.sort()
  }
  return { sources: sources.slice(0, sourcesMax), complete: complete && sources.length <= sourcesMax }
}

function isWorthEntering(name: string, parent: string): boolean {
  if (name.startsWith('.') || excludedDirectories.has(name)) return false
  return parent !== '/' || !systemDirectories.has(name)
}

function isSource({ name, type, size }: FileEntry): boolean {
  if (type !== 'file' || size === 0 || size > sourceBytesMax || name.startsWith('.')) return false
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
