/** What clients that poll a deployment are told of how far it is. */
import { buildingShownMs } from '../builds/index.ts'
import { type DeploymentBody, type DeploymentStatus, isUnderWay, type Revision } from './record.ts'

export function statusOf(body: DeploymentBody, nowMs: number): DeploymentStatus {
  if (body.state === 'deleting') return 'DELETING'
  if (body.state === 'deactivating') return 'DEACTIVATING'
  const newest = body.revisions.at(-1)
  if (body.state === 'deactivated' && !(newest && isUnderWay(newest))) return 'DEACTIVATED'
  if (newest !== undefined) {
    const told = phaseStatus(newest, nowMs)
    if (told !== 'DEPLOYED') return told
  }
  if (body.wanted !== undefined) return 'DEPLOYING'
  return newest === undefined ? 'FAILED' : 'DEPLOYED'
}

/** Of one revision, in the words of deployments. */
export function revisionStatus(revision: Revision): DeploymentStatus {
  return phaseStatus(revision, Number.POSITIVE_INFINITY)
}

/** Why the newest revision is not what serves; null when it is. */
export function failureOf(body: DeploymentBody): string | null {
  const newest = body.revisions.at(-1)
  if (newest?.phase !== 'failed') return null
  const event = body.events.findLast(({ revision, status }) => revision === newest.id && status === 'FAILED')
  return event?.message ?? null
}

function phaseStatus({ phase, uploadedAt }: Revision, nowMs: number): DeploymentStatus {
  if (phase === 'uploading') return 'UPLOADING'
  if (phase === 'building') return 'BUILDING'
  if (uploadedAt !== undefined && nowMs < uploadedAt + buildingShownMs) return 'BUILDING'
  if (phase === 'deploying') return 'DEPLOYING'
  return phase === 'failed' ? 'FAILED' : 'DEPLOYED'
}
