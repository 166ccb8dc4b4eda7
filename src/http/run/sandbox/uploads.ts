import { randomBytes, randomUUID } from 'node:crypto'
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { Semaphore } from '../../../lib/semaphore.ts'
import type { FileEntry, GuestFiles } from '../../../spec/guest.ts'
import { collect, freeing, streamOf } from '../bodies.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { fileOperation, parsePermissions } from './entries.ts'
import { noFile, requestedPath } from './files.ts'
import { MultipartReader, multipartBoundary } from './multipart.ts'

/** Uploads in parts rest inside the sandbox, on its disk and under its limits: they outlive hutch and go with it. */
const uploadsDir = '/var/tmp/.hutch-uploads'
const partNumberMax = 10_000
const uploadsMax = 1000
const targetBytesMax = 16 * 1024
/** As many as are uploaded as one part at the same moment. */
const filesOfPartMax = 64
const uploadIdPattern = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
/** A part's file is named for all that is to be known of it, so that parts can be written side by side. */
const partPattern = /^part-(\d{5})-([0-9a-f]{32})$/

/** Each keeps one of a sandbox's few connections for files for as long as it copies; others shall find one free. */
const completionsMax = 4
const completionsWaitingMax = 64
const completions = new WeakMap<GuestFiles, Semaphore>()

const target = z.lazy(() =>
  z.object({
    path: z.string().startsWith('/'),
    permissions: z.number().int().min(0).max(0o777),
    initiatedAt: z.string(),
  }),
)
type Target = z.infer<typeof target>

interface Part {
  partNumber: number
  etag: string
  size: number
  uploadedAt: string
  file: string
}

const initiateBody = z.object({ permissions: z.string().nullish() })
const permissionsDefault = 0o644

export async function startUpload(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const path = requestedPath(call, rest).absolute
  const hasBody = call.request.body !== null && call.request.headers.get('content-length') !== '0'
  const body = hasBody ? await readJsonBody(call, initiateBody) : {}
  const permissions = parsePermissions(body.permissions ?? undefined) ?? permissionsDefault
  if ((await uploadIds(call)).length >= uploadsMax) {
    throw new PlatformError(
      'conflict',
      `${uploadsMax} uploads are under way, the most allowed: complete or abort one`,
    )
  }
  const uploadId = randomUUID()
  const { files } = call.lease.instance.guest
  const text = JSON.stringify({ path, permissions, initiatedAt: new Date().toISOString() } satisfies Target)
  await fileOperation(files.makeDirectory(dirOf(uploadId), { parents: true, mode: 0o700 }), 'mkdir', path)
  await fileOperation(
    files.write(`${dirOf(uploadId)}/target`, Buffer.from(text), { mode: 0o600 }),
    'open',
    path,
  )
  return json({ uploadId, path })
}

export async function writePart(call: SandboxCall, uploadId: string): Promise<SandboxAnswer> {
  const partNumber = Number(call.query.get('partNumber'))
  if (!Number.isInteger(partNumber) || partNumber < 1 || partNumber > partNumberMax) {
    throw new PlatformError('bad_request', `partNumber: must be a whole number from 1 to ${partNumberMax}`)
  }
  await readTarget(call, uploadId)
  const boundary = multipartBoundary(call.request.headers.get('content-type'))
  if (boundary === null || !call.request.body) throw noFile()
  const form = new MultipartReader(call.request.body, boundary)
  const { files } = call.lease.instance.guest
  const incoming = `${dirOf(uploadId)}/incoming-${randomBytes(8).toString('hex')}`
  try {
    for (let part = await form.next(); part; part = await form.next()) {
      if (part.name !== 'file') continue
      const hash = new Bun.CryptoHasher('md5')
      let size = 0
      const body = async function* () {
        for await (const chunk of form.chunks()) {
          hash.update(chunk)
          size += chunk.length
          yield chunk
        }
      }
      await fileOperation(files.write(incoming, streamOf(freeing(body())), { mode: 0o600 }), 'open', incoming)
      const etag = hash.digest('hex')
      const name = partName(partNumber, etag)
      const there = await filesOfPart(call, uploadId, partNumber)
      await fileOperation(files.rename(incoming, `${dirOf(uploadId)}/${name}`), 'rename', incoming)
      for (const older of there)
        if (older !== name) await files.remove(`${dirOf(uploadId)}/${older}`).catch(() => {})
      return json({ partNumber, etag, size })
    }
    throw noFile()
  } catch (error) {
    await form.cancel()
    await files.remove(incoming).catch(() => {})
    throw error
  }
}

export async function listParts(call: SandboxCall, uploadId: string): Promise<SandboxAnswer> {
  await readTarget(call, uploadId)
  const parts = (await partsOf(call, uploadId)).map(({ file: _, ...part }) => part)
  return json({ uploadId, parts })
}

const completeBody = z.lazy(() =>
  z.object({
    parts: z
      .array(z.object({ partNumber: z.number().int(), etag: z.string() }))
      .min(1)
      .max(partNumberMax),
  }),
)

export async function completeUpload(call: SandboxCall, uploadId: string): Promise<SandboxAnswer> {
  const { path, permissions } = await readTarget(call, uploadId)
  const { parts: named } = await readJsonBody(call, completeBody)
  const known = new Map((await partsOf(call, uploadId)).map((part) => [part.partNumber, part]))
  const parts = [...named]
    .sort((a, b) => a.partNumber - b.partNumber)
    .map(({ partNumber, etag }, index, sorted) => {
      const part = known.get(partNumber)
      if (!part) throw new PlatformError('bad_request', `parts: part ${partNumber} was not uploaded`)
      if (part.etag !== etag.replaceAll('"', '')) {
        throw new PlatformError(
          'bad_request',
          `parts: the etag of part ${partNumber} is not the one of its upload`,
        )
      }
      if (sorted[index - 1]?.partNumber === partNumber) {
        throw new PlatformError('bad_request', `parts: part ${partNumber} is named twice`)
      }
      return part
    })
  const { files } = call.lease.instance.guest
  const paths = parts.map(({ file }) => `${dirOf(uploadId)}/${file}`)
  const whole = files.concatenate.bind(files, paths, path)
  const make = async () => {
    try {
      return await whole({ newFileMode: permissions })
    } catch (error) {
      if (!PlatformError.is(error) || error.code !== 'insufficient_storage') throw error
      // The parts and the whole do not fit side by side; of its parts the whole may be all the same.
      return await whole({ newFileMode: permissions, spend: true })
    }
  }
  await completionsOf(files).run(() => fileOperation(make(), 'open', path))
  await files.remove(dirOf(uploadId), { recursive: true }).catch(() => {})
  return json({ path, message: 'Multipart upload completed successfully' })
}

function completionsOf(files: GuestFiles): Semaphore {
  const known = completions.get(files)
  if (known !== undefined) return known
  const made = new Semaphore({
    concurrencyMax: completionsMax,
    waitingMax: completionsWaitingMax,
    what: 'uploads are being completed',
  })
  completions.set(files, made)
  return made
}

export async function abortUpload(call: SandboxCall, uploadId: string): Promise<SandboxAnswer> {
  const { path } = await readTarget(call, uploadId)
  await fileOperation(
    call.lease.instance.guest.files.remove(dirOf(uploadId), { recursive: true }),
    'remove',
    path,
  )
  return json({ path, message: 'Multipart upload aborted successfully' })
}

export async function listUploads(call: SandboxCall): Promise<SandboxAnswer> {
  const uploads: unknown[] = []
  for (const uploadId of await uploadIds(call)) {
    const found = await readTarget(call, uploadId).catch(() => null)
    if (!found) continue
    const parts = (await partsOf(call, uploadId)).map(({ file: _, ...part }) => [
      String(part.partNumber),
      part,
    ])
    uploads.push({ uploadId, ...found, parts: Object.fromEntries(parts) })
  }
  return json({ uploads })
}

function dirOf(uploadId: string): string {
  return `${uploadsDir}/${uploadId}`
}

/** What is read here was written inside the sandbox, where any program may have changed it: it is believed nothing. */
async function readTarget(call: SandboxCall, uploadId: string): Promise<Target> {
  const unknown = new PlatformError('not_found', `upload '${uploadId.slice(0, 64)}' not found`)
  if (!uploadIdPattern.test(uploadId)) throw unknown
  try {
    const { body } = await call.lease.instance.guest.files.read(`${dirOf(uploadId)}/target`, {
      offset: 0,
      length: targetBytesMax,
    })
    return target.parse(JSON.parse(new TextDecoder().decode(await collect(body))))
  } catch (error) {
    if (PlatformError.is(error) && error.retryable) throw error
    throw unknown
  }
}

async function partsOf(call: SandboxCall, uploadId: string): Promise<Part[]> {
  const parts = new Map<number, Part>()
  for (const entry of await entriesOf(call, dirOf(uploadId))) {
    const match = partPattern.exec(entry.name)
    if (!match || entry.type !== 'file') continue
    const partNumber = Number(match[1])
    const part = {
      partNumber,
      etag: match[2]!,
      size: entry.size,
      uploadedAt: new Date(entry.modifiedMs).toISOString(),
      file: entry.name,
    }
    const other = parts.get(partNumber)
    if (!other || other.uploadedAt <= part.uploadedAt) parts.set(partNumber, part)
  }
  return [...parts.values()].sort((a, b) => a.partNumber - b.partNumber)
}

function partName(partNumber: number, etag: string): string {
  return `part-${String(partNumber).padStart(5, '0')}-${etag}`
}

/** Of one part, without a look at each of the thousands that there may be: what was uploaded as it before, if anything. */
async function filesOfPart(call: SandboxCall, uploadId: string, partNumber: number): Promise<string[]> {
  const names: string[] = []
  const options = {
    include: [partName(partNumber, '*')],
    depthMax: 1,
    details: false,
    resultsMax: filesOfPartMax,
  }
  for await (const batch of call.lease.instance.guest.files.walk(dirOf(uploadId), options)) {
    for (const { name } of batch) if (partPattern.test(name)) names.push(name)
  }
  return names
}

async function uploadIds(call: SandboxCall): Promise<string[]> {
  const entries = await entriesOf(call, uploadsDir)
  return entries.map(({ name }) => name).filter((name) => uploadIdPattern.test(name))
}

/** At most a little more than can be there in earnest. */
async function entriesOf(call: SandboxCall, dir: string): Promise<FileEntry[]> {
  const entries: FileEntry[] = []
  try {
    for await (const batch of call.lease.instance.guest.files.list(dir)) {
      for (const entry of batch) entries.push(entry)
      if (entries.length > 3 * partNumberMax) break
    }
  } catch (error) {
    if (!PlatformError.is(error) || error.code !== 'not_found') throw error
  }
  return entries
}
