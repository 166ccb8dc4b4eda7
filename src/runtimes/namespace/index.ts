import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync } from 'node:fs'
import type { Clock } from '../../lib/clock.ts'
import { randomText } from '../../lib/ids.ts'
import type { Logger } from '../../lib/log.ts'
import type {
  CapabilityNote,
  InstanceSpec,
  RootFilesystem,
  Runtime,
  RuntimeCapabilities,
  RuntimeProbe,
} from '../../spec/runtime.ts'
import { HelperError } from '../helper-process.ts'
import { Cgroups } from './cgroups.ts'
import { DiskImages, findMkfs } from './disk.ts'
import { NamespaceRuntime } from './runtime.ts'
import { UidRanges } from './uid-ranges.ts'

export interface NamespaceOptions {
  /** Made when missing, readable by this user only. */
  instancesDir: string
  /** The native helper, executable. */
  helperPath: string
  log: Logger
  clock: Clock
}

/** Where all platforms of this host note which uid ranges are taken; gone after a boot, as the instances are. */
const uidRangesDir = '/run/hutch/uid-ranges'
const probeStorageMb = 16

/** Starts and ends one small instance, to see what this host allows. */
export async function probeNamespace(options: NamespaceOptions): Promise<RuntimeProbe> {
  if (process.platform !== 'linux') {
    return {
      usable: false,
      reason: `namespaces are a feature of Linux, this is ${process.platform}`,
      notes: [],
    }
  }
  const { cgroups, failure, notes } = await openParts(options)
  cgroups?.close()
  return failure === null
    ? { usable: true, reason: 'sandboxes can be isolated with namespaces', notes }
    : { usable: false, reason: failure, notes }
}

/** @throws what the probe found, when no instance can be made */
export async function openNamespaceRuntime(options: NamespaceOptions): Promise<Runtime> {
  const parts = await openParts(options)
  if (parts.failure !== null || !parts.runtime)
    throw new Error(parts.failure ?? 'namespaces are not available')
  return parts.runtime
}

interface Parts {
  cgroups: Cgroups | null
  runtime: NamespaceRuntime | null
  notes: CapabilityNote[]
  failure: string | null
}

async function openParts(options: NamespaceOptions): Promise<Parts> {
  mkdirSync(options.instancesDir, { recursive: true, mode: 0o700 })
  const instancesDir = realpathSync(options.instancesDir)
  const name = `hutch-${createHash('sha256').update(instancesDir).digest('hex').slice(0, 12)}`
  const cgroups = new Cgroups(name, options.clock)
  const isRoot = process.getuid?.() === 0
  const shared = {
    ...options,
    instancesDir,
    cgroups,
    onDispose() {},
    uidRanges: isRoot ? openUidRanges(instancesDir) : null,
  }
  const onDispose = () => cgroups.close()
  const notes = [...cgroups.notes]

  const mkfs = findMkfs()
  let diskWhy = isRoot ? 'mkfs.ext4 is not installed' : 'only root can mount disk images'
  if (isRoot && mkfs !== null) {
    const diskImages = new DiskImages(instancesDir, mkfs)
    const failure = await tryInstance(shared, diskImages)
    if (failure === null) {
      notes.push({ subject: 'disk limit', ok: true, detail: 'every instance has a disk image of its own' })
      notes.push(isolationNote(null))
      const capabilities = describe(cgroups, 'disk image (ext4 on a loop device)', notes)
      return {
        cgroups,
        runtime: new NamespaceRuntime({ ...shared, diskImages, capabilities, onDispose }),
        notes,
        failure: null,
      }
    }
    diskWhy = failure
  }
  const failure = await tryInstance(shared, null)
  notes.push({
    subject: 'disk limit',
    ok: false,
    detail: `not enforced: ${diskWhy}`,
    remedy: isRoot ? 'Install e2fsprogs, and load the loop module.' : 'Run as root.',
  })
  notes.push(isolationNote(failure))
  const capabilities = describe(cgroups, 'none', notes)
  const runtime = new NamespaceRuntime({ ...shared, diskImages: null, capabilities, onDispose })
  return { cgroups, runtime, notes, failure }
}

function openUidRanges(instancesDir: string): UidRanges {
  try {
    return new UidRanges(uidRangesDir)
  } catch {
    // A host without a writable /run: then ranges are told apart within this data directory only.
    return new UidRanges(`${instancesDir}/.uid-ranges`)
  }
}

function describe(cgroups: Cgroups, disk: string, notes: CapabilityNote[]): RuntimeCapabilities {
  return {
    isolation: 'kernel-shared',
    limits: {
      memory: cgroups.limit('memory'),
      cpu: cgroups.limit('cpu'),
      pids: cgroups.limit('pids') === 'none' ? 'rlimit' : cgroups.limit('pids'),
      disk,
    },
    standby: cgroups.freezes ? 'freeze' : 'none',
    reclaim: false,
    survivesRestart: true,
    notes,
  }
}

function isolationNote(failure: string | null): CapabilityNote {
  const subject = 'namespaces'
  if (failure === null) return { subject, ok: true, detail: 'an instance was started and ended' }
  const remedy =
    process.getuid?.() === 0
      ? 'In a container, give it CAP_SYS_ADMIN and an unmasked /proc; on a host, Linux 5.12 or newer is needed.'
      : 'Allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, ' +
        'kernel.apparmor_restrict_unprivileged_userns=0), or run as root.'
  return { subject, ok: false, detail: failure, remedy }
}

/** Null when an instance could be made; else what stood in the way. */
async function tryInstance(
  shared: Omit<ConstructorParameters<typeof NamespaceRuntime>[0], 'capabilities' | 'diskImages'>,
  diskImages: DiskImages | null,
): Promise<string | null> {
  const layer = mkdtempSync(`${shared.instancesDir}/.probe-`)
  const capabilities = describe(shared.cgroups, 'unknown', [])
  const runtime = new NamespaceRuntime({ ...shared, diskImages, capabilities })
  const id = `probe${randomText(12)}`
  try {
    const spec: InstanceSpec = {
      id,
      hostname: 'probe',
      image: probeImage(layer),
      memoryMb: 64,
      storageMb: probeStorageMb,
      pidsMax: 32,
      env: {},
      workingDir: '/root',
    }
    await runtime.create(spec)
    return null
  } catch (error) {
    const cause = (error as Error).cause
    if (cause instanceof HelperError) return `${cause.stage}: ${cause.said}`
    return cause instanceof Error ? `${String(error)}: ${cause.message}` : String(error)
  } finally {
    await runtime
      .destroy(id)
      .catch((error) => shared.log.warn('a probe was left behind', { error: String(error) }))
    await runtime[Symbol.asyncDispose]()
    rmSync(layer, { recursive: true, force: true })
  }
}

function probeImage(layer: string): RootFilesystem {
  for (const name of ['usr', 'etc', 'proc', 'dev', 'tmp', 'root', 'var', 'run']) mkdirSync(`${layer}/${name}`)
  for (const name of ['bin', 'lib', 'lib64', 'sbin']) symlinkSync(`usr/${name}`, `${layer}/${name}`)
  return {
    digest: 'sha256:probe',
    layers: [layer],
    mounts: [{ source: '/usr', target: '/usr', kind: process.getuid?.() === 0 ? 'overlay' : 'bind' }],
  }
}
