import { json, type SandboxAnswer, type SandboxCall } from './call.ts'

export interface Build {
  version: string
  gitCommit?: string
  buildTime?: string
}

/** The sandbox's API is part of hutch, so that build and uptime are, too; it is upgraded with hutch, never by itself. */
export function health(call: SandboxCall, build: Build): SandboxAnswer {
  const { processes } = call.lease
  const now = Date.now()
  const startedAt = processes.openedAt
  const uptimeSeconds = Math.max(0, Math.round((now - startedAt) / 1000))
  return json({
    status: 'ok',
    version: build.version,
    gitCommit: build.gitCommit ?? '',
    buildTime: build.buildTime ?? '',
    goVersion: '',
    os: process.platform,
    arch: process.arch === 'x64' ? 'amd64' : process.arch,
    uptime: durationText(uptimeSeconds),
    uptimeSeconds,
    startedAt: new Date(startedAt).toISOString(),
    upgradeCount: 0,
    lastUpgrade: { status: 'idle', step: 'none', version: build.version },
    processes: processes.counts,
  })
}

function durationText(seconds: number): string {
  const hours = Math.floor(seconds / 3600)
  const minutes = Math.floor((seconds % 3600) / 60)
  if (hours > 0) return `${hours}h${minutes}m${seconds % 60}s`
  return minutes > 0 ? `${minutes}m${seconds % 60}s` : `${seconds}s`
}
