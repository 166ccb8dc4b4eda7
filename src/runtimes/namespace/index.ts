import { mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type { Egress } from '../../spec/egress.ts'
import type { CapabilityNote, Runtime, RuntimeProbe } from '../../spec/runtime.ts'
import { cgroupNameOf, probePrefix } from './abandoned.ts'
import { Archives, findTar } from './archive.ts'
import { Cgroups } from './cgroups.ts'
import { hostFreeMbMin } from './directories.ts'
import { DiskImages, findMkfs } from './disk.ts'
import { criuPathDefault, findCriu, ProgramMemory } from './program-memory/index.ts'
import { reclaimNote } from './reclaim.ts'
import { instanceIdPattern, recordFile } from './record.ts'
import { NamespaceRuntime } from './runtime.ts'
import { DiskSnapshots, findCp } from './snapshots.ts'
import { describe, layerScratchPrefix, tryMemoryOnce, tryOnce } from './trials.ts'
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
  /** Of a static CRIU; 'none': memory is not kept; null or absent: where `scripts/install-criu.sh` puts it. */
  criuPath?: string | null
}

/** Where all platforms of this host note which uid ranges are theirs; gone after a boot, as the instances are. */
const uidRangesDir = '/run/hutch/uid-blocks'

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
  const snapshotsOn = (diskImages: DiskImages | null, dir = `${instancesDir}.snapshots`) =>
    archives === null || cpPath === null
      ? null
      : new DiskSnapshots({
          dir,
          freeBytesMin: hostFreeMbMin * 1024 * 1024,
          ...{ cpPath, archives, diskImages },
        })
  const criuPath = isRoot && cpPath !== null ? findCriu(options.criuPath ?? null) : null
  const shared = { ...options, instancesDir, cgroups, uidRanges, archives, egress: options.egress ?? null }
  const memoryOn = async (diskImages: DiskImages | null) => {
    if (criuPath === null) return { memory: null, note: memoryNote(options.criuPath ?? null, null) }
    const memory = new ProgramMemory({
      ...{ helperPath: options.helperPath, criuPath, clock: options.clock, log: options.log },
      freeBytesMin: hostFreeMbMin * 1024 * 1024,
    })
    const failure = await tryMemoryOnce({ shared, diskImages, memory, snapshotsOn, criuPath, remember })
    return { memory: failure === null ? memory : null, note: memoryNote(criuPath, failure ?? '') }
  }
  const open = (
    diskImages: DiskImages | null,
    memory: ProgramMemory | null,
    disk: string,
    notes: CapabilityNote[],
    relays: boolean,
  ) =>
    new NamespaceRuntime({
      ...shared,
      diskImages,
      snapshots: snapshotsOn(diskImages),
      memory,
      capabilities: {
        ...describe(cgroups, disk, notes),
        archive: archives !== null,
        snapshots: cpPath !== null,
        memory: memory !== null,
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
      const { memory, note } = await memoryOn(diskImages)
      const notes = [
        ...[...cgroups.notes, diskNote, archiveNote, note, ...standbyNotes],
        ...[networkNote(relays), isolationNote(null)],
      ]
      return {
        runtime: open(diskImages, memory, 'disk image (ext4 on a loop device)', notes, relays),
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
  const { memory, note } =
    failure === null ? await memoryOn(null) : { memory: null, note: memoryNote(criuPath, failure) }
  const notes = [
    ...[...cgroups.notes, diskNote, archiveNote, note, ...standbyNotes],
    ...[...networkNotes, isolationNote(failure)],
  ]
  return { runtime: open(null, memory, 'none', notes, relays), notes, failure }
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
    const base = recordFile.read(instanceDir)?.uidBase ?? null
    if (base !== null) yield { base, instanceDir }
  }
}

function memoryNote(criuPath: string | null, failure: string | null): CapabilityNote {
  const subject = 'memory snapshots'
  if (failure === '') return { subject, ok: true, detail: 'programs go on in what is made of a snapshot' }
  const files = 'snapshots have files only, and programs are started anew from them'
  if (failure !== null) return { subject, ok: false, detail: `${files}: ${failure}` }
  if (criuPath === 'none')
    return { subject, ok: false, detail: `${files}, as configured`, remedy: 'Leave criu out.' }
  return {
    subject,
    ok: false,
    detail: `${files}: there is no static CRIU at ${criuPath ?? criuPathDefault}`,
    remedy: process.getuid?.() === 0 ? 'Install it with scripts/install-criu.sh.' : 'Run as root.',
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
