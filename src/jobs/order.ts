/** What an execution is to run, as it rests in the store: settled when it was asked for, whatever becomes of the job. */
import type { JobRun } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import type { SecretBox } from '../lib/secret-box.ts'

/** Of executions whose tasks run: more are read again. */
const ordersKept = 64
/** Behind the tasks; what is sealed has no quotes in it, so the last one of these is it. */
const orderField = ',"order":"'
const orderEnd = '"}'

/** A revision, with what this execution has over it. */
export type JobOrder = JobRun

/** Which execution, and of which job. */
interface OrderedJob {
  workspace: string
  job: string
  id: string
}

/** Seals orders into the inputs of executions, and reads them back. */
export class JobOrders {
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>
  readonly #input: (workspace: string, id: string) => Uint8Array | null
  readonly #kept = new BoundedMap<string, JobOrder>(ordersKept)

  constructor(options: {
    secrets: Pick<SecretBox, 'seal' | 'open'>
    /** What was given with an execution; null for one that is none (any more). */
    input: (workspace: string, id: string) => Uint8Array | null
  }) {
    this.#secrets = options.secrets
    this.#input = options.input
  }

  /** JSON: the tasks as they are handed out, and the order, sealed. */
  seal(of: Pick<OrderedJob, 'workspace' | 'job'>, order: JobOrder, tasks: readonly string[]): Uint8Array {
    const sealed = this.#secrets.seal(JSON.stringify(order), purposeOf(of))
    return Buffer.from(`{"tasks":[${tasks.join(',')}]${orderField}${sealed}${orderEnd}`)
  }

  /** @throws not_found */
  of(of: OrderedJob): JobOrder {
    const kept = this.#kept.get(of.id)
    if (kept !== undefined) return kept
    const input = this.#require(of)
    const sealed = input.subarray(orderAt(input) + orderField.length, -orderEnd.length).toString()
    const order = JSON.parse(this.#secrets.open(sealed, purposeOf(of))) as JobOrder
    this.#kept.set(of.id, order)
    return order
  }

  /** JSON: what all of its tasks were given. @throws not_found */
  tasks(of: Pick<OrderedJob, 'workspace' | 'id'>): Uint8Array {
    const input = this.#require(of)
    return Buffer.concat([input.subarray(0, orderAt(input)), Buffer.from('}')])
  }

  #require({ workspace, id }: Pick<OrderedJob, 'workspace' | 'id'>): Buffer {
    const input = this.#input(workspace, id)
    if (input !== null) return Buffer.from(input.buffer, input.byteOffset, input.byteLength)
    throw new PlatformError('not_found', 'there is no such execution (any more)')
  }
}

function orderAt(input: Buffer): number {
  return input.lastIndexOf(orderField)
}

/** Whichever execution of it: one that is done again takes what it was given along. */
const purposeOf = ({ workspace, job }: Pick<OrderedJob, 'workspace' | 'job'>) =>
  `job:${workspace}/${job}:order`
