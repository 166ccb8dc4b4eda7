import type { EnqueueOptions, NewWork, Queue, Work } from './queue.ts'

/** What the parts of the queue's contract share: the queue under test, its clock, and short ways to say things. */
export interface QueueContext {
  /** A new one for every test. */
  queue: Queue
  /** The queue's clock, to be turned. */
  nowMs: number
  work(id: string, given?: Partial<NewWork>): NewWork
  add(id: string, given?: Partial<NewWork>, options?: EnqueueOptions): Promise<Work>
  /** Ids, in the order in which they were claimed. */
  claim(limit: number, queue?: string): Promise<string[]>
  end(id: string, state?: string): Promise<void>
}

export function queueContext(): QueueContext {
  const context: QueueContext = {
    queue: null as unknown as Queue,
    nowMs: 0,
    work: (id, given = {}) => ({
      id,
      queue: 'agent',
      workspace: 'main',
      target: 'agent/echo',
      targetMax: 1000,
      key: '',
      keyMax: 1000,
      priority: 0,
      runAt: context.nowMs,
      leaseMs: 60_000,
      state: 'waiting',
      until: null,
      group: null,
      index: null,
      parts: null,
      labels: {},
      body: { of: id },
      input: null,
      idempotency: null,
      ...given,
    }),
    async add(id, given, options) {
      const [added] = await context.queue.enqueue([context.work(id, given)], options)
      if (!added) throw new Error('nothing was enqueued')
      return added.work
    },
    async claim(limit, queue = 'agent') {
      return (await context.queue.claim(queue, limit)).map(({ id }) => id)
    },
    async end(id, state = 'succeeded') {
      const changed = await context.queue.change({ id, expect: {}, state })
      if (!changed) throw new Error(`${id} could not be ended`)
    },
  }
  return context
}
