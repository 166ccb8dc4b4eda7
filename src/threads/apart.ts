/** What a record may have that is large, which lies beside it then: lists, and a start, read many records at once. */
import type { Resource } from '../spec/store.ts'
import type { JsonObject, ThreadBody } from './record.ts'

export const apartKind = 'thread_part'

/** As JSON: from there on it lies apart. */
const apartCharsMin = 32 * 1024
/** What stays of a text. */
const beginningCharsMax = 1024
const resultBeginningCharsMax = 8 * 1024
const nameCharsMax = 512

const apartNames = ['input', 'options', 'result', 'reported', 'sealedTokens'] as const
type Part = Pick<ThreadBody, (typeof apartNames)[number]>
export type ThreadPart = Resource<Part>

/** Of the options and of what its program said, what lists tell and who does a turn is chosen by. */
const listedNames = [
  ...['parent_execution_id', 'triggering_agent_id', 'source_node_type', 'worker_id', 'run_locally'],
  ...['source', 'agent_version'],
]

/** A record without what is large, and that; null: nothing is. */
export function split(whole: ThreadBody): { body: ThreadBody; part: Part | null } {
  const { apart: _, ...body } = whole
  const part = partOf(body)
  if (JSON.stringify(part).length < apartCharsMin) return { body, part: null }
  return { body: light(body), part }
}

/** As `split`, of one whose part is there already. */
export function light(whole: ThreadBody): ThreadBody {
  const { sealedTokens: _, ...body } = whole
  const { text, user } = body.input
  const id = user?.id
  return {
    ...body,
    input: {
      text: beginning(text, beginningCharsMax),
      files: [],
      user: typeof id === 'string' ? { id: id.slice(0, nameCharsMax).toWellFormed() } : null,
    },
    options: listed(body.options),
    result: body.result === null ? null : beginning(body.result, resultBeginningCharsMax),
    reported: listed(body.reported),
  }
}

export function isSamePart(one: ThreadBody, other: ThreadBody): boolean {
  return apartNames.every((name) => one[name] === other[name])
}

export function joined(body: ThreadBody, part: Part): ThreadBody {
  return { ...body, ...part }
}

function partOf({ input, options, result, reported, sealedTokens }: ThreadBody): Part {
  return { input, options, result, reported, ...(sealedTokens === undefined ? {} : { sealedTokens }) }
}

function listed(all: JsonObject): JsonObject {
  return Object.fromEntries(
    listedNames.flatMap((name) => {
      const value = Object.hasOwn(all, name) ? all[name] : undefined
      const isSmall = typeof value === 'string' ? value.length <= nameCharsMax : typeof value === 'boolean'
      return isSmall && value !== undefined ? [[name, value]] : []
    }),
  )
}

function beginning(text: string, charsMax: number): string {
  return text.length <= charsMax ? text : `${text.slice(0, charsMax).toWellFormed()}...`
}
