/** The triggers of deployments in their records, and the secrets that their callbacks are signed with. */
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { DeploymentKind } from './kinds.ts'
import { beingDeleted, type DeploymentBody, type StoredDeployment } from './record.ts'
import type { DeploymentRecords } from './records.ts'
import type { DeploymentSealing } from './sealing.ts'
import {
  type StoredTrigger,
  type TriggerInput,
  type TriggerState,
  triggerStates,
  triggersOf,
} from './triggers.ts'

/** How callbacks are made. */
export interface CallbackRules {
  /** @throws bad_request that names `field` */
  checkAddress(field: string, url: string): Promise<unknown>
  newSecret(): string
}

export interface DeploymentOf {
  workspace: string
  kind: DeploymentKind
  name: string
}

export interface TriggerChange {
  deployment: StoredDeployment
  /** Whose callback secret was made now: whoever asked for it is told, once. */
  revealed: string[]
}

/** Of one trigger that hold at the same time. */
const secretsMax = 4

export class DeploymentTriggers {
  readonly #records: DeploymentRecords
  readonly #sealing: DeploymentSealing
  readonly #rules: CallbackRules
  readonly #clock: Clock
  readonly #turn: <Result>(of: DeploymentOf, work: () => Promise<Result>) => Promise<Result>

  constructor(options: {
    records: DeploymentRecords
    sealing: DeploymentSealing
    rules: CallbackRules
    clock: Clock
    /** Whoever changes what a deployment is to be waits for its turn. */
    turn: <Result>(of: DeploymentOf, work: () => Promise<Result>) => Promise<Result>
  }) {
    this.#records = options.records
    this.#sealing = options.sealing
    this.#rules = options.rules
    this.#clock = options.clock
    this.#turn = options.turn
  }

  /** @throws not_found */
  async list({ workspace, kind, name }: DeploymentOf): Promise<StoredTrigger[]> {
    return (await this.#records.require(workspace, kind, name)).body.spec.triggers ?? []
  }

  /**
   * Changes what triggers a deployment, and nothing else of it: `change` is given those that there are, and answers what
   * they are to be. @throws not_found, bad_request, conflict, what `change` throws
   */
  async change(
    of: DeploymentOf & { actor: string },
    change: (triggers: readonly StoredTrigger[]) => readonly (TriggerInput | StoredTrigger)[],
  ): Promise<TriggerChange> {
    return await this.#turn(of, async () => {
      const existing = await this.#existing(of)
      const triggers = triggersOf(of.kind, change(existing.body.spec.triggers ?? []))
      const { states, revealed } = await this.statesOf(existing.body, triggers)
      const deployment = await this.#records.change(existing, (body) => ({
        ...body,
        updatedBy: of.actor,
        spec: { ...body.spec, triggers },
        triggerStates: states,
      }))
      return { deployment, revealed }
    })
  }

  /** A new secret for a trigger's callbacks; the ones of before hold for `overlapMs` more. @throws not_found, bad_request */
  async rotate(
    of: DeploymentOf & { actor: string },
    trigger: string,
    overlapMs: number,
  ): Promise<TriggerChange> {
    return await this.#turn(of, async () => {
      const existing = await this.#existing(of)
      const states = this.#rotated(existing.body, trigger, overlapMs)
      const deployment = await this.#records.change(existing, (body) => ({
        ...body,
        updatedBy: of.actor,
        triggerStates: states,
      }))
      return { deployment, revealed: [trigger] }
    })
  }

  /** What the callbacks of a trigger are signed with now, newest first; null: it is gone, or calls nobody. */
  async secrets(of: DeploymentOf & { uid: string }, trigger: string): Promise<string[] | null> {
    const found = await this.#records.get(of.workspace, of.kind, of.name)
    if (found?.body.uid !== of.uid) return null
    const secrets = this.secretsOf(found.body, trigger)
    return secrets.length === 0 ? null : secrets
  }

  /** What is kept beside triggers once they are `next`, after a look at the addresses that are new. @throws bad_request */
  async statesOf(
    before: Pick<DeploymentBody, 'uid' | 'triggerStates'> & { spec: { triggers?: StoredTrigger[] } },
    next: readonly StoredTrigger[],
  ): Promise<{ states: Record<string, TriggerState>; revealed: string[] }> {
    const triggers = before.spec.triggers ?? []
    const known = new Set(triggers.map(({ configuration }) => configuration?.callbackUrl))
    await Promise.all(
      next.map(async ({ configuration }, index) => {
        const url = configuration?.callbackUrl
        if (url === undefined || known.has(url)) return
        await this.#rules.checkAddress(`spec.triggers[${index}].configuration.callbackUrl`, url)
      }),
    )
    return triggerStates({ triggers, states: before.triggerStates ?? {} }, next, {
      nowMs: this.#clock.now(),
      newSecret: (id) => this.#newSecret(before.uid, id),
    })
  }

  /** That hold now, newest first; none of a trigger that does not call back. */
  secretsOf({ uid, triggerStates: states = {} }: DeploymentBody, id: string): string[] {
    const secrets = Object.hasOwn(states, id) ? (states[id]?.secrets ?? []) : []
    return this.#held(secrets).map(({ sealed }) => this.#sealing.callbackSecret(uid, id, sealed))
  }

  #rotated({ uid, triggerStates: states = {} }: DeploymentBody, id: string, overlapMs: number) {
    const state = Object.hasOwn(states, id) ? states[id] : undefined
    if (state === undefined) throw new PlatformError('not_found', `there is no trigger "${id.slice(0, 64)}"`)
    if (state.secrets.length === 0)
      throw new PlatformError('bad_request', `the trigger "${id}" has no callbackUrl, and so no secret`)
    const until = this.#clock.now() + overlapMs
    const before = state.secrets.map((secret) => ({
      ...secret,
      until: Math.min(secret.until ?? until, until),
    }))
    const secrets = [{ sealed: this.#newSecret(uid, id) }, ...this.#held(before)].slice(0, secretsMax)
    return { ...states, [id]: { ...state, secrets } }
  }

  async #existing({ workspace, kind, name }: DeploymentOf): Promise<StoredDeployment> {
    const existing = await this.#records.require(workspace, kind, name)
    if (existing.body.state === 'deleting') throw beingDeleted(existing)
    return existing
  }

  #held(secrets: TriggerState['secrets']): TriggerState['secrets'] {
    const now = this.#clock.now()
    return secrets.filter(({ until }) => until === undefined || until > now)
  }

  #newSecret(uid: string, id: string): string {
    return this.#sealing.sealCallbackSecret(uid, id, this.#rules.newSecret())
  }
}
