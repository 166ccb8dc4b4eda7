/** Deliveries: what became of an execution, told to an address that somebody gave for that; signed, and until it arrives. */
import { PlatformError } from '../errors.ts'
import type { Attempt, AttemptOutcome, Execution, Executions, NewExecution } from '../executions/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import { sortableId } from '../lib/ids.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { callbackUrl, checkHeaders } from './address.ts'
import { type DeliveryDialect, dialectFacts } from './dialects.ts'
import {
  type DeliveryNote,
  type DeliveryView,
  deliverySource,
  deliveryView,
  noteOf,
  withAttempt,
} from './record.ts'
import { type Sent, send } from './sending.ts'
import { standardHeaders } from './signing.ts'

export { callbackUrl } from './address.ts'
export { deliverySchema } from './record.ts'
export { newCallbackSecret } from './signing.ts'

/** At once; those of one receiver, so that one that is slow holds up nobody else. */
const sendingMax = 64
const receiverMax = 4
/** Of the engine: an attempt has its own, shorter limit. */
const attemptMsMax = 60_000
const resolveMsMax = 2_000
const jitter = 0.2
/** What a client may not say in the platform's name. */
const ownHeaders =
  /^(host|accept-encoding|content-length|content-type|connection|keep-alive|transfer-encoding|te|trailer|upgrade|expect|webhook-.*|x-blaxel-.*|x-agentfield-signature|x-hutch-.*)$/

export interface DeliveriesOptions {
  executions: Pick<Executions, 'accept' | 'get' | 'input' | 'list' | 'cancel' | 'runner'>
  dialer: Pick<Dialer, 'open' | 'check'>
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  version: string
  /** In [0, 1). */
  random?: () => number
}

export interface NewDelivery {
  workspace: string
  /** What it tells of. */
  executionId: string
  dialect: DeliveryDialect
  url: string
  /** JSON. The same bytes in every attempt. */
  body: Uint8Array
  /** The client's own, for the receiver. */
  headers?: Record<string, string>
  /** By `seal`; newest first. */
  secrets: string[]
  /** Where the secrets of the moment are found, by whom `signer` registered. */
  signer?: Record<string, string>
  /** Whoever gave the address may have requests made to this machine, where the dialer allows any. */
  loopback: boolean
}

/** The secrets that hold now, newest first; null: whoever had them is gone, and those of before hold. */
export type Signer = (workspace: string, signer: Record<string, string>) => Promise<string[] | null>

export class Deliveries {
  readonly #options: DeliveriesOptions
  readonly #random: () => number
  readonly #signers = new Map<DeliveryDialect, Signer>()

  constructor(options: DeliveriesOptions) {
    this.#options = options
    this.#random = options.random ?? Math.random
    options.executions.runner(deliverySource, (attempt, signal) => this.#run(attempt, signal), {
      runningMax: sendingMax,
      hidden: true,
    })
  }

  /** An address for callbacks, as it is kept. @throws bad_request that names `field` */
  async checkAddress(field: string, address: string, { loopback }: { loopback: boolean }): Promise<string> {
    const url = callbackUrl(field, address)
    await this.#options.dialer.check(url, {
      what: field,
      loopback,
      signal: AbortSignal.timeout(resolveMsMax),
    })
    return url
  }

  /** What a client wants sent along. @throws bad_request that names `field` */
  checkHeaders(field: string, headers: Record<string, string>): void {
    checkHeaders(field, headers)
  }

  /** A secret as `NewDelivery` wants it. */
  seal(workspace: string, secret: string): string {
    return this.#options.secrets.seal(secret, purpose(workspace))
  }

  signer(dialect: DeliveryDialect, secretsOf: Signer): void {
    this.#signers.set(dialect, secretsOf)
  }

  /** What a composer of callbacks answers, for the transaction that ends the execution. */
  compose(asked: NewDelivery): NewExecution {
    const { workspace, executionId, dialect, url, body, headers = {}, secrets, signer, loopback } = asked
    const now = this.#options.clock.now()
    const deliveryId = `msg_${sortableId(now)}`
    return this.#execution(workspace, deliveryId, body, {
      deliveryId,
      executionId,
      dialect,
      url,
      headers: Object.fromEntries(
        Object.entries(headers).filter(([name]) => !ownHeaders.test(name.toLowerCase())),
      ),
      secrets,
      signer: signer ?? null,
      loopback,
      createdAt: new Date(now).toISOString(),
      attempts: [],
    })
  }

  /** Newest first; those of one execution, or all. */
  list(
    workspace: string,
    { execution, ...page }: { execution?: string; limit: number; cursor?: string },
  ): { data: DeliveryView[]; nextCursor: string } {
    const { data, nextCursor } = this.#options.executions.list(
      workspace,
      { source: deliverySource, ...(execution === undefined ? {} : { labels: { execution } }) },
      page,
    )
    // One that was sent again by hand is told once.
    const newest = data.filter((one) => this.#newest(workspace, noteOf(one).deliveryId)?.id === one.id)
    return { data: newest.map(deliveryView), nextCursor }
  }

  /** @throws not_found */
  get(workspace: string, id: string): DeliveryView {
    return deliveryView(this.#require(workspace, id))
  }

  /** What is sent; null: it is not kept any more. */
  body(workspace: string, id: string): Uint8Array | null {
    const found = this.#newest(workspace, id)
    return found && this.#options.executions.input(workspace, found.id)
  }

  /** Sends it once more, now, with the same id and body, and again until it arrives. @throws not_found */
  async redeliver(workspace: string, id: string): Promise<DeliveryView> {
    const { executions, clock } = this.#options
    const before = this.#require(workspace, id)
    if (before.endedAt === null)
      await executions.cancel(workspace, before.id, 'sent again by hand').catch(unlessConflict)
    const last = executions.get(workspace, before.id) ?? before
    const body = executions.input(workspace, before.id)
    if (body === null) throw notFound(id)
    const again = this.#execution(workspace, `${id}.${sortableId(clock.now())}`, body, noteOf(last))
    return deliveryView((await executions.accept(again)).execution)
  }

  #execution(workspace: string, id: string, body: Uint8Array, note: DeliveryNote): NewExecution {
    const { delaysMs } = dialectFacts[note.dialect]
    return {
      id,
      workspace,
      source: deliverySource,
      target: { kind: 'receiver', name: new URL(note.url).host },
      targetRunningMax: receiverMax,
      input: body,
      labels: { execution: note.executionId, delivery: note.deliveryId },
      note: { ...note },
      timeoutMs: attemptMsMax,
      retry: {
        attemptsMax: delaysMs.length + 1,
        delayMs: delaysMs[0] ?? 0,
        delayMsMax: delaysMs.at(-1) ?? 0,
      },
    }
  }

  async #run({ execution, input, number }: Attempt, signal: AbortSignal): Promise<AttemptOutcome> {
    const note = noteOf(execution)
    const { delaysMs } = dialectFacts[note.dialect]
    // Since it was accepted, or sent again by hand.
    const before = number === 1 ? [] : note.attempts.slice(1 - number)
    const refusals = before.filter(({ status }) => isRefusal(status)).length
    const sent = await this.#send(execution.workspace, note, input, refusals, signal)
    const attempts = withAttempt(note, sent.attempt)
    if (sent.delivered)
      return { status: 'succeeded', result: new Uint8Array(), type: 'text/plain', note: { attempts } }
    const delay = (delaysMs[number - 1] ?? 0) * (1 + jitter * (2 * this.#random() - 1))
    return {
      status: 'failed',
      error: { code: 'not_delivered', message: sent.attempt.error ?? '' },
      retry: !sent.refused && number <= delaysMs.length,
      retryAfterMs: Math.round(Math.max(delay, sent.retryAfterMs)),
      note: { attempts },
    }
  }

  async #send(
    workspace: string,
    note: DeliveryNote,
    body: Uint8Array,
    refusals: number,
    signal: AbortSignal,
  ): Promise<Sent> {
    const { dialer, clock, version } = this.#options
    const facts = dialectFacts[note.dialect]
    const secrets = await this.#secretsOf(workspace, note)
    const timestampSeconds = Math.floor(clock.now() / 1000)
    return await send(
      {
        url: note.url,
        headers: {
          'user-agent': `hutch/${version}`,
          ...note.headers,
          'content-type': 'application/json',
          'x-hutch-execution': note.executionId,
          ...standardHeaders({ id: note.deliveryId, timestampSeconds, body }, secrets),
          ...facts.headers({ body, timestampSeconds, refusals }, secrets),
        },
        body,
        loopback: note.loopback,
        answerMsMax: facts.answerMsMax,
      },
      { dialer, clock, signal },
    )
  }

  async #secretsOf(workspace: string, { dialect, signer, secrets }: DeliveryNote): Promise<string[]> {
    const current = signer === null ? null : await this.#signers.get(dialect)?.(workspace, signer)
    return current ?? secrets.map((sealed) => this.#options.secrets.open(sealed, purpose(workspace)))
  }

  #require(workspace: string, id: string): Execution {
    const found = this.#newest(workspace, id)
    if (found === null) throw notFound(id)
    return found
  }

  #newest(workspace: string, delivery: string): Execution | null {
    const filter = { source: deliverySource, labels: { delivery } }
    return this.#options.executions.list(workspace, filter, { limit: 1 }).data[0] ?? null
  }
}

/** As receivers answer what is signed by a secret that they do not know. */
function isRefusal(status: number | null): boolean {
  return status === 400 || status === 401 || status === 403 || status === 422
}

function purpose(workspace: string): string {
  return `delivery:${workspace}`
}

function notFound(id: string): PlatformError {
  return new PlatformError('not_found', `there is no delivery "${id.slice(0, 64)}" (any more)`)
}

/** It ended in this moment. */
function unlessConflict(error: unknown): void {
  if (!PlatformError.is(error) || error.code !== 'conflict') throw error
}
