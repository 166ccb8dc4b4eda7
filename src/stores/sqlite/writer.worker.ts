/**
 * The writer's thread: the only connection that writes. Every message is one transaction, made durable at once; every
 * mutation in it stands or falls alone behind its savepoint.
 *
 * Plain prepared statements instead of drizzle: the thread has an engine of its own, and this keeps 3 MB out of it.
 */
import { commitGroup, openWriter, type WriterConnection } from './commit.ts'
import { type FromWriter, handedOver, type Mutation, type Outcome, type ToWriter } from './protocol.ts'

declare const self: {
  onmessage: ((event: MessageEvent<ToWriter>) => void) | null
  postMessage(message: FromWriter, handedOver?: ArrayBuffer[]): void
}

let writer: WriterConnection | null = null
let target: Extract<ToWriter, { type: 'open' }> | null = null

self.onmessage = ({ data }) => {
  switch (data.type) {
    case 'open':
      target = data
      return
    case 'commit': {
      const outcomes = commit(data.mutations)
      // Not caught: what was committed and may not be durable is neither done nor undone, which only the end of this thread says.
      writer?.keep()
      for (const mutation of data.mutations) free(mutation)
      self.postMessage(
        { type: 'committed', outcomes, logPages: writer?.logPages() ?? null },
        outcomes.flatMap(claimedInputs),
      )
      return
    }
    case 'close':
      writer?.close()
      writer = null
      self.postMessage({ type: 'closed' })
  }
}

function commit(mutations: Mutation[]): Outcome[] {
  try {
    writer ??= openWriter(target!)
    return commitGroup(writer, mutations)
  } catch (error) {
    const failed = { ok: false, step: 0, reason: 'failed', detail: String(error) } as const
    return mutations.map(() => failed)
  }
}

/** Written, at once: large ones would wait for the collector, whose rounds are far between in this thread. */
function free(mutation: Mutation): void {
  for (const step of mutation) {
    if (step.op !== 'work-add') continue
    for (const buffer of handedOver(step.work.input)) buffer.transfer(0)
  }
}

function claimedInputs(outcome: Outcome): ArrayBuffer[] {
  if (!outcome.ok) return []
  return outcome.results.flatMap((result) =>
    result.op === 'work-claim' ? result.claimed.flatMap(({ input }) => handedOver(input)) : [],
  )
}
