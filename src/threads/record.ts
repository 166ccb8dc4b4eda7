/** How a thread rests in the store: its record says how its newest turn stands. */
import type { Resource } from '../spec/store.ts'

export const threadStatuses = [
  'pending',
  'executing',
  'paused',
  'error',
  'failed',
  'completed',
  'stopped',
] as const
export type ThreadStatus = (typeof threadStatuses)[number]

const endedStatuses: ReadonlySet<ThreadStatus> = new Set(['error', 'failed', 'completed', 'stopped'])

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json }
export type JsonObject = { [key: string]: Json }

export interface TurnInput {
  text: string
  /** Addresses of files. */
  files: string[]
  user: JsonObject | null
  /** Whatever else its client sent with it. */
  more?: JsonObject
}

/** Who asked with which Idempotency-Key, so that the same request again finds the turn that there is. */
export interface TurnKey {
  hash: string
  digest: string
  at: number
}

export interface ThreadBody {
  agentId: string
  /** Counts from 1. */
  turn: number
  /** Of the newest turn. */
  executionId: string
  turnAt: number
  input: TurnInput
  /** What else its client said, by the names of its dialect. */
  options: JsonObject
  /** Credentials for the program, sealed. */
  sealedTokens?: string
  version: string | null
  source: string
  title: string | null
  status: ThreadStatus
  internalStatus: string | null
  result: string | null
  isManuallyStopped: boolean
  startedAt: number | null
  pausedAt: number | null
  finishedAt: number | null
  /** How often a turn was handed to whoever does it, over all turns: what was handed out before the last time is stale. */
  leases: number
  /** What its program said of it, by the names of its dialect. */
  reported: JsonObject
  /** Of the thread: how many, and how long they are together. */
  entries: number
  chars: number
  keys: TurnKey[]
  /** Where the end of this turn is told, without secrets. */
  callback?: JsonObject
  /** Of what is too large to be here: under which name it is. */
  apart?: string
}

export type Thread = Resource<ThreadBody>

export type EntryRole = 'user' | 'assistant' | 'event'

/** One thing that was said in a thread, or that its program told while it worked. */
export interface EntryBody {
  role: EntryRole
  turn: number
  at: number
  text: string
  files?: string[]
  user?: JsonObject | null
  /** Of an event. */
  type?: string
  data?: Json
}

export interface Entry extends EntryBody {
  id: string
}

export const threadKind = 'thread'
export const entryKind = 'thread_entry'

export function hasEnded({ status }: Pick<ThreadBody, 'status'>): boolean {
  return endedStatuses.has(status)
}

export function threadKey(workspace: string, id: string) {
  return { kind: threadKind, workspace, name: id }
}

/** What lists filter by. */
export function indexesOf(body: ThreadBody): Record<string, string> {
  const { options, input, status, internalStatus, agentId } = body
  const text = (value: Json | undefined) =>
    typeof value === 'string' && value !== '' ? value.slice(0, indexCharsMax) : null
  const given = {
    agent: agentId,
    status,
    user: text(input.user?.id),
    parent: text(options.parent_execution_id),
    triggering: text(options.triggering_agent_id),
    internal: text(internalStatus),
  }
  return Object.fromEntries(
    Object.entries(given).filter((entry): entry is [string, string] => entry[1] !== null),
  )
}

const indexCharsMax = 512
