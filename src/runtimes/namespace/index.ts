import { createHash } from 'node:crypto'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { PlatformError } from '../../errors.ts'
import { HelperError } from '../../guest/index.ts'
import type { Clock } from '../../lib/clock.ts'
import { randomText } from '../../lib/ids.ts'
import type { Logger } from '../../lib/log.ts'
import type { Egress } from '../../spec/egress.ts'
import type {
  CapabilityNote,
  InstanceSpec,
  RootFilesystem,
  Runtime,
  RuntimeCapabilities,
  RuntimeProbe,
} from '../../spec/runtime.ts'
import { bootId } from '../helper-process.ts'
import { cgroupNameOf, probePrefix } from './abandoned.ts'
import { Archives, findTar } from './archive.ts'
import { Cgroups } from './cgroups.ts'
import { DiskImages, findMkfs } from './disk.ts'
import { reclaimNote } from './reclaim.ts'
import { instanceIdPattern, readRecord } from './record.ts'
import { hostFreeMbMin, NamespaceRuntime } from './runtime.ts'
import { DiskSnapshots, findCp } from './snapshots.ts'
import { UidRanges } from './uid-ranges.ts'

export { probeScratchPrefix, removeAbandonedProbes } from './abandoned.ts'

export interface NamespaceOptions {
  /** Made when missing, readable by this user only. */
  instancesDir: string
  /** The native helper, executable. */
  helperPath: string
  log: Logger
  clock: Clock
  /** Absent: nothing leaves an instance. */
  egress?: Egress
  /** Instances end with this process, however it ends: no other will come to look for them. */
  temporary?: boolean
}

/** Where all platforms of this host note which uid ranges are theirs; gone after a boot, as the instances are. */
const uidRangesDir = '/run/hutch/uid-blocks'
/** What worked since the last boot. */
const probeMemoPath = '/run/hutch/probe.json'
const probeStorageMb = 16
/** Of the platform's own first instance; a probe beside it has a directory of its own. */
const layerScratchPrefix = '.layer-'

/** Starts and ends one small instance, to see what this host allows. Disturbs no platform that runs. */
export async function probeNamespace(options: NamespaceOptions): Promise<RuntimeProbe> {
  if (process.platform !== 'linux') {
    return {
      usable: false,
      reason: `namespaces are a feature of Linux, this is ${process.platform}`,
      notes: [],
    }
  }
  mkdirSync(options.instancesDir, { recursive: true, mode: 0o700 })
  const instancesDir = mkdtempSync(`${options.instancesDir}/${probePrefix}`)
  try {
    const templatesDir = `${instancesDir}/.templates`
    const { runtime, failure, notes } = await openParts(
      { ...options, instancesDir, templatesDir },
      { remember: false },
    )
    await runtime[Symbol.asyncDispose]()
    return failure === null
      ? { usable: true, reason: 'sandboxes can be isolated with namespaces', notes }
      : { usable: false, reason: failure, notes }
  } finally {
    rmSync(instancesDir, { recursive: true, force: true })
  }
}

/** @throws what the probe found, when no instance can be made */
export async function openNamespaceRuntime(options: NamespaceOptions): Promise<Runtime> {
  // Beside the instances, for it is none, and is kept when they are gone.
  const templatesDir = `${options.instancesDir}.templates`
  const { runtime, failure } = await openParts({ ...options, templatesDir }, { remember: true })
  if (failure === null) return runtime
  await runtime[Symbol.asyncDispose]()
  throw new PlatformError('unavailable', `Sandboxes cannot be isolated on this host: ${failure}`)
}

interface Parts {
  runtime: NamespaceRuntime
  notes: CapabilityNote[]
  /** Why no instance can be made; null when one could. */
  failure: string | null
}

async function openParts(
  options: NamespaceOptions & { templatesDir: string },
  { remember }: { remember: boolean },
): Promise<Parts> {
  const made = mkdirSync(options.instancesDir, { recursive: true, mode: 0o700 })
  const instancesDir = realpathSync(options.instancesDir)
  if (made !== undefined) spreadOut(instancesDir)
  if (remember) removeScratch(instancesDir)
  const cgroups = new Cgroups(cgroupNameOf(instancesDir), options.clock)
  const isRoot = process.getuid?.() === 0
  const uidRanges = isRoot ? openUidRanges(instancesDir) : null
  const tarPath = findTar()
  const archives = tarPath === null ? null : new Archives(tarPath, options.clock)
  const cpPath = archives !== null && cgroups.freezes ? findCp() : null
  const snapshotsOn = (diskImages: DiskImages | null) =>
    archives === null || cpPath === null
      ? null
      : new DiskSnapshots({
          dir: `${instancesDir}.snapshots`,
          freeBytesMin: hostFreeMbMin * 1024 * 1024,
          ...{ cpPath, archives, diskImages },
        })
  const shared = { ...options, instancesDir, cgroups, uidRanges, archives, egress: options.egress ?? null }
  const open = (diskImages: DiskImages | null, disk: string, notes: CapabilityNote[], relays: boolean) =>
    new NamespaceRuntime({
      ...shared,
      diskImages,
      snapshots: snapshotsOn(diskImages),
      capabilities: {
        ...describe(cgroups, disk, notes),
        archive: archives !== null,
        snapshots: cpPath !== null,
        network: relays ? 'relay' : 'none',
      },
      onDispose: () => {
        uidRanges?.[Symbol.dispose]()
        cgroups.close()
      },
    })

  const archiveNote: CapabilityNote =
    archives !== null
      ? { subject: 'archive', ok: true, detail: 'files of sandboxes can be packed' }
      : {
          subject: 'archive',
          ok: false,
          detail: 'sandboxes cannot be archived: GNU tar was not found',
          remedy: 'Install tar.',
        }
  const standbyNotes = [snapshotNote(cgroups, cpPath), ...standbyNotesOf(cgroups)]
  const mkfs = isRoot ? findMkfs() : null
  let diskWhy = isRoot ? 'mkfs.ext4 is not installed' : 'only root can mount disk images'
  if (mkfs !== null) {
    const diskImages = new DiskImages(options.templatesDir, mkfs)
    const { failure, relays } = await tryOnce(shared, diskImages, remember)
    if (failure === null) {
      const detail = 'every instance has a disk image of its own'
      const diskNote = { subject: 'disk limit', ok: true, detail }
      const notes = [
        ...[...cgroups.notes, diskNote, archiveNote, ...standbyNotes],
        ...[networkNote(relays), isolationNote(null)],
      ]
      return {
        runtime: open(diskImages, 'disk image (ext4 on a loop device)', notes, relays),
        notes,
        failure,
      }
    }
    diskWhy = failure
  }
  const { failure, relays } = await tryOnce(shared, null, remember)
  const diskNote: CapabilityNote = {
    subject: 'disk limit',
    ok: false,
    detail: `not enforced: ${diskWhy}`,
    remedy: isRoot ? 'Install e2fsprogs, and load the loop module.' : 'Run as root.',
  }
  const networkNotes = failure === null ? [networkNote(relays)] : []
  const notes = [
    ...[...cgroups.notes, diskNote, archiveNote, ...standbyNotes],
    ...[...networkNotes, isolationNote(failure)],
  ]
  return { runtime: open(null, 'none', notes, relays), notes, failure }
}

/**
 * Tells ext4 that directories in here have nothing to do with each other: put side by side, each new one looks through
 * what the removed ones before it have left. Other file systems refuse, which is as good.
 */
function spreadOut(dir: string): void {
  const chattr = Bun.which('chattr')
  if (chattr)
    Bun.spawn([chattr, '+T', dir], { stdin: 'ignore', stdout: 'ignore', stderr: 'ignore', env: {} }).unref()
}

/** What a platform that was killed had begun to make; the next holds the directory, so nobody needs it. */
function removeScratch(instancesDir: string): void {
  for (const name of readdirSync(instancesDir)) {
    if (!name.startsWith(layerScratchPrefix)) continue
    rmSync(`${instancesDir}/${name}`, { recursive: true, force: true })
  }
}

type Shared = Omit<
  ConstructorParameters<typeof NamespaceRuntime>[0],
  'capabilities' | 'diskImages' | 'snapshots' | 'onDispose'
>

/** As `tryInstance`, but what worked once with all the same is not tried again, so that a start takes no time. */
async function tryOnce(shared: Shared, diskImages: DiskImages | null, remember: boolean): Promise<Trial> {
  const path = process.getuid?.() === 0 ? probeMemoPath : `${shared.instancesDir}/.probe.json`
  const same = createHash('sha256')
    .update(
      JSON.stringify([
        bootId(),
        shared.helperPath,
        statSync(shared.helperPath).mtimeMs,
        diskImages !== null,
        process.getuid?.(),
        statSync(shared.instancesDir).dev,
        readFileSync('/proc/self/cgroup', 'utf8'),
        /^CapEff:.*$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[0],
      ]),
    )
    .digest('hex')
  const memo = readMemo(path)
  if (remember && memo?.worked === same && typeof memo.relays === 'boolean') {
    return { failure: null, relays: memo.relays }
  }
  const trial = await tryInstance(shared, diskImages)
  if (trial.failure === null && remember) writeMemo(path, { worked: same, relays: trial.relays })
  return trial
}

/** What came of starting one instance. */
interface Trial {
  /** What stood in the way; null when it could be made. */
  failure: string | null
  /** What leaves it arrives at its keeper. */
  relays: boolean
}

function readMemo(path: string): { worked?: unknown; relays?: unknown } | null {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return null
  }
}

function writeMemo(path: string, memo: { worked: string; relays: boolean }) {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    writeFileSync(`${path}.new`, JSON.stringify(memo), { mode: 0o600 })
    renameSync(`${path}.new`, path)
  } catch {
    // Then the next start tries again.
  }
}

function openUidRanges(instancesDir: string): UidRanges {
  const inUse = () => recordedRanges(instancesDir)
  try {
    return new UidRanges(uidRangesDir, instancesDir, inUse)
  } catch {
    // A host without a writable /run: then ranges are told apart within this data directory only.
    return new UidRanges(`${instancesDir}/.uid-ranges`, instancesDir, inUse)
  }
}

function* recordedRanges(instancesDir: string): Generator<{ base: number; instanceDir: string }> {
  for (const name of readdirSync(instancesDir)) {
    if (!instanceIdPattern.test(name)) continue
    const instanceDir = `${instancesDir}/${name}`
    const base = readRecord(instanceDir)?.uidBase ?? null
    if (base !== null) yield { base, instanceDir }
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
    reclaim: cgroups.freezes && cgroups.reclaimWay !== null,
    archive: false,
    snapshots: false,
    ownMounts: process.getuid?.() === 0,
    network: 'none',
    survivesRestart: true,
    notes,
  }
}

function snapshotNote(cgroups: Cgroups, cpPath: string | null): CapabilityNote {
  const subject = 'snapshots'
  if (cpPath !== null) {
    return { subject, ok: true, detail: 'files of sandboxes can be captured as they are at one moment' }
  }
  return cgroups.freezes
    ? {
        subject,
        ok: false,
        detail: 'none: GNU tar or cp was not found',
        remedy: 'Install tar and coreutils.',
      }
    : {
        subject,
        ok: false,
        detail: 'none: no control group can hold a sandbox still while its files are copied',
        remedy: 'As for standby.',
      }
}

function standbyNotesOf(cgroups: Cgroups): CapabilityNote[] {
  const subject = 'standby'
  if (cgroups.freezes) {
    const detail = 'sandboxes that nobody uses are frozen'
    return [{ subject, ok: true, detail }, reclaimNote(cgroups.reclaimWay)]
  }
  return [
    {
      subject,
      ok: false,
      detail: 'sandboxes that nobody uses go on running: no control group can freeze them',
      remedy:
        process.getuid?.() === 0
          ? 'Run where /sys/fs/cgroup is writable.'
          : 'Run as root, or with: systemd-run --user --scope -p Delegate=yes hutch up',
    },
  ]
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

async function tryInstance(shared: Shared, diskImages: DiskImages | null): Promise<Trial> {
  const layer = mkdtempSync(`${shared.instancesDir}/${layerScratchPrefix}`)
  const capabilities = describe(shared.cgroups, 'unknown', [])
  const runtime = new NamespaceRuntime({
    ...shared,
    diskImages,
    snapshots: null,
    capabilities,
    transient: true,
    onDispose() {},
  })
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
    return { failure: null, relays: runtime.relaysEgress }
  } catch (error) {
    return { failure: reasonOf(error), relays: false }
  } finally {
    await runtime
      .destroy(id)
      .catch((error) => shared.log.warn('a probe was left behind', { error: String(error) }))
    await runtime[Symbol.asyncDispose]()
    rmSync(layer, { recursive: true, force: true })
  }
}

function reasonOf(error: unknown): string {
  const cause = (error as Error).cause
  if (cause instanceof HelperError) return `${cause.stage}: ${cause.said}`
  return cause instanceof Error ? `${String(error)}: ${cause.message}` : String(error)
}

function networkNote(relays: boolean): CapabilityNote {
  const subject = 'network'
  if (relays)
    return { subject, ok: true, detail: 'what leaves a sandbox is relayed, by the rules of this platform' }
  return {
    subject,
    ok: false,
    detail: 'sandboxes reach nothing outside: this kernel cannot redirect their connections',
    remedy: 'Load nf_tables, nft_chain_nat, nft_redir and nft_reject_inet (Linux with CONFIG_NF_TABLES).',
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
