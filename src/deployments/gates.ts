/** What triggers make of a request to an address: open or not, at once or later, and where in the program it goes. */
import { type DeploymentKind, kindFacts } from './kinds.ts'
import type { DeploymentBody } from './record.ts'
import { isEnabled, type StoredTrigger } from './triggers.ts'

/** One trigger that requests come by. */
interface Gate {
  trigger: StoredTrigger
  /** Below the deployment's address, without slashes around it; '': all of it. */
  path: string
  /** An address of its own, behind which the program's root is. */
  isEndpoint: boolean
}

export interface Gates {
  isPublic: boolean
  http: Gate[]
  async: Gate[]
  /** Somebody switched all of them off. */
  asyncOff: boolean
  /** How many of what comes later are under way at once, by whichever trigger; null: as many as there are. */
  atOnce: number | null
}

/** How a request comes. */
export interface Passing {
  /** Below the deployment's address, undecoded. */
  path: string
  method: string
  /** It says that it is to be answered later. */
  isAsync: boolean
}

/** What becomes of a request. */
export interface Passage {
  /** Answered later, by this trigger; null: by none, as there is none. */
  later: { trigger: StoredTrigger | null } | null
  /** Undecoded, for the program; null: as it came. */
  path: string | null
  /** Of what is answered at once, where its trigger says something of that. */
  tries?: Tries
}

/** How often what failed is tried again, and when an answer has to have begun. */
export interface Tries {
  retries: number
  timeoutMs: number | null
}

export function gatesOf(kind: DeploymentKind, { spec }: Pick<DeploymentBody, 'spec'>): Gates {
  const triggers = spec.triggers ?? []
  const gates = triggers.filter(isEnabled).map((trigger) => ({ trigger, ...placeOf(kind, trigger) }))
  const later = gates.filter(({ trigger }) => trigger.type === 'http-async')
  const limits = triggers.flatMap(({ configuration }) => configuration?.concurrency ?? [])
  const implied: StoredTrigger = { id: 'async', type: 'http-async', configuration: { timeout: 600 } }
  return {
    isPublic: spec.public,
    http: gates.filter(({ trigger }) => trigger.type === 'http'),
    // What that generation had without being told.
    async:
      kind === 'agent' && spec.generation === 'mk2' && !triggers.some(({ type }) => type === 'http-async')
        ? [{ trigger: implied, path: earlierPath, isEndpoint: true }]
        : later,
    asyncOff: later.length === 0 && triggers.some(({ type }) => type === 'http-async'),
    atOnce: limits.length === 0 ? null : Math.min(...limits),
  }
}

/** Of what comes later, where nobody said another one. */
const earlierPath = 'async'
const straightOn: Passage = { later: null, path: null }
const untriggered: Passage = { later: { trigger: null }, path: null }

/** Where a request goes. Those without triggers go where they say. */
export function passageOf(gates: Gates, { path, method, isAsync }: Passing): Passage {
  if (gates.http.length === 0 && gates.async.length === 0) return isAsync ? untriggered : straightOn
  const plain = plainPath(path)
  const own =
    method === 'POST'
      ? (longest(gates.async, plain, { whole: false }) ?? earlier(gates, plain, isAsync))
      : undefined
  const http = longest(gates.http, plain, { whole: true })
  if (own !== undefined && own.path.length >= (http?.path.length ?? 0))
    return { later: { trigger: own.trigger }, path: behind(own, path) }
  const forwarded = http === undefined ? null : behind(http, path)
  if (!isAsync) return { later: null, path: forwarded, ...(http === undefined ? {} : triesOf(http)) }
  const general = gates.async.find((gate) => gate.path === '') ?? gates.async[0]
  return { later: { trigger: general?.trigger ?? null }, path: forwarded }
}

/** Whether who comes needs no credential. */
export function isOpen(gates: Gates, passing: Passing): boolean {
  if (gates.isPublic) return true
  if (gates.http.length === 0 && gates.async.length === 0) return false
  const { later } = passageOf(gates, passing)
  const type = later?.trigger?.configuration?.authenticationType
  if (type !== undefined) return type === 'public'
  const plain = plainPath(passing.path)
  // A program may take more than one spelling for the same: what closes counts for all of them, what opens for one.
  const closing = Math.max(
    ...gates.http
      .filter(({ trigger }) => !isPublicGate(trigger))
      .filter(({ path }) => plain === null || covers(path.toLowerCase(), plain.toLowerCase()))
      .filter(({ path, trigger }) => path !== '' || trigger.configuration?.authenticationType !== undefined)
      .map(({ path }) => (plain === null ? Number.POSITIVE_INFINITY : path.length)),
    -1,
  )
  const opening = Math.max(
    ...gates.http
      .filter(({ trigger }) => isPublicGate(trigger))
      .filter(({ path }) => path === '' || (plain !== null && covers(path, plain)))
      .map(({ path }) => path.length),
    -1,
  )
  return opening > -1 && opening >= closing
}

function isPublicGate({ configuration }: StoredTrigger): boolean {
  return configuration?.authenticationType === 'public'
}

function triesOf({ trigger }: Gate): { tries?: Tries } {
  const { retry: retries = 0, timeout } = trigger.configuration ?? {}
  if (retries === 0 && timeout === undefined) return {}
  return { tries: { retries, timeoutMs: timeout === undefined ? null : timeout * 1000 } }
}

/** `agents/NAME/sync` is an address that is made, whatever the name; `/invoke` is one that the program has. */
function placeOf(
  kind: DeploymentKind,
  { configuration }: StoredTrigger,
): { path: string; isEndpoint: boolean } {
  const path = (configuration?.path ?? '').replace(/^\/+|\/+$/g, '')
  const [plural, own, ...rest] = path.split('/')
  if (plural !== kindFacts[kind].plural || own === undefined) return { path, isEndpoint: false }
  return { path: rest.join('/'), isEndpoint: rest.length > 0 }
}

/** A trigger without a path has the address, too, by which the generation before is asked: that alone, at the root. */
function earlier({ async }: Gates, plain: string | null, isAsync: boolean): Gate | undefined {
  if (plain !== earlierPath || isAsync) return undefined
  const general = async.find((gate) => gate.path === '')
  return general && { trigger: general.trigger, path: earlierPath, isEndpoint: true }
}

/** The narrowest that covers a path. */
function longest(gates: Gate[], plain: string | null, { whole }: { whole: boolean }): Gate | undefined {
  let found: Gate | undefined
  for (const gate of gates) {
    if (gate.path === '' ? !whole : plain === null || !covers(gate.path, plain)) continue
    if (found === undefined || gate.path.length > found.path.length) found = gate
  }
  return found
}

function covers(path: string, plain: string): boolean {
  return path === '' || plain === path || plain.startsWith(`${path}/`)
}

/** What is left of a path behind a gate of its own; null: the program sees it as it came. */
function behind({ isEndpoint, path }: Gate, given: string): string | null {
  if (!isEndpoint) return null
  const segments = given.split('/').filter((segment) => segment !== '')
  return `/${segments.slice(path.split('/').length).join('/')}`
}

/** Decoded, without slashes around it; null for what programs read in more than one way. */
function plainPath(path: string): string | null {
  const bare = path.replace(/^\/+|\/+$/g, '')
  if (bare.includes('//') || bare.includes('\\') || /%(2f|5c|00)/i.test(bare)) return null
  try {
    const plain = decodeURIComponent(bare)
    return plain.split('/').some((segment) => segment === '.' || segment === '..') ? null : plain
  } catch {
    return null
  }
}
