import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'

const diskClosedMessage =
  'the disk of this sandbox takes no writes any more, since the host had no room for some of them: make room there, then start the machine anew (archive the sandbox and unarchive it, or restart the platform); the files that were written stay'

export interface Build {
  version: string
  gitCommit?: string
  buildTime?: string
}

/** The sandbox's API is part of hutch, so that build and uptime are, too; it is upgraded with hutch, never by itself. */
export async function health(call: SandboxCall, build: Build): Promise<SandboxAnswer> {
  const { processes } = call.lease
  const [upgrades, stats] = await Promise.all([
    call.lease.upgrades.read(),
    // Of one that is just being ended there is nothing to count.
    call.lease.instance.stats().catch(() => null),
  ])
  const now = Date.now()
  const startedAt = processes.openedAt
  const uptimeSeconds = Math.max(0, Math.round((now - startedAt) / 1000))
  return json({
    ...(stats?.diskClosed ? { status: 'degraded', message: diskClosedMessage } : { status: 'ok' }),
    version: build.version,
    gitCommit: build.gitCommit ?? '',
    buildTime: build.buildTime ?? '',
    goVersion: '',
    os: process.platform,
    arch: process.arch === 'x64' ? 'amd64' : process.arch,
    uptime: durationText(uptimeSeconds),
    uptimeSeconds,
    startedAt: new Date(startedAt).toISOString(),
    upgradeCount: upgrades.count,
    lastUpgrade: lastUpgrade(upgrades.last, build),
    processes: processes.counts,
  })
}

type LastUpgrade = Awaited<ReturnType<SandboxCall['lease']['upgrades']['read']>>['last']

function lastUpgrade(last: LastUpgrade, build: Build): object {
  if (last === null) return { status: 'idle', step: 'none', version: build.version }
  const { at, version, error } = last
  const lastAttempt = new Date(at).toISOString()
  if (error !== undefined) return { status: 'failed', step: 'starting', version, lastAttempt, error }
  return { status: 'completed', step: 'completed', version, lastAttempt }
}

const versionCharactersMax = 128
const upgradeBody = z.lazy(() =>
  z.object({
    version: z.string().max(versionCharactersMax).nullish(),
    baseUrl: z.string().max(2048).nullish(),
  }),
)
/** Names that stand for whatever is newest. */
const newest = ['', 'latest', 'develop', 'main']

/**
 * Answers at once; what became of it is told by `/health`. The version that runs is the newest there is: another one
 * comes with another hutch, and from nowhere else.
 */
export async function upgrade(call: SandboxCall, build: Build): Promise<SandboxAnswer> {
  const { version, baseUrl } = call.request.body ? await readJsonBody(call, upgradeBody) : {}
  const wanted = version ?? ''
  const here = newest.includes(wanted) || wanted.replace(/^v/, '') === build.version
  const problem = baseUrl
    ? 'baseUrl: the API of a sandbox is part of the platform and is not downloaded from elsewhere'
    : here
      ? undefined
      : `version ${wanted} is not here: the API of a sandbox is part of the platform, whose version is ${build.version}`
  await call.lease.upgrades.note(problem === undefined ? build.version : wanted, problem)
  return json({
    message: 'Upgrade initiated',
    version: version || 'latest',
    baseUrl: baseUrl ?? '',
  })
}

/** In the cloud a guest reads its environment again from metadata; here a changed one is a new machine. @throws not_found */
export function reloadEnvironment(): SandboxAnswer {
  throw new PlatformError(
    'not_found',
    'there is no /bl/metadata here: the environment of a sandbox changes by an update of the sandbox, which starts it anew',
  )
}

function durationText(seconds: number): string {
  const hours = Math.floor(seconds / 3600)
  const minutes = Math.floor((seconds % 3600) / 60)
  if (hours > 0) return `${hours}h${minutes}m${seconds % 60}s`
  return minutes > 0 ? `${minutes}m${seconds % 60}s` : `${seconds}s`
}
