import { posix } from 'node:path'
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { asCode, fileError, fileOperation, namesIn, parsePermissions } from './entries.ts'
import { requestedPath } from './files.ts'
import { givenPath } from './text-files.ts'

const copyBody = z.lazy(() =>
  z.object({
    source: z.string().min(1),
    destination: z.string().min(1),
    noOverwrite: z.boolean().nullish(),
  }),
)

/** As `cp -r`: into the destination where that is a directory, else to it. */
export async function copyFiles(call: SandboxCall): Promise<SandboxAnswer> {
  const { source, destination, exclusive, from, to } = await ends(call)
  const { files } = call.lease.instance.guest
  await carried(files.copy(from, to, { exclusive, signal: call.request.signal }), from, to)
  return json({ source, destination, message: 'Files copied' })
}

/** As `mv`. */
export async function moveFiles(call: SandboxCall): Promise<SandboxAnswer> {
  const { source, destination, exclusive, from, to } = await ends(call)
  const { files } = call.lease.instance.guest
  await carried(files.move(from, to, { exclusive, signal: call.request.signal }), from, to)
  return json({ source, destination, message: 'Files moved' })
}

async function ends(call: SandboxCall) {
  const { source, destination, noOverwrite } = await readJsonBody(call, copyBody)
  const from = givenPath(call.lease, source).absolute
  const target = givenPath(call.lease, destination).absolute
  const entry = await call.lease.instance.guest.files.stat(target).catch((error: unknown) => {
    if (PlatformError.is(error) && error.retryable) throw error
    return null
  })
  const to = entry?.type === 'directory' ? posix.join(target, posix.basename(from)) : target
  return { source, destination, exclusive: noOverwrite ?? false, from, to }
}

async function carried(work: Promise<unknown>, from: string, to: string): Promise<void> {
  try {
    await work
  } catch (error) {
    if (PlatformError.is(error) && error.code === 'already_exists') {
      const details = { code: 'FILE_ALREADY_EXISTS' }
      throw new PlatformError('already_exists', `${to}: file exists`, { details, cause: error })
    }
    if (PlatformError.is(error) && error.details?.errno === 'EINVAL') {
      throw new PlatformError('unprocessable', `copy ${from}: ${to} is the same, or lies within`, {
        cause: error,
      })
    }
    throw fileError(error, 'copy', from)
  }
}

const attributesBody = z.lazy(() =>
  z.object({
    permissions: z.string().nullish(),
    owner: z.union([z.string(), z.number()]).nullish(),
    group: z.union([z.string(), z.number()]).nullish(),
  }),
)

/** Permissions, owner and group of a file or directory, its content untouched. */
export async function changeAttributes(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const path = requestedPath(call, rest)
  const body = await readJsonBody(call, attributesBody)
  const mode = parsePermissions(body.permissions ?? undefined)
  const names = await namesIn(call.lease.instance.guest)
  const uid = idOf(body.owner, names.users, 'owner')
  const gid = idOf(body.group, names.groups, 'group')
  const { files } = call.lease.instance.guest
  try {
    await fileOperation(files.stat(path.absolute), 'stat', path.absolute)
    if (uid !== undefined || gid !== undefined) {
      const owner = { ...(uid === undefined ? {} : { uid }), ...(gid === undefined ? {} : { gid }) }
      await fileOperation(files.setOwner(path.absolute, owner), 'chown', path.absolute)
    }
    // Last, since a new owner takes set-id bits away.
    if (mode !== undefined) await fileOperation(files.setMode(path.absolute, mode), 'chmod', path.absolute)
  } catch (error) {
    throw PlatformError.is(error) && error.code === 'not_found' ? error : asCode(error, 'unprocessable')
  }
  return json({ path: path.shown, message: 'Attributes updated successfully' })
}

function idOf(
  given: string | number | null | undefined,
  names: Map<number, string>,
  field: string,
): number | undefined {
  if (given === null || given === undefined || given === '') return undefined
  for (const [id, name] of names) if (name === given) return id
  const id = Number(given)
  if (Number.isInteger(id) && id >= 0 && id < 0xffff_ffff) return id
  throw new PlatformError(
    'bad_request',
    `${field}: '${String(given).slice(0, 64)}' is not known in the sandbox`,
  )
}
