import { constants } from 'node:os'
import type { PlatformError } from '../../errors.ts'
import { fileError } from '../../guest/index.ts'
import type {
  FileChange,
  FileEntry,
  FileToWrite,
  FileType,
  GuestFiles,
  LineMatch,
  SearchOptions,
  TreeSummary,
  WalkOptions,
  WatchOptions,
} from '../../spec/guest.ts'
import { SimpleTrees } from './trees.ts'

type Node = { mode: number; modifiedMs: number; uid?: number; gid?: number } & (
  | { type: 'directory'; children: Map<string, Node> }
  | { type: 'file'; data: Uint8Array }
  | { type: 'symlink'; target: string }
)

const linksMax = 40

/** A file system in memory. */
export class FakeFiles implements GuestFiles {
  #root: Node = { type: 'directory', mode: 0o755, modifiedMs: 0, children: new Map() }

  #trees = new SimpleTrees(this)

  constructor(
    private readonly now: () => number,
    private readonly bytesMax: number,
  ) {}

  /** The same files, which change on their own from then on. */
  duplicate(): FakeFiles {
    const copy = new FakeFiles(this.now, this.bytesMax)
    copy.#root = copyOf(this.#root)
    return copy
  }

  async stat(path: string, options: { follow?: boolean } = {}): Promise<FileEntry> {
    const { node, name } = this.#find(path, options.follow !== false)
    return entry(name, node)
  }

  async *list(path: string): AsyncGenerator<FileEntry[]> {
    const { node } = this.#find(path, true)
    if (node.type !== 'directory') throw failed('ENOTDIR', path)
    yield [...node.children].map(([name, child]) => entry(name, child))
  }

  async read(path: string, range: { offset?: number; length?: number } = {}) {
    const { node, name } = this.#find(path, true)
    if (node.type === 'directory') throw failed('EISDIR', path)
    if (node.type !== 'file') throw failed('EINVAL', path)
    const from = range.offset ?? 0
    const bytes = node.data.slice(from, range.length === undefined ? undefined : from + range.length)
    return { entry: entry(name, node), body: new Blob([bytes]).stream() as ReadableStream<Uint8Array> }
  }

  async write(
    path: string,
    body: ReadableStream<Uint8Array> | Uint8Array,
    options: { mode?: number; newFileMode?: number } = {},
  ): Promise<FileEntry> {
    checkPath(path)
    const data = body instanceof Uint8Array ? body.slice() : await bytesOf(body)
    if (this.usedBytes() + data.length > this.bytesMax) throw failed('ENOSPC', path)
    const { parent, name, node } = this.#resolve(path, true, true)
    if (!parent || node?.type === 'directory') throw failed('EISDIR', path)
    const file: Node = {
      type: 'file',
      data,
      mode: options.mode ?? node?.mode ?? options.newFileMode ?? 0o644,
      modifiedMs: this.now(),
    }
    parent.children.set(name, file)
    const { real } = this.#find(path, true)
    if (!node) this.#trees.changed('created', real, false)
    this.#trees.changed('written', real, false)
    return entry(name, file)
  }

  async makeDirectory(path: string, options: { mode?: number; parents?: boolean } = {}): Promise<void> {
    const { parent, name, node } = this.#resolve(path, false, options.parents === true)
    if (node) {
      if (options.parents && this.#resolve(path, true, false).node?.type === 'directory') return
      throw failed('EEXIST', path)
    }
    if (!parent) throw failed('ENOENT', path)
    parent.children.set(name, directory(options.mode ?? 0o755, this.now()))
    this.#trees.changed('created', this.#find(path, true).real, true)
  }

  async remove(path: string, options: { recursive?: boolean } = {}): Promise<void> {
    const { parent, name, node, real } = this.#resolve(path, false, false)
    if (!node) throw failed('ENOENT', path)
    if (!parent) throw failed('EBUSY', path)
    if (node.type === 'directory' && node.children.size > 0 && !options.recursive)
      throw failed('ENOTEMPTY', path)
    parent.children.delete(name)
    this.#trees.changed('removed', real, node.type === 'directory')
  }

  async rename(from: string, to: string): Promise<void> {
    const source = this.#resolve(from, false, false)
    if (!source.node || !source.parent) throw failed('ENOENT', from)
    const target = this.#resolve(to, false, false)
    if (!target.parent) throw failed('ENOENT', to)
    if (target.node?.type === 'directory' && target.node.children.size > 0) throw failed('ENOTEMPTY', to)
    source.parent.children.delete(source.name)
    target.parent.children.set(target.name, source.node)
    const isDirectory = source.node.type === 'directory'
    this.#trees.changed('renamed', source.real, isDirectory)
    this.#trees.changed('created', target.real, isDirectory)
  }

  async setMode(path: string, mode: number): Promise<void> {
    const { node, real } = this.#find(path, true)
    node.mode = mode
    this.#trees.changed('attributes', real, node.type === 'directory')
  }

  async setOwner(
    path: string,
    owner: { uid?: number; gid?: number },
    options: { follow?: boolean } = {},
  ): Promise<void> {
    const { node } = this.#find(path, options.follow !== false)
    node.uid = owner.uid ?? node.uid ?? 0
    node.gid = owner.gid ?? node.gid ?? 0
  }

  concatenate(
    parts: readonly string[],
    path: string,
    options?: { mode?: number; newFileMode?: number },
  ): Promise<FileEntry> {
    return this.#trees.concatenate(parts, path, options)
  }

  writeAll(files: readonly FileToWrite[]): Promise<void> {
    return this.#trees.writeAll(files)
  }

  walk(path: string, options?: WalkOptions): AsyncGenerator<FileEntry[], TreeSummary> {
    return this.#trees.walk(path, options)
  }

  search(path: string, options: SearchOptions): AsyncGenerator<LineMatch[], TreeSummary> {
    return this.#trees.search(path, options)
  }

  watch(path: string, options?: WatchOptions): Promise<AsyncGenerator<FileChange[]>> {
    return this.#trees.watch(path, options)
  }

  copy(
    from: string,
    to: string,
    options?: { exclusive?: boolean; signal?: AbortSignal },
  ): Promise<TreeSummary> {
    return this.#trees.copy(from, to, options)
  }

  move(from: string, to: string, options?: { exclusive?: boolean }): Promise<void> {
    return this.#trees.move(from, to, options)
  }

  async realPath(path: string): Promise<string> {
    return this.#find(path, true).real
  }

  usedBytes(node: Node = this.#root): number {
    if (node.type === 'file') return node.data.length
    if (node.type === 'symlink') return 0
    return [...node.children.values()].reduce((sum, child) => sum + this.usedBytes(child), 0)
  }

  /** For programs: `ln -s`. */
  link(target: string, path: string): void {
    const { parent, name, node } = this.#resolve(path, false, false)
    if (!parent) throw failed('ENOENT', path)
    if (node) throw failed('EEXIST', path)
    parent.children.set(name, { type: 'symlink', target, mode: 0o777, modifiedMs: this.now() })
  }

  #find(path: string, follow: boolean) {
    const found = this.#resolve(path, follow, false)
    if (!found.node) throw failed('ENOENT', path)
    return { ...found, node: found.node }
  }

  /** The node, its parent (null for the root), and its path without links; missing parents are made on demand. */
  #resolve(path: string, follow: boolean, makeParents: boolean) {
    checkPath(path)
    let pending = path.split('/').filter((name) => name !== '' && name !== '.')
    let trail: { name: string; node: Node & { type: 'directory' } }[] = []
    let links = 0
    const at = () => trail.at(-1)?.node ?? (this.#root as Node & { type: 'directory' })
    for (;;) {
      const name = pending.shift()
      if (name === undefined) break
      if (name === '..') {
        trail.pop()
        continue
      }
      const parent = at()
      const last = pending.length === 0
      const child = parent.children.get(name)
      if (child?.type === 'symlink' && (!last || follow)) {
        if (++links > linksMax) throw failed('ELOOP', path)
        pending = [...child.target.split('/').filter((part) => part !== '' && part !== '.'), ...pending]
        if (child.target.startsWith('/')) trail = []
        continue
      }
      if (last) {
        const real = `/${[...trail.map((step) => step.name), name].join('/')}`
        return { parent, name, node: child, real }
      }
      if (child && child.type !== 'directory') throw failed('ENOTDIR', path)
      if (!child && !makeParents) throw failed('ENOENT', path)
      const next = child ?? directory(0o755, this.now())
      parent.children.set(name, next)
      trail.push({ name, node: next })
      if (!child) this.#trees.changed('created', `/${trail.map((step) => step.name).join('/')}`, true)
    }
    const real = `/${trail.map((step) => step.name).join('/')}`
    const own = trail.pop()
    return { parent: own ? at() : null, name: own?.name ?? '/', node: own?.node ?? this.#root, real }
  }
}

function directory(mode: number, modifiedMs: number): Node & { type: 'directory' } {
  return { type: 'directory', mode, modifiedMs, children: new Map() }
}

function entry(name: string, node: Node): FileEntry {
  const size = node.type === 'file' ? node.data.length : node.type === 'symlink' ? node.target.length : 0
  const type: FileType = node.type
  const { mode, modifiedMs } = node
  const { uid = 0, gid = 0 } = node
  const common = { name, type, mode, uid, gid, size, modifiedMs, links: 1 }
  return node.type === 'symlink' ? { ...common, linkTarget: node.target } : common
}

function checkPath(path: string) {
  if (!path.startsWith('/') || path.includes('\0')) throw failed('ENAMETOOLONG', path.replaceAll('\0', ''))
}

function failed(name: keyof typeof constants.errno, path: string): PlatformError {
  return fileError(constants.errno[name], path, '')
}

function copyOf(node: Node): Node {
  if (node.type !== 'directory') return { ...node }
  return { ...node, children: new Map([...node.children].map(([name, child]) => [name, copyOf(child)])) }
}

/** Copied as it comes: whose chunks these are may free each before the next. */
async function bytesOf(body: ReadableStream<Uint8Array>): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = []
  for await (const chunk of body) chunks.push(chunk.slice())
  return new Uint8Array(Buffer.concat(chunks))
}
