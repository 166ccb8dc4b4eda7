/** From a source archive to the files of a project: which entries count, what is left out, and the tar stream of the rest. */
import { dockerfileName } from '../lib/project-settings.ts'
import { shownPath } from '../lib/tar.ts'
import { type ArchiveType, walkArchive } from './archive.ts'
import { type ArchiveEntry, refused } from './entry.ts'
import { TarWriter } from './tar-writer.ts'

/** Files whose content matters to how something is built; larger ones are not looked into. */
const noticedBytesMax = 4 * 1024 * 1024
const lockBytesMax = 32 * 1024 * 1024
const noticedBytesInAllMax = 64 * 1024 * 1024
const noticedNames =
  /^(?:blaxel\.toml|\.dockerignore|\.env\.build|package\.json|package-lock\.json|npm-shrinkwrap\.json|pnpm-lock\.yaml|pnpm-workspace\.yaml|yarn\.lock|bun\.lock|bun\.lockb|bunfig\.toml|tsconfig\.json|\.npmrc|\.yarnrc|\.yarnrc\.yml|\.pypirc|\.netrc|pip\.conf|uv\.toml|uv\.lock|pyproject\.toml|setup\.py|setup\.cfg|[\w.-]*requirements[\w.-]*\.(?:txt|in)|[\w.-]*constraints[\w.-]*\.txt|\.python-version|\.nvmrc)$/
const lockNames =
  /^(?:package-lock\.json|npm-shrinkwrap\.json|pnpm-lock\.yaml|yarn\.lock|bun\.lockb?|uv\.lock)$/
/** Of the root, which decide how it is built: one that cannot be read is not passed over. */
const decidingNames =
  /^(?:blaxel\.toml|Dockerfile|\.dockerignore|\.env\.build|\.docker\/config\.json|package\.json|\.npmrc|\.yarnrc\.yml|bunfig\.toml|pnpm-workspace\.yaml|pyproject\.toml|requirements\.txt)$/
/** What a Python project may begin in. */
const entryNames = /^(?:main|server|app|api|index|agent|__main__)\.py$/
/** Left out wherever they are: secrets of the machine that the archive is from, and its history. */
const secretName = /^\.env/
const leftOutNames = new Set(['.git', '.hg', '.svn', '.DS_Store', '.pypirc', '.netrc'])

export interface TreeOptions {
  /** What else is left out, by path. */
  without?(path: string): boolean
  /** Another content for a file that was noticed; null: as it is. */
  replace?(path: string, content: Uint8Array): Uint8Array | null
  /** Directory, relative to the layer's root, that the project is put into. */
  into: string
}

/** What a project has, before anything of it is written. */
export interface Survey {
  /** Regular files that count, by path. */
  readonly files: ReadonlyMap<string, number>
  /** Contents of those that matter to a build. */
  readonly noticed: ReadonlyMap<string, Uint8Array>
  /** `.env.build` of the root, which is in no tree. */
  readonly buildEnvText: string | null
  /** `.docker/config.json`, which is in no tree. */
  readonly dockerConfig: string | null
  /** Number of the entry that counts, by path: the last one that has it. */
  readonly winners: ReadonlyMap<string, number>
  /** Paths that several entries have. */
  readonly repeated: ReadonlySet<string>
}

/** Looks through an archive. @throws unprocessable for what is not allowed in one */
export async function survey(path: string, type: ArchiveType, signal: AbortSignal): Promise<Survey> {
  const winners = new Map<string, number>()
  const repeated = new Set<string>()
  const kinds = new Map<string, ArchiveEntry['type']>()
  const sizes = new Map<string, number>()
  const noticed = new Map<string, Uint8Array>()
  const hardLinks = new Map<string, string>()
  const overlong = new Map<string, number>()
  let noticedBytes = 0
  let index = 0
  for await (const entry of walkArchive(path, type)) {
    signal.throwIfAborted()
    if (winners.has(entry.path)) repeated.add(entry.path)
    winners.set(entry.path, index++)
    kinds.set(entry.path, entry.type)
    noticed.delete(entry.path)
    overlong.delete(entry.path)
    hardLinks.delete(entry.path)
    if (entry.type === 'link') hardLinks.set(entry.path, entry.target)
    if (entry.type !== 'file') sizes.delete(entry.path)
    else {
      sizes.set(entry.path, entry.bytes)
      if (!isNoticed(entry.path)) continue
      const bytesMax = Math.min(bytesMaxOf(entry.path), noticedBytesInAllMax - noticedBytes)
      if (entry.bytes > bytesMax) {
        if (isDeciding(entry.path)) overlong.set(entry.path, entry.bytes)
        continue
      }
      noticedBytes += entry.bytes
      noticed.set(entry.path, await readAll(entry.content()))
    }
  }
  for (const path of kinds.keys()) checkParents(path, kinds)
  for (const [link, target] of hardLinks) {
    if (kinds.get(target) !== 'file')
      throw refused(`the hard link ${shownPath(link)} is of ${shownPath(target)}, which is no file of it`)
  }
  for (const [path, bytes] of overlong)
    throw refused(`${shownPath(path)} has ${bytes} bytes, and is read up to ${bytesMaxOf(path)}`)
  const text = (name: string) => {
    const bytes = noticed.get(name)
    return bytes === undefined ? null : Buffer.from(bytes).toString('utf8')
  }
  const [buildEnvText, dockerConfig] = [text('.env.build'), text('.docker/config.json')]
  for (const path of kinds.keys()) {
    if (!isLeftOut(path)) continue
    noticed.delete(path)
    sizes.delete(path)
  }
  return { files: sizes, noticed, buildEnvText, dockerConfig, winners, repeated }
}

/** The tree of a project as a tar archive. The same archive gives the same bytes. */
export async function* treeOf(
  path: string,
  type: ArchiveType,
  { winners, noticed }: Survey,
  options: TreeOptions,
): AsyncGenerator<Uint8Array> {
  const writer = new TarWriter()
  yield writer.header({
    path: `${options.into}/`,
    type: 'directory',
    mode: 0o755,
    modifiedNs: 0n,
    bytes: 0,
    target: '',
  })
  let index = 0
  for await (const entry of walkArchive(path, type)) {
    const counts = winners.get(entry.path) === index++
    if (!counts || isLeftOut(entry.path) || options.without?.(entry.path)) continue
    const known = entry.type === 'file' ? noticed.get(entry.path) : undefined
    const other = known && options.replace?.(entry.path, known)
    yield writer.header({
      ...entry,
      path: `${options.into}/${entry.path}`,
      target: entry.type === 'link' ? `${options.into}/${entry.target}` : entry.target,
      bytes: other ? other.length : entry.bytes,
    })
    if (entry.type !== 'file') continue
    if (other) yield other
    else yield* entry.content()
    yield writer.padding(other ? other.length : entry.bytes)
  }
  yield writer.end()
}

/** Whatever the archive says, these are in no image. What packages have of that name is theirs. */
function isLeftOut(path: string): boolean {
  if (path === '.docker' || path.startsWith('.docker/')) return true
  for (const name of path.split('/')) {
    if (name === 'node_modules') return false
    if (secretName.test(name) || leftOutNames.has(name)) return true
  }
  return false
}

function bytesMaxOf(path: string): number {
  return lockNames.test(path.split('/').at(-1) ?? '') ? lockBytesMax : noticedBytesMax
}

function isDeciding(path: string): boolean {
  return decidingNames.test(path) || lockNames.test(path)
}

function isNoticed(path: string): boolean {
  if (path === '.docker/config.json') return true
  const names = path.split('/')
  if (names.includes('node_modules')) return false
  const name = names[names.length - 1]!
  return noticedNames.test(name) || dockerfileName.test(name) || entryNames.test(name)
}

/** Nothing stands behind a link or a file. */
function checkParents(path: string, kinds: ReadonlyMap<string, ArchiveEntry['type']>): void {
  for (let slash = path.lastIndexOf('/'); slash > 0; slash = path.lastIndexOf('/', slash - 1)) {
    const kind = kinds.get(path.slice(0, slash))
    if (kind === undefined || kind === 'directory') continue
    const parent = shownPath(path.slice(0, slash))
    if (kind === 'symlink')
      throw refused(`${shownPath(path)} is to be written through the symbolic link ${parent}`)
    throw refused(`${shownPath(path)} is in ${parent}, which is a file`)
  }
}

async function readAll(content: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  for await (const part of content) parts.push(part.slice())
  return Buffer.concat(parts)
}
