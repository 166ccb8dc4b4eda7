import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'

const pathCharactersMax = 512

const absolutePath = (what: string) =>
  z
    .string()
    .max(pathCharactersMax, `${what} must have at most ${pathCharactersMax} characters`)
    .refine((path) => path.startsWith('/'), `${what} must be absolute, such as "/mnt/data"`)
    .refine((path) => !path.split('/').includes('..'), `${what} must not contain ".."`)

const mountBody = z.object({
  driveName: z
    .string()
    .regex(
      /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/,
      'drive name must be letters, digits, "-" and "_", at most 128, the first a letter or digit',
    ),
  mountPath: absolutePath('mount path'),
  drivePath: absolutePath('drive path').nullish(),
  readOnly: z.boolean().nullish(),
})

/** This platform has no drives: none is mounted anywhere. */
export function listDrives(): SandboxAnswer {
  return json({ mounts: [] })
}

/** Says what is wrong with the request first: that does not change once there are drives. @throws bad_request */
export async function mountDrive(call: SandboxCall): Promise<SandboxAnswer> {
  const { driveName } = await readJsonBody(call, mountBody)
  throw new PlatformError(
    'bad_request',
    `driveName: there is no drive "${driveName}": this platform has no drives yet`,
  )
}

/** @throws bad_request */
export function unmountDrive(_: SandboxCall, path: string): SandboxAnswer {
  const shown = `/${path.replace(/^\/+/, '')}`.slice(0, pathCharactersMax)
  throw new PlatformError('bad_request', `no drive is mounted at ${shown}`)
}
