/** How the tasks of a job are run: what a client may ask for, and what holds where nobody says. */
import { PlatformError } from '../errors.ts'
import { badRequest, checkRange, checkText, quoted } from '../lib/checks.ts'
import { defined } from '../lib/defined.ts'
import type { JobInput } from './schema.ts'

const timeoutSecondsDefault = 3600
const timeoutSecondsMax = 7 * 24 * 60 * 60
const maxRetriesMax = 20
const maxConcurrentTasksMax = 10_000
const volumesMax = 8
const volumeMbMax = 1024 * 1024
const mountPathCharsMax = 256
/** The kernel's own, and what is memory rather than disk. */
const unmountable = /^\/(?:proc|sys|dev|run)(?:\/|$)/

/** A directory that each task finds empty of what other tasks wrote, on the disk of its own instance. */
export interface TaskVolume {
  name: string
  mountPath: string
  sizeMb: number
}

/** As somebody asked for it; what is left out is said by the code's blaxel.toml, or by nobody. */
export interface TaskSettings {
  timeoutSeconds?: number
  maxRetries?: number
  /** Of one execution; absent: as many as the platform runs at once. */
  maxConcurrentTasks?: number
  /** Disk of an instance in percent of its memory. */
  diskPercent?: number
  volumes?: TaskVolume[]
}

/** Complete. */
export interface TaskLimits {
  timeoutSeconds: number
  maxRetries: number
  maxConcurrentTasks: number | null
  diskPercent: number
  volumes: TaskVolume[]
}

const diskPercentDefault = 50

/** What holds: a client's word over that of the code. */
export function taskLimits(asked: TaskSettings = {}, built: TaskSettings = {}): TaskLimits {
  const all = { ...built, ...asked }
  return {
    timeoutSeconds: all.timeoutSeconds ?? timeoutSecondsDefault,
    maxRetries: all.maxRetries ?? 0,
    maxConcurrentTasks: all.maxConcurrentTasks ?? null,
    diskPercent: all.diskPercent ?? diskPercentDefault,
    volumes: all.volumes ?? [],
  }
}

type SpecInput = NonNullable<JobInput['spec']>

/** @throws bad_request that names the field, not_implemented */
export function taskSettings(spec: SpecInput, before: TaskSettings | undefined): TaskSettings {
  const runners = spec.githubRunner?.repositories ?? []
  if (runners.length > 0) {
    throw new PlatformError(
      'not_implemented',
      'spec.githubRunner: a job cannot take workflow jobs of GitHub on this platform; leave it out',
    )
  }
  const { timeout, maxRetries, maxConcurrentTasks, diskPercent } = spec.runtime ?? {}
  // Clients that write every field write 0 for "by default".
  const given = (value: number | null | undefined) => value || undefined
  const ranged = (name: string, value: number | undefined, min: number, max: number) =>
    value === undefined ? undefined : checkRange(`spec.runtime.${name}`, value, min, max)
  return defined({
    timeoutSeconds: ranged('timeout', given(timeout), 1, timeoutSecondsMax) ?? before?.timeoutSeconds,
    maxRetries: ranged('maxRetries', maxRetries ?? undefined, 0, maxRetriesMax) ?? before?.maxRetries,
    maxConcurrentTasks:
      ranged('maxConcurrentTasks', given(maxConcurrentTasks), 1, maxConcurrentTasksMax) ??
      before?.maxConcurrentTasks,
    diskPercent: ranged('diskPercent', given(diskPercent), 10, 95) ?? before?.diskPercent,
    volumes: spec.volumes ? volumesOf(spec.volumes) : before?.volumes,
  })
}

/** Of the blaxel.toml of the code: what clients leave out of what they send. What is out of range does not count. */
export function builtTaskSettings(runtime: {
  timeout?: number | undefined
  maxRetries?: number | undefined
  maxConcurrentTasks?: number | undefined
}): TaskSettings {
  const within = (value: number | undefined, min: number, max: number) =>
    value !== undefined && value >= min && value <= max ? value : undefined
  return defined({
    timeoutSeconds: within(runtime.timeout, 1, timeoutSecondsMax),
    maxRetries: within(runtime.maxRetries, 0, maxRetriesMax),
    maxConcurrentTasks: within(runtime.maxConcurrentTasks, 1, maxConcurrentTasksMax),
  })
}

function volumesOf(given: NonNullable<SpecInput['volumes']>): TaskVolume[] {
  if (given.length > volumesMax)
    throw badRequest(`spec.volumes: ${given.length} volumes, at most ${volumesMax}`)
  const volumes = given.map((volume, index) => volumeOf(`spec.volumes[${index}]`, volume))
  for (const key of ['name', 'mountPath'] as const) {
    const twice = volumes.find((one, index) => volumes.findIndex((other) => other[key] === one[key]) < index)
    if (twice) throw badRequest(`spec.volumes: the ${key} ${quoted(twice[key])} is there twice`)
  }
  const total = volumes.reduce((sum, { sizeMb }) => sum + sizeMb, 0)
  checkRange('spec.volumes: sizeMb of all of them together', total, 0, volumeMbMax)
  return volumes
}

function volumeOf(field: string, given: NonNullable<SpecInput['volumes']>[number]): TaskVolume {
  const { name, mountPath, sizeMb, type, readOnly } = given
  if (type !== 'ephemeral') {
    throw new PlatformError(
      'not_implemented',
      `${field}.type: ${quoted(type ?? '')}: jobs have "ephemeral" volumes only, a directory of its own for each task`,
    )
  }
  if (readOnly)
    throw badRequest(`${field}.readOnly: an ephemeral volume begins empty, so it has to be writable`)
  if (!name) throw badRequest(`${field}.name: missing`)
  if (sizeMb === null || sizeMb === undefined) throw badRequest(`${field}.sizeMb: missing: its size in MB`)
  return {
    name: checkText(`${field}.name`, name, 63),
    mountPath: mountPathOf(`${field}.mountPath`, mountPath ?? ''),
    sizeMb: checkRange(`${field}.sizeMb`, sizeMb, 1, volumeMbMax),
  }
}

function mountPathOf(field: string, given: string): string {
  const path = checkText(field, given, mountPathCharsMax).replace(/\/+$/, '')
  const parts = path.split('/').slice(1)
  if (
    !path.startsWith('/') ||
    parts.some((part) => ['', '.', '..'].includes(part)) ||
    unmountable.test(path)
  ) {
    throw badRequest(
      `${field}: ${quoted(given)} is no absolute path of a directory, such as /mnt/data, outside of /proc, /sys, /dev and /run`,
    )
  }
  return path
}
