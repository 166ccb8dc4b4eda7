import { posix } from 'node:path'
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { FileEntry, GuestFiles, OpenFile } from '../../../spec/guest.ts'
import type { SendFile } from '../../route.ts'
import { collect, freeing, streamOf } from '../bodies.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { downloadHeaders, rangeOf, wantsDownload } from './download.ts'
import {
  asCode,
  type FileView,
  fileOperation,
  fileView,
  type Names,
  namesIn,
  parsePermissions,
} from './entries.ts'
import { listing } from './listing.ts'
import { longJson } from './long-json.ts'
import { MultipartReader, multipartBoundary } from './multipart.ts'
import { type FilePath, filePath, userPath } from './paths.ts'

/** Of a JSON body that carries the content of files. */
export const fileJsonBytesMax = 64 * 1024 * 1024
/** Up to this a file is answered in one piece, with its length; a larger one is streamed. */
const wholeFileBytesMax = 2 * 1024 * 1024
/** So much of an upload is held back until the fields behind it are known; it covers the client's single uploads, forms and all. */
const usualBodyBytesMax = 6 * 1024 * 1024 + 64 * 1024
const formFieldBytesMax = 8192

export const directoryMode = 0o755

/** Of a file path in the request, by the path rule. */
export function requestedPath(call: SandboxCall, rest: string): FilePath {
  return filePath(rest, pathBase(call))
}

function pathBase({ lease }: SandboxCall): { workingDir: string; home: string } {
  return { workingDir: lease.workingDir, home: lease.env.HOME ?? '/' }
}

export async function readFileOrDirectory(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const path = requestedPath(call, rest)
  const { files } = call.lease.instance.guest
  if (asksForWhole(call.request)) {
    // Most paths asked for are files: one trip inside instead of two. What goes wrong is looked at below.
    const download = wantsDownload(call)
    const { sendFile } = call
    // Before the file is open: looking names up takes connections, which those who read at once would hold all of.
    const names = download ? null : await namesIn(call.lease.instance.guest)
    const opening = download && sendFile ? files.open?.(path.absolute) : undefined
    const found = await (opening ?? files.read(path.absolute)).catch((error: unknown) => error)
    if (isDirectoryError(found)) return longJson({ ...(await listing(call, path)) })
    if (sendFile && isOpenFile(found)) return sent(path, found, sendFile, call.onEnd)
    if (isOpenedFile(found)) return names === null ? whole(path, found) : fileJson(path, found, names)
  }
  const entry = await fileOperation(files.stat(path.absolute), 'stat', path.absolute)
  if (entry.type === 'directory') return longJson({ ...(await listing(call, path)) })
  if (entry.type !== 'file') {
    throw new PlatformError('unprocessable', `read ${path.absolute}: not a regular file but a ${entry.type}`)
  }
  if (wantsDownload(call)) return download(call, path, entry)
  const names = await namesIn(call.lease.instance.guest)
  return fileJson(path, await fileOperation(files.read(path.absolute), 'open', path.absolute), names)
}

type OpenedFile = Awaited<ReturnType<GuestFiles['read']>>

function isOpenedFile(found: unknown): found is OpenedFile {
  return typeof found === 'object' && found !== null && 'entry' in found
}

type HandedOver = { entry: FileEntry; file: OpenFile }

function isOpenFile(found: unknown): found is HandedOver {
  return isOpenedFile(found) && 'file' in found
}

function isDirectoryError(found: unknown): boolean {
  return PlatformError.is(found) && found.details?.errno === 'EISDIR'
}

/** Neither conditional nor for a part, so that what the answer says follows from what is read. */
function asksForWhole({ method, headers }: Request): boolean {
  return method === 'GET' && !headers.has('range') && !headers.has('if-modified-since')
}

function sent(
  path: FilePath,
  { entry, file }: HandedOver,
  sendFile: SendFile,
  onEnd: () => void,
): SandboxAnswer {
  return { streaming: sendFile(file, downloadHeaders(path.absolute, entry), onEnd), endsItself: true }
}

async function whole(path: FilePath, { entry, body }: OpenedFile): Promise<SandboxAnswer> {
  const headers = downloadHeaders(path.absolute, entry)
  if (entry.size > wholeFileBytesMax) return { streaming: new Response(body, { headers }), handsOver: true }
  return new Response(await fileOperation(collect(body), 'read', path.absolute), { headers })
}

async function download(call: SandboxCall, path: FilePath, found: FileEntry): Promise<SandboxAnswer> {
  const { request } = call
  const headers = downloadHeaders(path.absolute, found)
  const since = request.headers.get('if-modified-since')
  if (
    since !== null &&
    !request.headers.has('range') &&
    Date.parse(since) >= Math.floor(found.modifiedMs / 1000) * 1000
  ) {
    return new Response(null, { status: 304, headers })
  }
  const range = rangeOf(request.headers, found)
  if (range === 'unsatisfiable') {
    headers.set('content-range', `bytes */${found.size}`)
    return new Response(null, { status: 416, headers })
  }
  const length = range ? range.length : found.size
  const status = range ? 206 : 200
  if (range)
    headers.set('content-range', `bytes ${range.offset}-${range.offset + range.length - 1}/${found.size}`)
  headers.set('content-length', String(length))
  if (request.method === 'HEAD') return new Response(null, { status, headers })
  const { files } = call.lease.instance.guest
  const { body } = await fileOperation(files.read(path.absolute, range ?? undefined), 'open', path.absolute)
  if (length <= wholeFileBytesMax) {
    const bytes = await fileOperation(collect(body), 'read', path.absolute)
    headers.set('content-length', String(bytes.length))
    return new Response(bytes, { status, headers })
  }
  return { streaming: new Response(body, { status, headers }), handsOver: true }
}

/** The content is text: what is not UTF-8 comes out as U+FFFD. A file of any size passes without being held. */
async function fileJson(path: FilePath, { entry, body }: OpenedFile, names: Names): Promise<SandboxAnswer> {
  const view: FileView = fileView(entry, path.shown, posix.basename(path.absolute), names)
  if (entry.size <= wholeFileBytesMax) {
    const bytes = await fileOperation(collect(body), 'read', path.absolute)
    return json({ ...view, content: new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes) })
  }
  const streaming = new Response(streamOf(jsonChunks(view, body)), { headers: json({}).headers })
  return { streaming, handsOver: true }
}

async function* jsonChunks(view: FileView, body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder()
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  const escaped = (text: string) => encoder.encode(JSON.stringify(text).slice(1, -1))
  yield encoder.encode(`${JSON.stringify(view).slice(0, -1)},"content":"`)
  for await (const chunk of freeing(body)) {
    const text = decoder.decode(chunk, { stream: true })
    if (text !== '') yield escaped(text)
  }
  yield encoder.encode(`${escapedEnd(decoder)}"}`)
}

function escapedEnd(decoder: TextDecoder): string {
  return JSON.stringify(decoder.decode()).slice(1, -1)
}

const fileBody = z.lazy(() =>
  z.object({
    content: z.string().nullish(),
    isDirectory: z.boolean().nullish(),
    permissions: z.string().nullish(),
  }),
)

export async function writeFileOrDirectory(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const boundary = multipartBoundary(call.request.headers.get('content-type'))
  // The client writes the path of an upload into the URL as it is, whatever that then means.
  if (boundary !== null) return upload(call, () => requestedPath(call, rest), boundary)
  const path = requestedPath(call, rest)
  const body = await readJsonBody(call, fileBody, fileJsonBytesMax)
  const mode = parsePermissions(body.permissions ?? undefined)
  const { files } = call.lease.instance.guest
  if (body.isDirectory) {
    const making = files.makeDirectory(path.absolute, { parents: true, mode: mode ?? directoryMode })
    await written(making, 'mkdir', path.absolute)
    return json({ path: path.shown, message: 'Directory created successfully' })
  }
  await writeText(call, path.absolute, body.content ?? '', mode)
  return json({ path: path.shown, message: 'File created/updated successfully' })
}

async function writeText(call: SandboxCall, path: string, content: string, mode?: number): Promise<void> {
  const options = mode === undefined ? undefined : { mode }
  await written(call.lease.instance.guest.files.write(path, Buffer.from(content), options), 'open', path)
}

/** Awaits a change. Parents are made, so that a path that still cannot be is one that cannot be written, not one missing. */
async function written(change: Promise<unknown>, operation: string, path: string): Promise<void> {
  try {
    await fileOperation(change, operation, path)
  } catch (error) {
    throw asCode(error, 'unprocessable')
  }
}

/**
 * A form upload. The client puts `permissions` and `path` behind the file: an upload of a usual size waits for them. A
 * larger one is streamed to the path in the URL, and dropped when a `path` behind it then names another. The client
 * sends one fixed mode with every upload, so the mode counts for new files only.
 */
async function upload(call: SandboxCall, urlPath: () => FilePath, boundary: string): Promise<SandboxAnswer> {
  const { form, isLarge } = await multipartForm(call, boundary)
  const fields: { path?: string; permissions?: string } = {}
  const readField = async (name: string) => {
    if (name === 'path' || name === 'permissions') fields[name] = await form.text(formFieldBytesMax)
  }
  const target = () => (fields.path ? userPath(fields.path, pathBase(call)) : urlPath())
  const { files } = call.lease.instance.guest
  try {
    let held: Uint8Array | null = null
    for (let part = await form.next(); part; part = await form.next()) {
      if (part.name !== 'file' || held) {
        await readField(part.name)
        continue
      }
      const chunks = form.chunks()
      const start: Uint8Array[] = []
      let bytes = 0
      let complete = true
      for (let next = await chunks.next(); !next.done; next = await chunks.next()) {
        start.push(next.value)
        bytes += next.value.length
        complete = !isLarge && bytes <= usualBodyBytesMax
        if (!complete) break
      }
      if (complete) {
        held = start.length === 1 ? start[0]! : Buffer.concat(start, bytes)
        continue
      }
      const path = target()
      const isNew = await absent(call, path.absolute)
      const body = async function* () {
        yield* start
        start.length = 0
        call.whole.used()
        yield* chunks
        for (let field = await form.next(); field; field = await form.next()) await readField(field.name)
        if (target().absolute !== path.absolute) {
          throw new PlatformError(
            'bad_request',
            'path: of a large upload it must stand before the file or equal the URL',
          )
        }
      }
      await written(files.write(path.absolute, streamOf(freeing(body()))), 'open', path.absolute)
      const mode = parsePermissions(fields.permissions)
      if (isNew && mode !== undefined)
        await fileOperation(files.setMode(path.absolute, mode), 'chmod', path.absolute)
      return uploaded(path)
    }
    if (!held) throw noFile()
    const path = target()
    const mode = parsePermissions(fields.permissions)
    const options = mode === undefined ? undefined : { newFileMode: mode }
    await written(files.write(path.absolute, held, options), 'open', path.absolute)
    return uploaded(path)
  } catch (error) {
    await form.cancel()
    throw error
  }
}

/**
 * A body of a usual size is taken in whole, which is several times faster than chunk by chunk. `isLarge`: its file is larger
 * than what waits for the fields behind it.
 */
async function multipartForm(
  { request, whole }: SandboxCall,
  boundary: string,
): Promise<{ form: MultipartReader; isLarge: boolean }> {
  if (!request.body) throw noFile()
  const declared = request.headers.get('content-length')
  if (declared === null) {
    const body = await whole.streamed(usualBodyBytesMax)
    return { form: new MultipartReader(body, boundary), isLarge: false }
  }
  if (Number(declared) > usualBodyBytesMax)
    return { form: new MultipartReader(request.body, boundary), isLarge: true }
  const body = await whole.bytes(usualBodyBytesMax)
  return { form: new MultipartReader(body, boundary), isLarge: false }
}

function uploaded(path: FilePath): Response {
  return json({ path: path.shown, message: 'Binary file uploaded successfully' })
}

export function noFile(): PlatformError {
  return new PlatformError('bad_request', 'no file provided: send it as the multipart field "file"')
}

async function absent(call: SandboxCall, path: string): Promise<boolean> {
  try {
    await call.lease.instance.guest.files.stat(path)
    return false
  } catch {
    return true
  }
}

export async function removeFileOrDirectory(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const path = requestedPath(call, rest)
  const kind = await removePath(call, path.absolute, call.query.get('recursive') === 'true')
  return json({ path: path.shown, message: `${kind} deleted successfully` })
}

/** Of a link, removes the link. */
export async function removePath(
  call: SandboxCall,
  path: string,
  recursive: boolean,
): Promise<'File' | 'Directory'> {
  if (path === '/') throw new PlatformError('unprocessable', 'remove /: the root directory cannot be removed')
  const { files } = call.lease.instance.guest
  const entry = await fileOperation(files.stat(path, { follow: false }), 'stat', path)
  await fileOperation(files.remove(path, { recursive }), 'remove', path)
  return entry.type === 'directory' ? 'Directory' : 'File'
}
