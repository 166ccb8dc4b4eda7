import { type FSWatcher, readdirSync, watch } from 'node:fs'
import { extname, join } from 'node:path'

/** What nobody writes by hand. */
const ignored = new Set([
  ...['node_modules', 'dist', 'build', '.git', '.venv', 'venv', '__pycache__', '.next', '.blaxel', '.cache'],
])
/** A program may write files of its own next to its sources; only these are sources. */
const sources = new Set([
  ...['.ts', '.tsx', '.mts', '.cts', '.js', '.jsx', '.mjs', '.cjs', '.json', '.py', '.toml', '.yaml', '.yml'],
])
const directoriesMax = 2_000
/** An editor and a version control system write more than once. */
const settleMs = 150

/** Calls `changed` once sources below the directories have changed, and been left alone for a moment. */
export class SourceWatch implements Disposable {
  readonly #watchers = new Map<string, FSWatcher>()
  readonly #changed: () => void
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor(directories: string[], changed: () => void) {
    this.#changed = changed
    for (const directory of directories) this.#add(directory)
  }

  /** Whether it is a folder, and a new one. */
  #add(directory: string): boolean {
    if (this.#watchers.size >= directoriesMax || this.#watchers.has(directory)) return false
    try {
      const watcher = watch(directory, (_event, name) => this.#see(directory, String(name ?? '')))
      watcher.on('error', () => this.#forget(directory))
      this.#watchers.set(directory, watcher)
      for (const entry of readdirSync(directory, { withFileTypes: true })) {
        if (entry.isDirectory() && !ignored.has(entry.name)) this.#add(join(directory, entry.name))
      }
      return true
    } catch {
      // It is a file, or went while it was looked at.
      this.#forget(directory)
      return false
    }
  }

  #see(directory: string, name: string): void {
    if (ignored.has(name)) return
    const isSource = sources.has(extname(name)) || name.startsWith('.env')
    if (!isSource) {
      // Perhaps a folder that is new.
      if (extname(name) === '' && name !== '' && this.#add(join(directory, name))) this.#settle()
      return
    }
    this.#settle()
  }

  #settle(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#changed, settleMs)
  }

  #forget(directory: string): void {
    this.#watchers.get(directory)?.close()
    this.#watchers.delete(directory)
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    for (const watcher of this.#watchers.values()) watcher.close()
    this.#watchers.clear()
  }
}
