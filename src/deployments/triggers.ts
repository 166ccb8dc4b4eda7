/** Triggers of a deployment: what clients may ask for, and what is kept of them beside that. */
import { badRequest, checkRange, checkText, quoted } from '../lib/checks.ts'
import { parseCron } from '../lib/cron.ts'
import type { DeploymentKind } from './kinds.ts'
import type { WorkloadInput } from './schema.ts'

const triggerTypes = ['http', 'http-async', 'cron'] as const
export type TriggerType = (typeof triggerTypes)[number]

export interface TriggerConfiguration {
  path?: string
  authenticationType?: string
  /** How often what failed is tried again. */
  retry?: number
  /** Seconds. */
  timeout?: number
  /** How many of what comes later are under way at once; the smallest of a deployment's triggers holds. */
  concurrency?: number
  callbackUrl?: string
  schedule?: string
  timezone?: string
  missed?: string
  tasks?: Record<string, unknown>[]
  [other: string]: unknown
}

export interface StoredTrigger {
  id: string
  type: TriggerType
  enabled?: boolean
  configuration?: TriggerConfiguration
}

/** Kept beside a trigger, by its id. */
export interface TriggerState {
  /** From when on its moments count. */
  since: number
  /** Of its callbacks, newest first. The first one holds until it is taken back, the others until `until`. */
  secrets: { sealed: string; until?: number }[]
}

export type TriggerInput = NonNullable<NonNullable<WorkloadInput['spec']>['triggers']>[number]

const triggersMax = 20
const triggerBytesMax = 64 * 1024
const idCharactersMax = 128
const pathCharactersMax = 1024
const retriesMax = 10
const concurrencyMax = 1000
const tasksMax = 1000
const asyncSecondsMax = 15 * 60
const taskSecondsMax = 365 * 24 * 60 * 60
const authenticationTypes = ['public', 'private', 'blaxel']
const missedPolicies = ['once', 'skip']
/** What may trigger them. */
const typesOfKinds: Record<string, readonly TriggerType[]> = {
  agent: triggerTypes,
  function: ['http'],
  job: ['cron'],
}
/** Some clients write these beside the configuration. */
const outerKeys = ['path', 'retry', 'timeout', 'callbackUrl', 'authenticationType', 'schedule', 'timezone']

/** Each gets an id of its own where it has none, or one that another has. @throws bad_request */
export function triggersOf(
  kind: DeploymentKind,
  given: readonly (TriggerInput | StoredTrigger)[],
): StoredTrigger[] {
  if (given.length > triggersMax)
    throw badRequest(`spec.triggers: ${given.length} triggers, at most ${triggersMax}`)
  if (Buffer.byteLength(JSON.stringify(given)) > triggerBytesMax)
    throw badRequest(`spec.triggers: larger than ${triggerBytesMax} bytes`)
  const ids = new Set<string>()
  return given.map((trigger, index) => {
    const field = `spec.triggers[${index}]`
    const type = typeOf(kind, field, trigger.type)
    const wanted = idOf(`${field}.id`, trigger.id || type)
    let id = wanted
    for (let count = 2; ids.has(id); count++) id = `${wanted}-${count}`
    ids.add(id)
    const configuration = configurationOf(kind, type, `${field}.configuration`, trigger)
    return {
      id,
      type,
      ...(typeof trigger.enabled === 'boolean' ? { enabled: trigger.enabled } : {}),
      ...(Object.keys(configuration).length > 0 || trigger.configuration ? { configuration } : {}),
    }
  })
}

/**
 * What is kept of triggers, after they became `next`: a callback address has a secret from when it is there on, and a
 * pattern counts from when it was asked for, or switched on.
 */
export function triggerStates(
  before: { triggers: readonly StoredTrigger[]; states: Record<string, TriggerState> },
  next: readonly StoredTrigger[],
  { nowMs, newSecret }: { nowMs: number; newSecret: (id: string) => string },
): { states: Record<string, TriggerState>; revealed: string[] } {
  const states: Record<string, TriggerState> = {}
  const revealed: string[] = []
  for (const trigger of next) {
    const { id } = trigger
    const previous = before.triggers.find((one) => one.id === id)
    const state = Object.hasOwn(before.states, id) ? before.states[id] : undefined
    let secrets = state?.secrets ?? []
    if (!callsBack(trigger)) secrets = []
    else if (secrets.length === 0) {
      secrets = [{ sealed: newSecret(id) }]
      revealed.push(id)
    }
    const since = state && previous && timing(previous) === timing(trigger) ? state.since : nowMs
    states[id] = { since, secrets }
  }
  return { states, revealed }
}

export function callsBack({ configuration }: StoredTrigger): boolean {
  return (configuration?.callbackUrl ?? '') !== ''
}

export function isEnabled({ enabled }: StoredTrigger): boolean {
  return enabled !== false
}

function timing(trigger: StoredTrigger): string {
  const { type, configuration } = trigger
  return JSON.stringify([type, isEnabled(trigger), configuration?.schedule, configuration?.timezone])
}

/** @throws bad_request, also for what no address has, and what is no name of a field everywhere */
function idOf(field: string, id: string): string {
  if (!id.isWellFormed() || id === '__proto__') throw badRequest(`${field}: ${quoted(id)} cannot be an id`)
  return checkText(field, id, idCharactersMax)
}

function typeOf(kind: DeploymentKind, field: string, given: string | null | undefined): TriggerType {
  const allowed = typesOfKinds[kind] ?? []
  const named = given === 'schedule' ? 'cron' : given || allowed[0]
  const type = allowed.find((one) => one === named)
  if (type === undefined)
    throw badRequest(
      `${field}.type: ${quoted(named ?? '')} is not one of ${allowed.join(', ') || 'none'}, which ${kind}s have`,
    )
  return type
}

function configurationOf(
  kind: string,
  type: TriggerType,
  field: string,
  trigger: TriggerInput | StoredTrigger,
): TriggerConfiguration {
  const outer = Object.fromEntries(
    outerKeys.flatMap((key) => {
      const value = (trigger as TriggerInput)[key]
      return value === undefined || value === null ? [] : [[key, value]]
    }),
  )
  // The secret is made here, never taken from a client.
  const { callbackSecret: _, ...given }: Record<string, unknown> = { ...outer, ...trigger.configuration }
  const configuration: TriggerConfiguration = Object.fromEntries(
    Object.entries(given).filter(([, value]) => value !== null && value !== undefined && value !== ''),
  )
  const text = (key: string, charactersMax: number) => {
    const value = configuration[key]
    if (value === undefined) return undefined
    if (typeof value !== 'string') throw badRequest(`${field}.${key}: must be text`)
    return checkText(`${field}.${key}`, value, charactersMax)
  }
  const number = (key: string, min: number, max: number) => {
    const value = configuration[key]
    if (value === undefined) return
    if (typeof value !== 'number') throw badRequest(`${field}.${key}: must be a whole number`)
    checkRange(`${field}.${key}`, value, min, max)
  }
  const oneOf = (key: string, allowed: readonly string[]) => {
    const value = text(key, idCharactersMax)
    if (value !== undefined && !allowed.includes(value))
      throw badRequest(`${field}.${key}: ${quoted(value)} is not one of ${allowed.join(', ')}`)
  }
  text('path', pathCharactersMax)
  number('retry', 0, retriesMax)
  number('timeout', 1, kind === 'job' ? taskSecondsMax : asyncSecondsMax)
  number('concurrency', 1, concurrencyMax)
  oneOf('authenticationType', authenticationTypes)
  oneOf('missed', missedPolicies)
  const schedule = text('schedule', pathCharactersMax)
  const timezone = text('timezone', idCharactersMax)
  if (type === 'cron') {
    if (schedule === undefined)
      throw badRequest(`${field}.schedule: missing: when it is, such as "0 8 * * 1-5"`)
    parseCron(`${field}.schedule`, schedule, timezone, `${field}.timezone`)
  }
  if (text('callbackUrl', 2048) !== undefined && (type === 'http' || kind === 'job'))
    throw badRequest(
      `${field}.callbackUrl: only what an agent does later is told to an address: triggers of the types http-async and cron of agents`,
    )
  tasksOf(field, configuration.tasks)
  return configuration
}

function tasksOf(field: string, tasks: unknown): void {
  if (tasks === undefined) return
  if (!Array.isArray(tasks)) throw badRequest(`${field}.tasks: must be a list of objects`)
  if (tasks.length > tasksMax) throw badRequest(`${field}.tasks: ${tasks.length} tasks, at most ${tasksMax}`)
  for (const [index, task] of tasks.entries())
    if (typeof task !== 'object' || task === null || Array.isArray(task))
      throw badRequest(`${field}.tasks[${index}]: must be an object`)
}
