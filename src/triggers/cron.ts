import { type Deployments, isEnabled, type StoredTrigger } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { type Cron, parseCron } from '../lib/cron.ts'
import { Deadlines } from '../lib/deadlines.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { Resource, Store } from '../spec/store.ts'
import { everyItem } from '../spec/store.ts'

const tickKind = 'trigger_tick'
/** One that comes later than that after its moment was missed. */
const missedAfterMs = 60_000
/** As long as what it started is kept, as a rule: by that it is known. */
const tickKnownMs = 7 * 24 * 60 * 60 * 1000

/** One moment of a trigger's pattern that came. */
export interface Tick {
  workspace: string
  name: string
  uid: string
  trigger: StoredTrigger
  /** The same whenever the same tick is tried: what it starts counts once. */
  idempotencyKey: string
  idempotencyMs: number
  tasks: Record<string, unknown>[]
  /** By which what it starts is found. */
  labels: { tick: string }
}

/** Starts what a tick is for; durable once it resolves. */
type StartTick = (tick: Tick) => Promise<unknown>

type Deployment = Awaited<ReturnType<Deployments['get']>>
type Kind = Parameters<Deployments['find']>[1]

interface TickBody {
  /** The last moment that was considered. */
  at: number
}

/**
 * Triggers by the clock. What was considered last is in the store: a moment that passed while nobody looked comes once,
 * the last one of several, and none comes twice.
 */
export class CronTriggers {
  readonly #store: Store
  readonly #deployments: Pick<Deployments, 'find' | 'every' | 'watch'>
  readonly #clock: Clock
  readonly #log: Logger
  readonly #starts = new Map<string, StartTick>()
  readonly #deadlines: Deadlines
  readonly #lock = new KeyedLock()
  readonly #background: Background
  /** Of a deployment, by uid: those that have a deadline. */
  readonly #watched = new Map<string, Set<string>>()

  constructor(options: {
    store: Store
    deployments: Pick<Deployments, 'find' | 'every' | 'watch'>
    clock: Clock
    log: Logger
  }) {
    const { store, deployments, clock, log } = options
    this.#store = store
    this.#deployments = deployments
    this.#clock = clock
    this.#log = log
    this.#background = new Background((error) => log.error('triggers could not be looked at', { error }))
    this.#deadlines = new Deadlines({ clock, log, due: (key) => this.#due(key) })
  }

  starts(kind: string, start: StartTick): void {
    this.#starts.set(kind, start)
  }

  async open(): Promise<void> {
    this.#deployments.watch((deployment) => {
      const { body } = deployment
      const matters = this.#watched.has(body.uid) || patternsOf(deployment).length > 0
      if (matters && !this.#background.closing.aborted) this.#background.run(this.#look(deployment))
    })
    const known = new Set<string>()
    for await (const deployment of this.#deployments.every()) {
      known.add(deployment.body.uid)
      if (patternsOf(deployment).length > 0) await this.#look(deployment)
    }
    const ticks = everyItem((page) =>
      this.#store.page<TickBody>({ ...page, kind: tickKind, sort: 'createdAt:asc' }),
    )
    for await (const tick of ticks) if (!known.has(uidOf(tick.name))) await this.#store.remove(keyOf(tick))
  }

  async close(): Promise<void> {
    this.#background.close()
    this.#deadlines[Symbol.dispose]()
    await this.settled()
  }

  /** Resolves when nothing is being looked at. */
  settled(): Promise<void> {
    return this.#background.settled()
  }

  /** Sets the deadlines of a deployment as it is now. */
  async #look({ workspace, kind, name, body: { uid } }: Deployment): Promise<void> {
    await this.#lock.run(uid, async () => {
      const deployment = await this.#deployments.find(workspace, kind as Kind, name)
      const current = deployment?.body.uid === uid && deployment.body.state !== 'deleting' ? deployment : null
      const triggers = current === null ? [] : patternsOf(current)
      const before = this.#watched.get(uid) ?? new Set()
      const now = new Set<string>()
      for (const trigger of triggers) {
        const key = deadlineOf(workspace, kind, name, uid, trigger.id)
        now.add(key)
        const last = await this.#lastOf(current as Deployment, trigger)
        const next = cronOf(trigger).next(last)
        if (next !== null) this.#deadlines.set(key, next)
      }
      for (const key of before) if (!now.has(key)) this.#deadlines.delete(key)
      if (now.size > 0) this.#watched.set(uid, now)
      else this.#watched.delete(uid)
      if (current !== null) return
      for (const key of before) await this.#store.remove(tickKeyOf(workspace, uid, idOf(key)))
    })
  }

  async #due(key: string): Promise<void> {
    if (this.#background.closing.aborted) return
    const [workspace = '', kind = '', name = '', uid = ''] = key.split('\n')
    await this.#background.track(
      this.#lock.run(uid, async () => {
        const deployment = await this.#deployments.find(workspace, kind as Kind, name)
        if (deployment?.body.uid !== uid) return
        const trigger = patternsOf(deployment).find(({ id }) => id === idOf(key))
        if (trigger === undefined) return
        await this.#consider(deployment, trigger)
        const next = cronOf(trigger).next(await this.#lastOf(deployment, trigger))
        if (next !== null) this.#deadlines.set(key, next)
      }),
    )
  }

  async #consider(deployment: Deployment, trigger: StoredTrigger): Promise<void> {
    const { workspace, kind, name, body } = deployment
    const now = this.#clock.now()
    const tickAt = cronOf(trigger).latest(await this.#lastOf(deployment, trigger), now)
    if (tickAt === null) return
    const { missed, tasks = [{}] } = trigger.configuration ?? {}
    const isMissed = missed === 'skip' && now - tickAt > missedAfterMs
    const start = this.#starts.get(kind)
    if (!isMissed && body.state === 'active' && start !== undefined) {
      const idempotencyKey = `cron:${body.uid}:${trigger.id}:${tickAt}`
      try {
        const labels = { tick: new Date(tickAt).toISOString() }
        const once = { idempotencyKey, idempotencyMs: tickKnownMs }
        await start({ workspace, name, uid: body.uid, trigger, tasks, labels, ...once })
      } catch (error) {
        // What is refused for good is refused at every try.
        if (!PlatformError.is(error) || error.retryable || error.code === 'internal') throw error
        this.#log.warn('what a trigger starts was refused', {
          workspace,
          kind,
          name,
          trigger: trigger.id,
          error,
        })
      }
    }
    await this.#note(deployment, trigger, tickAt)
  }

  /** The moment that was considered last: nothing up to it comes any more. */
  async #lastOf({ workspace, body, updatedAt }: Deployment, { id }: StoredTrigger): Promise<number> {
    const found = await this.#store.get<TickBody>(tickKeyOf(workspace, body.uid, id))
    const states = body.triggerStates ?? {}
    // Those of before triggers came by the clock begin where their deployment was written.
    const since = Object.hasOwn(states, id) ? (states[id]?.since ?? updatedAt) : updatedAt
    return Math.max(found?.body.at ?? 0, since)
  }

  async #note({ workspace, body }: Deployment, { id }: StoredTrigger, at: number): Promise<void> {
    const key = tickKeyOf(workspace, body.uid, id)
    const found: Resource<TickBody> | null = await this.#store.get<TickBody>(key)
    if (found === null) await this.#store.create<TickBody>({ ...key, body: { at } })
    else await this.#store.update<TickBody>(key, found.version, { body: { at } })
  }
}

function patternsOf({ body }: Deployment): StoredTrigger[] {
  return (body.spec.triggers ?? []).filter((trigger) => trigger.type === 'cron' && isEnabled(trigger))
}

function cronOf({ configuration }: StoredTrigger): Cron {
  return parseCron('schedule', configuration?.schedule ?? '', configuration?.timezone)
}

function deadlineOf(workspace: string, kind: string, name: string, uid: string, id: string): string {
  return [workspace, kind, name, uid, id].join('\n')
}

function idOf(deadline: string): string {
  return deadline.split('\n')[4] ?? ''
}

function tickKeyOf(workspace: string, uid: string, id: string) {
  return { kind: tickKind, workspace, name: `${uid}/${id}` }
}

function uidOf(name: string): string {
  return name.slice(0, name.indexOf('/'))
}

function keyOf({ kind, workspace, name }: Resource) {
  return { kind, workspace, name }
}
