/** How a deployment rests in the store: one record, with its revisions in it, so that every change is one. */
import { PlatformError } from '../errors.ts'
import type { EnvEntry } from '../lib/environment.ts'
import type { Resource } from '../spec/store.ts'
import type { DeploymentKind, deploymentStatuses, Transport } from './kinds.ts'
import type { TaskSettings } from './task-settings.ts'
import type { StoredTrigger, TriggerState } from './triggers.ts'

const eventsMax = 100
const eventMessageCharsMax = 8 * 1024
/** Those on their way not counted. */
const revisionsKept = 5

export type DeploymentStatus = (typeof deploymentStatuses)[number]

export interface DeploymentEvent {
  time: string
  type: string
  status: DeploymentStatus
  message: string
  revision?: string
  canaryRevision?: string
}

/** Which revisions get the requests. */
export interface Traffic {
  active: string | null
  canary: string | null
  /** Of 100 requests, how many go to the canary. */
  canaryPercent: number
}

/**
 * Where a revision is: `uploading` and `building` have no image yet, `deploying` is being brought up, `prepared` has its
 * image and was not brought up since its deployment was deactivated.
 */
export type RevisionPhase = 'uploading' | 'building' | 'deploying' | 'prepared' | 'deployed' | 'failed'

/** What of a deployment is the same for ever in one revision. */
export interface RevisionSpec {
  /** As the client named it; null: built here, from what it uploaded. */
  image: string | null
  memoryMb: number
  minScale: number
  maxScale: number
  /** Absent: the image's only port, else `portDefault`. */
  port?: number
  transport?: Transport
  /** Of jobs. */
  task?: TaskSettings
  envs: EnvEntry[]
}

export interface Revision {
  id: string
  /** Counts the revisions of its deployment, from 1; absent: it is from before they were counted. */
  number?: number
  createdAt: number
  createdBy: string
  phase: RevisionPhase
  spec: RevisionSpec
  /** name -> value, sealed */
  sealedEnv: string
  /** Percent of requests it is to get once it is ready. */
  traffic: number
  /** When the archive was here, in milliseconds since the epoch. */
  uploadedAt?: number
  /** What its image is taken from: a reference, as named or of an earlier revision. Absent: it is built. */
  source?: string
  /** Its registry is asked for it, whatever is here already. */
  fresh?: boolean
  /** Its image here, under a tag of its own; absent until it has one. */
  image?: string
  /** The port that the image names, if it is one alone. */
  imagePort?: number
  /** What the blaxel.toml of its code says; variables sealed. */
  built?: { sealedEnv: string; transport?: Transport; task?: TaskSettings }
  digest?: string
  /** Credentials for the registry of its image, sealed, until that is here. */
  sealedDockerConfig?: string
  /** Whose files it begins with, as it was forked from a sandbox. */
  snapshotId?: string
}

/** What a client asked for last, without secrets. */
export interface DeploymentSpec extends RevisionSpec {
  enabled: boolean
  public: boolean
  region?: string
  /** As clients name them; nothing here applies them. */
  policies?: string[]
  generation?: string
  ports?: { name?: string; target: number; protocol: string }[]
  repository?: { type?: string; url?: string }
  triggers?: StoredTrigger[]
  /** Host names of its own, below domains of the workspace; applications alone. */
  urls?: ApplicationUrl[]
  /** Seconds that a client stays with the revision it met first; 0: it does not. */
  stickySessionTtl: number
}

export interface ApplicationUrl {
  domain: string
  subdomain?: string
}

export interface DeploymentBody {
  /** Unique for ever; binds the sealed texts to this record. */
  uid: string
  displayName?: string
  externalId?: string
  labels: Record<string, string>
  createdBy: string
  updatedBy: string
  spec: DeploymentSpec
  /** Of the spec. */
  sealedEnv: string
  /** By the id of the trigger. */
  triggerStates?: Record<string, TriggerState>
  /** Oldest first. */
  revisions: Revision[]
  traffic: Traffic
  /** What is to be served once it is ready, in the place of `traffic`. */
  wanted?: Traffic
  previousActive?: string
  /** `deactivating` and `deleting`: its instances are still to be ended. */
  state: 'active' | 'deactivating' | 'deactivated' | 'deleting'
  /** Tags of images of revisions that are gone, to be removed. */
  leftoverImages: string[]
  events: DeploymentEvent[]
}

export type StoredDeployment = Resource<DeploymentBody>

export const noTraffic: Traffic = { active: null, canary: null, canaryPercent: 0 }

export function hostOf({ domain, subdomain }: ApplicationUrl): string {
  return subdomain === undefined ? domain : `${subdomain}.${domain}`
}

export function kindOf(deployment: StoredDeployment): DeploymentKind {
  return deployment.kind as DeploymentKind
}

export function beingDeleted({ kind, name }: StoredDeployment): PlatformError {
  return new PlatformError('conflict', `the ${kind} "${name}" is being deleted: try again when that is over`)
}

export function isUnderWay({ phase }: Revision): boolean {
  return phase === 'uploading' || phase === 'building' || phase === 'deploying'
}

/** Whether requests can be led to it. */
export function isUsable({ phase }: Revision): boolean {
  return phase === 'deployed' || phase === 'prepared'
}

export function revisionOf(body: DeploymentBody, id: string | null): Revision | undefined {
  return id === null ? undefined : body.revisions.find((revision) => revision.id === id)
}

/** What clients call it that know versions by number. */
export function numberOf({ revisions }: Pick<DeploymentBody, 'revisions'>, revision: Revision): number {
  return revision.number ?? revisions.indexOf(revision) + 1
}

/** Every revision that requests may be led to, or are to be. */
export function routed({ traffic, wanted }: DeploymentBody): Set<string> {
  const ids = [traffic.active, traffic.canary, wanted?.active, wanted?.canary]
  return new Set(ids.filter((id) => id !== null && id !== undefined))
}

export function withRevision(
  body: DeploymentBody,
  id: string,
  change: (revision: Revision) => Revision,
): DeploymentBody {
  return {
    ...body,
    revisions: body.revisions.map((revision) => (revision.id === id ? change(revision) : revision)),
  }
}

export function withEvent(
  body: DeploymentBody,
  nowMs: number,
  event: Omit<DeploymentEvent, 'time'>,
): DeploymentBody {
  const message =
    event.message.length > eventMessageCharsMax
      ? `${event.message.slice(0, eventMessageCharsMax)}...`
      : event.message
  const events = [...body.events, { time: new Date(nowMs).toISOString(), ...event, message }]
  return { ...body, events: events.slice(-eventsMax) }
}

/** With an event that says what becomes of its policies, where there are others than `before`. */
export function withPolicies(
  body: DeploymentBody,
  before: readonly string[] | undefined,
  nowMs: number,
): DeploymentBody {
  const { policies = [] } = body.spec
  if (policies.length === 0 || policies.join() === before?.join()) return body
  return withEvent(body, nowMs, {
    type: 'policies',
    status: body.state === 'deactivated' ? 'DEACTIVATED' : 'DEPLOYING',
    message: `spec.policies: ${policies.join(', ')}: kept, and not applied, since there are no policies on this platform`,
  })
}

/**
 * Without the revisions that are too many: the last ones are kept, and those that requests are led to. Their images are
 * left over.
 */
export function pruned(body: DeploymentBody): DeploymentBody {
  const served = routed(body)
  const settled = body.revisions.filter((revision) => !isUnderWay(revision))
  const newest = settled.at(-1)
  const keep = (revision: Revision) => served.has(revision.id) || revision === newest
  let excess = settled.length - revisionsKept
  const going = new Set<Revision>()
  // What failed is of no use to go back to.
  for (const candidates of [settled.filter(({ phase }) => phase === 'failed'), settled]) {
    for (const revision of candidates) {
      if (excess <= 0) break
      if (going.has(revision) || keep(revision)) continue
      going.add(revision)
      excess--
    }
  }
  return going.size === 0 ? body : withoutRevisions(body, going)
}

export function withoutRevisions(body: DeploymentBody, going: ReadonlySet<Revision>): DeploymentBody {
  const left = [...going].flatMap(({ image }) => (image === undefined ? [] : [image]))
  return {
    ...body,
    revisions: body.revisions.filter((revision) => !going.has(revision)),
    leftoverImages: [...body.leftoverImages, ...left],
  }
}
