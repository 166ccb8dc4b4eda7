/** What requests are led to, next: decided by what a client asks for, and by revisions that become ready or fail. */
import { badRequest, checkRange, quoted } from '../lib/checks.ts'
import {
  type DeploymentBody,
  isUnderWay,
  isUsable,
  type Revision,
  revisionOf,
  type Traffic,
} from './record.ts'
import type { RoutingInput } from './schema.ts'

/**
 * Percent of requests for a new revision. Where its client says nothing of them: all, if what serves is the newest there is;
 * none after somebody went back to an earlier one, or is trying one out, or asks for another one in the same breath.
 * @throws bad_request
 */
export function trafficOfNew(body: DeploymentBody, routing: RoutingInput | undefined): number {
  const { active } = body.wanted ?? body.traffic
  const asked = trafficAsked(routing)
  if (asked !== null) return asked
  // Who sends back what he read chooses nothing.
  if (routing?.active && routing.active !== active) return 0
  const newest = body.revisions.findLast(({ phase }) => phase !== 'failed' && phase !== 'uploading')
  if (newest === undefined || newest.id === active) return 100
  if (isUnderWay(newest)) return newest.traffic
  return active === null ? 100 : 0
}

/** @throws bad_request */
function trafficAsked(routing: RoutingInput | undefined): number | null {
  const { traffic } = routing ?? {}
  return traffic === undefined || traffic === null
    ? null
    : checkRange('spec.revision.traffic', traffic, 0, 100)
}

/**
 * As `body`, with the traffic that a client asks for; it is `wanted` until what is in it is ready. A client that sends
 * back what it read changes nothing. `withNew`: what it asks for by `traffic` is for a revision that comes now. @throws bad_request for a revision that is not there, or cannot serve
 */
export function withRouting(body: DeploymentBody, routing: RoutingInput, withNew: boolean): DeploymentBody {
  const now = body.wanted ?? body.traffic
  const next = askedTraffic(body, now, routing, withNew)
  if (sameTraffic(now, next)) return body
  const changed = { ...body, wanted: next }
  // Somebody chose: what is still on its way does not undo that.
  return {
    ...changed,
    revisions: changed.revisions.map((revision) =>
      isUnderWay(revision) ? { ...revision, traffic: 0 } : revision,
    ),
  }
}

function askedTraffic(body: DeploymentBody, now: Traffic, routing: RoutingInput, withNew: boolean): Traffic {
  const { active, canary, canaryPercent } = routing
  const traffic = trafficAsked(routing)
  if (!active && canary === undefined && canaryPercent === undefined) {
    return traffic === null || withNew ? now : newestTraffic(body, now, traffic)
  }
  const activeId = active ? usable(body, 'spec.revision.active', active).id : now.active
  if (!canary) return { active: activeId, canary: null, canaryPercent: 0 }
  const percent = checkRange('spec.revision.canaryPercent', canaryPercent ?? 0, 0, 100)
  const canaryId = usable(body, 'spec.revision.canary', canary).id
  if (activeId === null)
    throw badRequest('spec.revision.canary: no revision is active that it could stand beside')
  if (canaryId === activeId) return { active: activeId, canary: null, canaryPercent: 0 }
  return { active: activeId, canary: canaryId, canaryPercent: percent }
}

/** The newest revision's part of the requests, changed. */
function newestTraffic(body: DeploymentBody, now: Traffic, percent: number): Traffic {
  const newest = body.revisions.findLast(isUsable)
  return newest === undefined || newest.id === now.active ? now : trafficWith(now, newest.id, percent)
}

/** With `percent` of the requests for a revision that has had none. */
function trafficWith(now: Traffic, id: string, percent: number): Traffic {
  if (percent === 0) return now.canary === id ? { ...now, canary: null, canaryPercent: 0 } : now
  // There is nothing that it could stand beside.
  if (percent === 100 || now.active === null) return { active: id, canary: null, canaryPercent: 0 }
  return { active: now.active, canary: id, canaryPercent: percent }
}

/** What is served once a revision is ready. */
export function trafficOnceReady(body: DeploymentBody, revision: Revision): Traffic {
  const { traffic } = body
  const at = (id: string | null) => body.revisions.findIndex((one) => one.id === id)
  // An earlier one that took longer does not take over from a later one.
  if (at(traffic.active) > at(revision.id)) return traffic
  return trafficWith(traffic, revision.id, revision.traffic)
}

export function sameTraffic(left: Traffic, right: Traffic): boolean {
  return (
    left.active === right.active && left.canary === right.canary && left.canaryPercent === right.canaryPercent
  )
}

/** As it is told: "rev-a", "rev-a, and 10 % of them to rev-b" */
export function trafficText({ active, canary, canaryPercent }: Traffic): string {
  return canary === null ? `${active}` : `${active}, and ${canaryPercent} % of them to ${canary}`
}

function usable(body: DeploymentBody, field: string, id: string): Revision {
  const revision = revisionOf(body, id)
  if (revision !== undefined && isUsable(revision)) return revision
  const known = body.revisions.filter(isUsable).map((one) => one.id)
  const what =
    revision === undefined ? 'is no revision that is kept' : `cannot serve: it is ${revision.phase}`
  throw badRequest(`${field}: ${quoted(id)} ${what}; there are ${known.join(', ') || 'none'}`)
}
