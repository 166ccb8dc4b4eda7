import { createHash } from 'node:crypto'
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { HelperError } from '../../guest/index.ts'
import { randomText } from '../../lib/ids.ts'
import type { CapabilityNote, InstanceSpec, RootFilesystem, RuntimeCapabilities } from '../../spec/runtime.ts'
import { bootId } from '../helper-process.ts'
import type { Cgroups } from './cgroups.ts'
import type { DiskImages } from './disk.ts'
import type { ProgramMemory } from './program-memory/index.ts'
import { NamespaceRuntime } from './runtime.ts'
import type { DiskSnapshots } from './snapshots.ts'

/** What this host allows, found out by doing it: small instances that are started and ended. */

/** What worked since the last boot. */
const probeMemoPath = '/run/hutch/probe.json'
const probeStorageMb = 16
/** Of the platform's own first instance; a probe beside it has a directory of its own. */
export const layerScratchPrefix = '.layer-'

export type Shared = Omit<
  ConstructorParameters<typeof NamespaceRuntime>[0],
  'capabilities' | 'diskImages' | 'snapshots' | 'memory' | 'onDispose'
>

/** As `tryInstance`, but what worked once with all the same is not tried again, so that a start takes no time. */
export async function tryOnce(
  shared: Shared,
  diskImages: DiskImages | null,
  remember: boolean,
): Promise<Trial> {
  const path = memoPath(shared)
  const same = sameAs(shared, diskImages !== null)
  const memo = readMemo(path)
  if (remember && memo?.worked === same && typeof memo.relays === 'boolean') {
    return { failure: null, relays: memo.relays }
  }
  const trial = await tryInstance(shared, diskImages)
  if (trial.failure === null && remember) writeMemo(path, { worked: same, relays: trial.relays })
  return trial
}

function memoPath({ instancesDir }: Shared): string {
  return process.getuid?.() === 0 ? probeMemoPath : `${instancesDir}/.probe.json`
}

/** A digest of all that what can be done here depends on. */
function sameAs(shared: Shared, ...more: unknown[]): string {
  return createHash('sha256')
    .update(
      JSON.stringify([
        bootId(),
        shared.helperPath,
        statSync(shared.helperPath).mtimeMs,
        ...more,
        process.getuid?.(),
        statSync(shared.instancesDir).dev,
        readFileSync('/proc/self/cgroup', 'utf8'),
        /^CapEff:.*$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[0],
      ]),
    )
    .digest('hex')
}

interface MemoryTrial {
  shared: Shared
  diskImages: DiskImages | null
  memory: ProgramMemory
  criuPath: string
  snapshotsOn: (diskImages: DiskImages | null, dir: string) => DiskSnapshots | null
  remember: boolean
}

/** Why memory cannot be kept; null when it was, and a program went on from it. As `tryOnce` what worked is remembered. */
export async function tryMemoryOnce(trial: MemoryTrial): Promise<string | null> {
  const { shared, diskImages, criuPath, remember } = trial
  const path = `${memoPath(shared)}.memory`
  const { mtimeMs, size } = statSync(criuPath)
  const same = sameAs(shared, diskImages !== null, criuPath, mtimeMs, size)
  if (remember && readMemo(path)?.worked === same) return null
  const failure = await tryMemory(trial)
  if (failure === null && remember) writeMemo(path, { worked: same, relays: true })
  return failure
}

/** Lets a program go on in an instance that is made of another. */
async function tryMemory({ shared, diskImages, memory, snapshotsOn }: MemoryTrial): Promise<string | null> {
  const layer = mkdtempSync(`${shared.instancesDir}/${layerScratchPrefix}`)
  const runtime = new NamespaceRuntime({
    ...shared,
    ...{ diskImages, memory, snapshots: snapshotsOn(diskImages, `${layer}.snapshots`) },
    // Its launcher has to stay, since that takes the instances along.
    ...{ transient: true, temporary: true },
    ...{ capabilities: describe(shared.cgroups, 'unknown', []), onDispose() {} },
  })
  const ids = [`probe${randomText(12)}`, `probe${randomText(12)}`]
  const [id = '', copyId = ''] = ids
  try {
    const spec = probeSpec(probeImage(layer))
    const instance = await runtime.create({ ...spec, id })
    await instance.guest.processes.spawn({
      ...{ id: 1, argv: ['/usr/bin/sleep', '1000000'], env: {}, workingDir: '/', stdin: 'null' as const },
    })
    await instance.freeze?.()
    const kept = await runtime.snapshots?.capture(id, id)
    if (!kept?.kept) return kept?.reason ?? 'files cannot be captured'
    await runtime.snapshots?.complete(id)
    const copy = await runtime.create({ ...spec, id: copyId, snapshotId: id, withMemory: true })
    return copy.memory?.kept ? null : (copy.memory?.reason ?? 'it is not known why')
  } catch (error) {
    return reasonOf(error)
  } finally {
    for (const each of ids) {
      await runtime
        .destroy(each)
        .catch((error) => shared.log.warn('a probe was left behind', { error: String(error) }))
    }
    await runtime[Symbol.asyncDispose]()
    for (const dir of [layer, `${layer}.snapshots`]) rmSync(dir, { recursive: true, force: true })
  }
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

async function tryInstance(shared: Shared, diskImages: DiskImages | null): Promise<Trial> {
  const layer = mkdtempSync(`${shared.instancesDir}/${layerScratchPrefix}`)
  const capabilities = describe(shared.cgroups, 'unknown', [])
  const runtime = new NamespaceRuntime({
    ...shared,
    diskImages,
    snapshots: null,
    memory: null,
    capabilities,
    transient: true,
    onDispose() {},
  })
  const id = `probe${randomText(12)}`
  try {
    await runtime.create({ ...probeSpec(probeImage(layer)), id })
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

function probeSpec(image: RootFilesystem): Omit<InstanceSpec, 'id'> {
  return {
    hostname: 'probe',
    image,
    memoryMb: 64,
    storageMb: probeStorageMb,
    pidsMax: 32,
    env: {},
    workingDir: '/root',
  }
}

function reasonOf(error: unknown): string {
  const cause = (error as Error).cause
  if (cause instanceof HelperError) return `${cause.stage}: ${cause.said}`
  return cause instanceof Error ? `${String(error)}: ${cause.message}` : String(error)
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

export function describe(cgroups: Cgroups, disk: string, notes: CapabilityNote[]): RuntimeCapabilities {
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
    memory: false,
    ownMounts: process.getuid?.() === 0,
    network: 'none',
    survivesRestart: true,
    notes,
  }
}
