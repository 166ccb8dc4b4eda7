/** From the bytes of a layer to its tree: whiteouts, names, limits. Which bytes go where is decided here; the sink writes. */
import { PlatformError } from '../errors.ts'
import { ByteReader } from '../lib/byte-reader.ts'
import { shownPath, type TarEntry, TarReader } from '../lib/tar.ts'
import {
  type LayerAttributes,
  type LayerEntry,
  type LayerSink,
  layerLinkBytesMax,
  layerNameBytesMax,
  layerPathBytesMax,
  layerXattrBytesMax,
} from '../spec/layers.ts'

export interface LayerLimits {
  /** Of all files together, written out. */
  bytesMax: number
  entriesMax: number
}

/** What the platform wants to know of a layer without ever looking into it again. */
export interface LayerFacts {
  bytes: number
  entries: number
  /** Programs of the cloud's own sandbox API in it, for which a stand-in is mounted. */
  sandboxApis: string[]
}

/** Ids that instances have: larger ones are given to nobody. */
const idMax = 65_535
const nobodyId = 65_534
const whiteoutPrefix = '.wh.'
const aufsPrefix = '.wh..wh.'
const opaqueMarker = '.wh..wh..opq'
const sandboxApiName = 'sandbox-api'
const sandboxApisMax = 4
/** Looked at between two waits for the sink. */
const bytesPerCheck = 256 * 1024
const entriesPerCheck = 256

/**
 * Writes the layer that `content`, an uncompressed tar archive, describes. Reads it to its end, so that its digest is
 * that of all of it. The caller finishes the sink.
 * @throws unprocessable for what is not allowed or beyond the limits, and what the sink throws
 */
export async function writeLayer(
  content: AsyncIterable<Uint8Array>,
  sink: LayerSink,
  limits: LayerLimits,
): Promise<LayerFacts> {
  const bytes = new ByteReader(content)
  const tar = new TarReader(bytes)
  const facts: LayerFacts = { bytes: 0, entries: 0, sandboxApis: [] }
  /** Directories get their times last. */
  const times = new Map<string, bigint>()
  let sinceCheck = 0
  for (;;) {
    const entry = await tar.next()
    if (entry === null) break
    if (++facts.entries > limits.entriesMax) {
      throw refused(`more than ${limits.entriesMax} entries`)
    }
    const made = layerEntry(entry)
    if (made === null) continue
    if (made.type === 'directory') times.set(made.path, made.modifiedNs)
    else times.delete(made.path)
    sink.entry(made)
    if (made.type === 'file') {
      noteFile(facts, made.path, made.size)
      for (let part = await tar.data(); part !== null; part = await tar.data()) {
        facts.bytes += part.bytes.length
        if (facts.bytes > limits.bytesMax) throw refused(`more than ${limits.bytesMax} bytes`)
        sink.data(part.offset, part.bytes)
        sinceCheck += part.bytes.length
        if (sinceCheck >= bytesPerCheck) {
          await sink.drained()
          sinceCheck = 0
        }
      }
      sink.complete(made, xattrsOf(entry))
    } else if (made.type === 'directory') {
      const xattrs = xattrsOf(entry)
      if (xattrs.length > 0) sink.complete(made, xattrs)
    }
    if (facts.entries % entriesPerCheck === 0) await sink.drained()
  }
  while ((await bytes.some(bytesPerCheck)) !== null);
  let directories = 0
  for (const [path, modifiedNs] of [...times].reverse()) {
    sink.modified(path, modifiedNs)
    if (++directories % entriesPerCheck === 0) await sink.drained()
  }
  return facts
}

function noteFile(facts: LayerFacts, path: string, size: number): void {
  const name = path.slice(path.lastIndexOf('/') + 1)
  if (name !== sandboxApiName || size === 0 || facts.sandboxApis.length >= sandboxApisMax) return
  // A path that a mount of the platform can name.
  if (/^[A-Za-z0-9._/-]+$/.test(path)) facts.sandboxApis.push(`/${path}`)
}

/** What is to be done for an entry; null: nothing. */
function layerEntry(entry: TarEntry): LayerEntry | null {
  const path = cleanPath(entry.path)
  const slash = path.lastIndexOf('/')
  const name = path.slice(slash + 1)
  const directory = slash < 0 ? '' : path.slice(0, slash)
  if (name === opaqueMarker) return { type: 'opaque', path: directory }
  // Records of the file system that some layers were once made with.
  if (path.split('/').some((part) => part.startsWith(aufsPrefix))) return null
  if (name.startsWith(whiteoutPrefix)) {
    const hidden = name.slice(whiteoutPrefix.length)
    if (hidden === '' || hidden === '.' || hidden === '..')
      throw refused(`a whiteout without a name: ${shownPath(path)}`)
    return { type: 'whiteout', path: directory === '' ? hidden : `${directory}/${hidden}` }
  }
  const attributes: LayerAttributes = {
    mode: entry.mode,
    uid: ownerOf(entry.uid),
    gid: ownerOf(entry.gid),
    modifiedNs: entry.modifiedNs,
  }
  if (path === '' && entry.type !== 'directory') {
    if (entry.type === 'other') return null
    throw refused('an entry without a name')
  }
  switch (entry.type) {
    case 'directory':
      return { type: 'directory', path, ...attributes }
    case 'file':
      return { type: 'file', path, size: entry.size, ...attributes }
    case 'fifo':
      return { type: 'fifo', path, ...attributes }
    case 'symlink':
      return { type: 'symlink', path, target: linkTarget(entry), ...attributes }
    case 'link':
      return { type: 'link', path, target: cleanPath(entry.linkPath) }
    default:
      // Devices: an instance has those that it may have in a /dev of its own.
      return null
  }
}

/** Relative, without empty names and `.`. @throws unprocessable for `..`, NUL, and what is too long */
export function cleanPath(path: string): string {
  const names = path.split('/').filter((name) => name !== '' && name !== '.')
  if (names.includes('..')) throw refused(`a path with "..": ${shownPath(path)}`)
  const clean = names.join('/')
  if (clean.includes('\0')) throw refused(`a path with NUL: ${shownPath(path)}`)
  if (clean.length > layerPathBytesMax || names.some((name) => name.length > layerNameBytesMax)) {
    throw refused(`a path that is too long: ${shownPath(path)}`)
  }
  return clean
}

function linkTarget(entry: TarEntry): string {
  const { linkPath: target } = entry
  if (target === '' || target.length > layerLinkBytesMax || target.includes('\0')) {
    throw refused(`a symbolic link without a proper target: ${shownPath(entry.path)}`)
  }
  return target
}

/** Those that mean something to programs inside; what the kernel's overlay reads is not taken from an archive. */
function xattrsOf(entry: TarEntry): (readonly [string, Uint8Array])[] {
  return entry.xattrs.filter(
    ([name, value]) =>
      (name === 'security.capability' || (name.startsWith('user.') && !name.startsWith('user.overlay.'))) &&
      name.length > 'user.'.length &&
      name.length <= layerNameBytesMax &&
      !name.includes('\0') &&
      value.length <= layerXattrBytesMax,
  )
}

function ownerOf(id: number): number {
  return id <= idMax ? id : nobodyId
}

function refused(what: string): PlatformError {
  return new PlatformError('unprocessable', `the image is refused: a layer has ${what}`)
}
