import { PlatformError } from '../../errors.ts'
import { HelperError, type LaunchedInstance, type Launcher, printable } from '../../guest/index.ts'
import type { InstanceSpec } from '../../spec/runtime.ts'
import type { InstanceCgroup } from './cgroups.ts'
import { storageMbMin } from './disk.ts'
import { instanceIdPattern } from './record.ts'

export interface LaunchOptions {
  launcher: Launcher
  dir: string
  uidBase: number | null
  disk: 'loop' | 'dir'
  /** What the disk image is made from; null: it exists. */
  diskTemplate: string | null
  group: InstanceCgroup
  /** Processes are counted by a control group: no RLIMIT_NPROC is needed. */
  pidsLimited: boolean
  /** Process ids that are left for programs that had them elsewhere; null: there are none. */
  lastPid: number | null
  /** It ends with the launcher, which ends with this process. */
  transient: boolean
}

/** ENOTDIR, EISDIR and ELOOP, of paths inside the root: they are as the image or programs made them. */
const misplacedErrnos = new Set([20, 21, 40])
const memoryMbMin = 16
const memoryMbMax = 1024 * 1024
const storageMbMax = 16 * 1024 * 1024
const pidsMaxMax = 4_194_304
/** Processes that programs leave to process 1, for its files workers and for what is to end them. */
const pidsReserveMax = 96
const hostnamePattern = /^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$/

/** @throws bad_request naming what cannot be honoured */
export function checkSpec(spec: InstanceSpec): void {
  if (!instanceIdPattern.test(spec.id)) {
    throw refused('id', spec.id, '12 to 40 characters of a-z and 0-9')
  }
  if (!hostnamePattern.test(spec.hostname)) {
    throw refused('hostname', spec.hostname, 'letters, digits and hyphens, at most 63')
  }
  checkRange('memoryMb', spec.memoryMb, memoryMbMin, memoryMbMax)
  checkRange('storageMb', spec.storageMb, storageMbMin, storageMbMax)
  checkRange('pidsMax', spec.pidsMax, 8, pidsMaxMax)
  if (!isCleanPath(spec.workingDir)) throw refused('workingDir', spec.workingDir, 'an absolute path')
  if (spec.image.layers.length === 0) throw refused('image.layers', '[]', 'at least one directory')
  for (const path of [
    ...spec.image.layers,
    ...spec.image.mounts.flatMap(({ source, target, mask }) => [source, target, ...(mask ? [mask] : [])]),
  ]) {
    if (!isCleanPath(path)) throw refused('image', path, 'absolute paths without . and ..')
  }
  if (spec.ownMounts !== undefined && (!isCleanPath(spec.ownMounts) || spec.ownMounts === '/'))
    throw refused('ownMounts', spec.ownMounts, 'an absolute path below the root')
}

function checkRange(field: string, value: number, min: number, max: number) {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw refused(field, String(value), `a whole number from ${min} to ${max}`)
  }
}

function isCleanPath(path: string): boolean {
  const names = path.split('/')
  return path.startsWith('/') && !path.includes('\0') && !names.includes('..') && !names.includes('.')
}

function refused(field: string, value: string, wanted: string): PlatformError {
  return new PlatformError('bad_request', `${field} ${JSON.stringify(value.slice(0, 200))} is not ${wanted}`)
}

/** @throws unavailable, with the helper's answer as cause */
export async function launch(spec: InstanceSpec, options: LaunchOptions): Promise<LaunchedInstance> {
  if (spec.ownMounts !== undefined && options.uidBase === null)
    throw new PlatformError('bad_request', 'ownMounts needs a platform that runs as root')
  const entries: [string, string][] = [
    ['id', spec.id],
    ['hostname', spec.hostname],
    ['dir', options.dir],
    ['disk', options.disk],
    ['seccomp', 'default'],
    ['workdir', spec.workingDir],
  ]
  if (spec.withoutApi) entries.push(['api', 'no'])
  if (options.lastPid !== null) entries.push(['pids', 'own'], ['lastpid', String(options.lastPid)])
  if (options.transient) entries.push(['transient', 'yes'])
  if (options.diskTemplate !== null) entries.push(['disktemplate', options.diskTemplate])
  for (const layer of spec.image.layers) entries.push(['layer', layer])
  for (const { source, target, kind, mask } of spec.image.mounts) {
    entries.push([kind, `${source}:${target}`])
    if (mask !== undefined) entries.push(['mask', `${mask}:${target}`])
  }
  if (options.uidBase !== null) entries.push(['uidbase', String(options.uidBase)])
  if (spec.ownMounts !== undefined) entries.push(['ownmounts', spec.ownMounts])
  for (const dir of options.group.v1Dirs) entries.push(['cgroup1', dir])
  if (options.group.v2Dir !== null) entries.push(['cgroup2', options.group.v2Dir])
  const { programsFile, programsStatFile, programsMemoryFile, programsMemoryStatFile } = options.group
  if (programsFile !== null) entries.push(['programs', programsFile])
  if (programsStatFile !== null) entries.push(['programsstat', programsStatFile])
  if (programsMemoryFile !== null) entries.push(['programsmemory', programsMemoryFile])
  if (programsMemoryStatFile !== null) entries.push(['programsmemorystat', programsMemoryStatFile])
  if (!options.pidsLimited) entries.push(['pidsmax', String(spec.pidsMax)])
  entries.push(['programsmax', String(spec.pidsMax - Math.min(pidsReserveMax, Math.floor(spec.pidsMax / 4)))])
  entries.push(['shmmb', String(Math.ceil(spec.memoryMb / 2))])
  for (const [key, value] of entries) {
    if (value.includes('\0')) throw new PlatformError('bad_request', `${key} contains NUL`)
  }
  try {
    return await options.launcher.launch(entries)
  } catch (error) {
    if (!(error instanceof HelperError)) throw error
    throw launchFailure(error)
  }
}

function launchFailure(error: HelperError): PlatformError {
  const { stage, errno, said } = error
  if (stage === 'disk') {
    return new PlatformError('insufficient_storage', "The sandbox's disk cannot be mounted", { cause: error })
  }
  if (stage === 'mounts' && misplacedErrnos.has(errno)) {
    return new PlatformError(
      'unprocessable',
      `The image, or what is in the sandbox, has something else where the system has its own: ${printable(said)}`,
      { cause: error },
    )
  }
  return new PlatformError('unavailable', `The sandbox cannot be started on this host (${stage})`, {
    cause: error,
  })
}
