import { constants } from 'node:os'
import { PlatformError } from '../../errors.ts'
import { fileError } from '../../guest/index.ts'
import {
  compiled,
  compileGlobs,
  compileIgnored,
  compileLinePattern,
  Matcher,
} from '../../lib/patterns/index.ts'
import {
  type ConcatenateOptions,
  type FileChange,
  type FileEntry,
  type FileToWrite,
  type GuestFiles,
  type LineMatch,
  type SearchOptions,
  type TreeFilter,
  type TreeSummary,
  type WalkOptions,
  type WatchOptions,
  watchesMax,
} from '../../spec/guest.ts'

const waitingMax = 10_000

type BasicFiles = Pick<
  GuestFiles,
  'stat' | 'list' | 'read' | 'write' | 'makeDirectory' | 'remove' | 'rename' | 'realPath'
>

/** What a driver can do about whole trees once it can do everything else, without speed. */
export class SimpleTrees {
  #watchers = new Set<(kind: FileChange['kind'], path: string, directory: boolean) => void>()

  constructor(private readonly files: BasicFiles) {}

  async writeAll(files: readonly FileToWrite[]): Promise<void> {
    for (const { path, data, ...options } of files) await this.files.write(path, data, options)
  }

  async concatenate(
    parts: readonly string[],
    path: string,
    { spend = false, ...options }: ConcatenateOptions = {},
  ): Promise<FileEntry> {
    const contents: Uint8Array[] = []
    for (const part of parts) {
      contents.push(await new Response((await this.files.read(part)).body).bytes())
      if (spend) await this.files.remove(part)
    }
    return await this.files.write(path, Buffer.concat(contents), options)
  }

  async *walk(path: string, options: WalkOptions = {}): AsyncGenerator<FileEntry[], TreeSummary> {
    const { types = 'all', depthMax = 0, resultsMax = Number.POSITIVE_INFINITY, details = true } = options
    const test = filterOf(options)
    const summary: TreeSummary = { entries: 0, bytes: 0, skipped: 0, truncated: false }
    let listed = 0
    const pending = [{ path: '', depth: 1 }]
    for (let dir = pending.shift(); dir; dir = pending.shift()) {
      options.signal?.throwIfAborted()
      const entries: FileEntry[] = []
      try {
        for await (const batch of this.files.list(joined(path, dir.path))) entries.push(...batch)
      } catch (error) {
        if (dir.path === '') throw error
        summary.skipped++
      }
      const found: FileEntry[] = []
      for (const entry of entries.sort(byName)) {
        summary.entries++
        const below = dir.path === '' ? entry.name : `${dir.path}/${entry.name}`
        const isDirectory = entry.type === 'directory'
        const tested = test(below, entry.name, isDirectory)
        if (tested === 'out') continue
        if (tested === 'in' && types !== (isDirectory ? 'files' : 'directories')) {
          if (listed === resultsMax) {
            if (found.length > 0) yield found
            return { ...summary, truncated: true }
          }
          listed++
          found.push(details ? { ...entry, name: below } : { ...entry, ...withoutDetails, name: below })
        }
        if (isDirectory && (depthMax === 0 || dir.depth < depthMax)) {
          pending.push({ path: below, depth: dir.depth + 1 })
        }
      }
      if (found.length > 0) yield found
    }
    return summary
  }

  async *search(path: string, options: SearchOptions): AsyncGenerator<LineMatch[], TreeSummary> {
    const { program } = compiled('pattern', () =>
      compileLinePattern(options.pattern, {
        syntax: options.syntax,
        ignoreCase: options.ignoreCase ?? false,
      }),
    )
    const matcher = new Matcher(program)
    const summary: TreeSummary = { entries: 0, bytes: 0, skipped: 0, truncated: false }
    const { resultsMax = Number.POSITIVE_INFINITY } = options
    let found = 0
    for await (const name of this.#filesOf(path, options)) {
      options.signal?.throwIfAborted()
      const { body } = await this.files.read(joined(path, name))
      const bytes = Buffer.from(await new Response(body).arrayBuffer())
      summary.entries++
      summary.bytes += bytes.length
      if (!options.binary && bytes.includes(0)) continue
      for (const match of matchesIn(bytes, matcher, options)) {
        if (found++ === resultsMax) return { ...summary, truncated: true }
        yield [{ path: name, ...match }]
      }
    }
    return summary
  }

  async *#filesOf(path: string, options: TreeFilter): AsyncGenerator<string> {
    const entry = await this.files.stat(path)
    if (entry.type === 'file') return yield ''
    const { include, exclude, excludeDirectories, excludeHidden } = options
    const filter = { include, exclude, excludeDirectories, excludeHidden } as TreeFilter
    for await (const batch of this.walk(path, { ...filter, types: 'files' })) {
      for (const { name, type } of batch) if (type === 'file') yield name
    }
  }

  async watch(path: string, options: WatchOptions = {}): Promise<AsyncGenerator<FileChange[]>> {
    const program = compiled('ignore', () => compileIgnored(options.ignore ?? []))
    const ignored = program && new Matcher(program)
    const root = await this.files.realPath(path)
    const entry = await this.files.stat(root)
    if (entry.type !== 'directory') throw failed('ENOTDIR', path)
    options.signal?.throwIfAborted()
    if (this.#watchers.size >= watchesMax) {
      throw new PlatformError(
        'too_many_requests',
        `${watchesMax} watches are open, the most at once: end one first`,
      )
    }
    const waiting: FileChange[] = []
    let wake = () => {}
    const watcher = (kind: FileChange['kind'], changed: string, directory: boolean) => {
      const prefix = root === '/' ? '/' : `${root}/`
      if (!changed.startsWith(prefix)) return
      const below = changed.slice(prefix.length)
      if (!options.recursive && below.includes('/')) return
      if (ignored?.test(`${prefix}${below}`)) return
      if (waiting.length < waitingMax) waiting.push({ kind, directory, path: below })
      wake()
    }
    this.#watchers.add(watcher)
    const { signal } = options
    const abort = () => wake()
    signal?.addEventListener('abort', abort)
    const watchers = this.#watchers
    async function* changes() {
      try {
        for (;;) {
          signal?.throwIfAborted()
          if (waiting.length > 0) yield waiting.splice(0)
          else
            await new Promise<void>((resolve) => {
              wake = resolve
            })
        }
      } finally {
        watchers.delete(watcher)
        signal?.removeEventListener('abort', abort)
      }
    }
    return changes()
  }

  /** Tells whoever watches. */
  changed(kind: FileChange['kind'], path: string, directory: boolean): void {
    for (const watcher of this.#watchers) watcher(kind, path, directory)
  }

  async copy(
    from: string,
    to: string,
    options: { exclusive?: boolean; signal?: AbortSignal } = {},
  ): Promise<TreeSummary> {
    const source = await this.files.stat(from, { follow: false })
    const target = await this.#found(to)
    if (target && options.exclusive) throw failed('EEXIST', to)
    if (source.type !== 'directory') {
      if (target && (await this.files.realPath(from)) === (await this.files.realPath(to)))
        throw failed('EINVAL', to)
      return { entries: 1, bytes: await this.#copyFile(from, to), skipped: 0, truncated: false }
    }
    if (`${to}/`.startsWith(`${from}/`)) throw failed('EINVAL', to)
    await this.files.makeDirectory(to, { parents: true, mode: source.mode })
    const summary: TreeSummary = { entries: 0, bytes: 0, skipped: 0, truncated: false }
    for await (const batch of this.walk(from, options)) {
      for (const { name, type, mode } of batch) {
        summary.entries++
        const target = joined(to, name)
        if (type === 'directory') await this.files.makeDirectory(target, { parents: true, mode })
        else if (type === 'file') summary.bytes += await this.#copyFile(joined(from, name), target)
        else summary.skipped++
      }
    }
    return summary
  }

  async #copyFile(from: string, to: string): Promise<number> {
    const { entry, body } = await this.files.read(from)
    return (await this.files.write(to, body, { newFileMode: entry.mode & 0o777 })).size
  }

  async move(from: string, to: string, options: { exclusive?: boolean } = {}): Promise<void> {
    if (options.exclusive && (await this.#found(to))) throw failed('EEXIST', to)
    await this.files.rename(from, to)
  }

  async #found(path: string): Promise<FileEntry | null> {
    return this.files.stat(path, { follow: false }).catch(() => null)
  }
}

const withoutDetails = { mode: 0, uid: 0, gid: 0, size: 0, modifiedMs: 0, links: 0 }

function byName(a: FileEntry, b: FileEntry): number {
  return Buffer.compare(Buffer.from(a.name), Buffer.from(b.name))
}

function joined(dir: string, below: string): string {
  return below === '' ? dir : `${dir === '/' ? '' : dir}/${below}`
}

function filterOf(filter: TreeFilter) {
  const matcher = (field: 'include' | 'exclude' | 'excludeDirectories') => {
    const program = compiled(field, () => compileGlobs(filter[field] ?? []))
    return program && new Matcher(program)
  }
  const [include, exclude, prune] = [matcher('include'), matcher('exclude'), matcher('excludeDirectories')]
  return (path: string, name: string, isDirectory: boolean): 'in' | 'out' | 'unlisted' => {
    if (filter.excludeHidden && name.startsWith('.')) return 'out'
    if ((isDirectory && prune?.test(path)) || exclude?.test(path)) return 'out'
    return include && !include.test(path) ? 'unlisted' : 'in'
  }
}

function* matchesIn(
  bytes: Buffer,
  matcher: Matcher,
  { contextBefore = 0, contextAfter = 0 }: SearchOptions,
): Generator<Omit<LineMatch, 'path'>> {
  const lines: Buffer[] = []
  for (let from = 0; from < bytes.length; ) {
    const end = bytes.indexOf(10, from)
    lines.push(bytes.subarray(from, end === -1 ? undefined : end))
    from = end === -1 ? bytes.length : end + 1
  }
  const texts = lines.map((line) => line.toString().replace(/\r$/, ''))
  for (const [index, line] of lines.entries()) {
    const match = matcher.find(line)
    if (!match) continue
    yield {
      line: index + 1,
      column: match.start + 1,
      length: match.end - match.start,
      text: texts[index] ?? '',
      before: texts.slice(Math.max(0, index - contextBefore), index),
      after: texts.slice(index + 1, index + 1 + contextAfter),
    }
  }
}

function failed(name: keyof typeof constants.errno, path: string): PlatformError {
  return fileError(constants.errno[name], path, '')
}
