import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Fleet, RevisionRun } from './fleet/index.ts'
import type { DeploymentImages } from './images.ts'
import { type DeploymentKind, isServedKind, kindFacts, type ServedKind } from './kinds.ts'
import {
  type DeploymentBody,
  kindOf,
  noTraffic,
  pruned,
  type Revision,
  revisionOf,
  routed,
  type StoredDeployment,
  type Traffic,
  withEvent,
  withRevision,
} from './record.ts'
import type { DeploymentRecords } from './records.ts'
import { sameTraffic, trafficOnceReady, trafficText } from './routing.ts'
import type { DeploymentSealing } from './sealing.ts'

/** Where neither the deployment nor its image names one. */
const portDefault = 8000
const applicationPortDefault = 8080
/** Requests under way when a deployment is deactivated may go on for this long. */
const drainMsMax = 30_000
/** After something failed that is nobody's deployment's fault, such as a full disk. */
const retryMs = 30_000

export interface RolloutOptions {
  records: DeploymentRecords
  sealing: DeploymentSealing
  fleet: Pick<Fleet, 'serve' | 'ready' | 'retire'>
  images: DeploymentImages
  background: Background
  clock: Clock
  log: Logger
  /** Ends what is on its way there, and what is kept elsewhere under its name. */
  forget: (deployment: StoredDeployment) => Promise<void>
  /** Its record is gone. */
  gone: (deployment: StoredDeployment) => void
}

/** Somebody works on what one deployment's record says is owed. */
interface Worker {
  done: Promise<void>
  /** Aborted when what is being done is no longer wanted. */
  step: AbortController
  again: boolean
}

/**
 * Does what the records say is owed: brings revisions up, moves the traffic once they are ready, ends what nothing needs.
 * A record says what it is to be before anything is done, so that whatever a crash cuts off is done at the next start; and
 * at most one works on a deployment.
 */
export class Rollouts {
  readonly #options: RolloutOptions
  readonly #workers = new Map<string, Worker>()

  constructor(options: RolloutOptions) {
    this.#options = options
  }

  /** Its record changed: resolves once nothing is owed to it any more, as far as is known. */
  settle(deployment: StoredDeployment, options: { interrupt?: boolean } = {}): Promise<void> {
    const key = workerKey(deployment)
    const known = this.#workers.get(key)
    if (known) {
      known.again = true
      if (options.interrupt)
        known.step.abort(new PlatformError('conflict', 'something else is wanted by now'))
      return known.done
    }
    const worker: Worker = { done: Promise.resolve(), step: new AbortController(), again: false }
    this.#workers.set(key, worker)
    worker.done = this.#work(worker, deployment)
    this.#options.background.run(worker.done)
    return worker.done
  }

  /** At start: tells the fleet what is served, before anything else is done. */
  serve(deployment: StoredDeployment): void {
    const kind = kindOf(deployment)
    if (deployment.body.state !== 'active' || !isServedKind(kind)) return
    for (const id of served(deployment.body.traffic)) {
      const revision = revisionOf(deployment.body, id)
      if (revision?.image !== undefined) this.#options.fleet.serve(this.runOf(deployment, kind, revision))
    }
  }

  /** Resolves once a revision can be used: what is served once it answers, a job as soon as its image is here. */
  async #ready(deployment: StoredDeployment, revision: Revision, signal: AbortSignal): Promise<void> {
    const { fleet } = this.#options
    const kind = kindOf(deployment)
    if (!isServedKind(kind)) return
    fleet.serve(this.runOf(deployment, kind, revision))
    await fleet.ready(revision.id, signal)
  }

  async #work(worker: Worker, deployment: StoredDeployment): Promise<void> {
    const { background } = this.#options
    try {
      while (!background.closing.aborted) {
        worker.again = false
        worker.step = new AbortController()
        if (!(await this.#attempt(worker, deployment)) && !worker.again) return
      }
    } finally {
      // In the same turn as the last look: who comes after it begins anew.
      this.#workers.delete(workerKey(deployment))
    }
  }

  /** Whether there may be more to do. */
  async #attempt({ step }: Worker, deployment: StoredDeployment): Promise<boolean> {
    const { background, records, clock, log } = this.#options
    const signal = AbortSignal.any([step.signal, background.closing])
    try {
      const current = await records.get(deployment.workspace, kindOf(deployment), deployment.name)
      return current?.body.uid === deployment.body.uid && (await this.#step(current, signal))
    } catch (error) {
      if (signal.aborted) return true
      log.error('a deployment cannot be brought to what it is to be; another attempt follows', {
        deployment: workerKey(deployment),
        error,
      })
      await clock.sleep(retryMs, signal).catch(() => {})
      return true
    }
  }

  /** The next thing that is owed; false when nothing is. */
  async #step(deployment: StoredDeployment, signal: AbortSignal): Promise<boolean> {
    const { body } = deployment
    if (body.state === 'deleting') {
      await this.#delete(deployment)
      return false
    }
    if (body.state === 'deactivating') {
      await this.#deactivate(deployment)
      return true
    }
    if (body.wanted !== undefined && body.state === 'active') {
      await this.#moveTraffic(deployment, body.wanted, signal)
      return true
    }
    // The newest first: what a client mended need not wait for what was wrong.
    const next = body.revisions.findLast(({ phase }) => phase === 'deploying')
    if (next !== undefined) {
      await this.#bringUp(deployment, next, signal)
      return true
    }
    await this.#removeLeftovers(deployment)
    return false
  }

  async #bringUp(deployment: StoredDeployment, revision: Revision, signal: AbortSignal): Promise<void> {
    const { records, clock } = this.#options
    const { id } = revision
    try {
      const pinned = await this.#pin(deployment, revision)
      signal.throwIfAborted()
      const ready = revisionOf(pinned.body, id)
      if (ready === undefined) return
      if (pinned.body.state !== 'active') {
        await records.change(pinned, (body) =>
          withRevision(body, id, (one) => ({ ...one, phase: 'prepared' })),
        )
        return
      }
      await this.#ready(pinned, ready, signal)
    } catch (error) {
      if (signal.aborted) throw error
      await this.#failed(deployment, revision, error)
      return
    }
    let before = noTraffic
    const changed = await records.change(deployment, (body) => {
      const current = revisionOf(body, id)
      if (current === undefined) return null
      before = body.traffic
      const traffic = trafficOnceReady(body, current)
      const deployed = withRevision(body, id, (one) => ({ ...one, phase: 'deployed' }))
      const moved = withTraffic(deployed, traffic)
      return pruned(
        withEvent(moved, clock.now(), {
          type: 'deployment',
          status: 'DEPLOYED',
          revision: id,
          ...(traffic.canary === null ? {} : { canaryRevision: traffic.canary }),
          message: deployedMessage(kindOf(deployment), id, before, traffic),
        }),
      )
    })
    this.#retireAllBut(changed, [...served(before), id])
  }

  /** Records that a revision is of no use, which leaves what was served before. */
  async #failed(deployment: StoredDeployment, { id }: Revision, error: unknown): Promise<void> {
    const { records, clock } = this.#options
    const reason = this.#reasonOf(deployment, error)
    const failed = await records.change(deployment, (body) => {
      if (revisionOf(body, id) === undefined) return null
      const failed = withRevision(body, id, ({ sealedDockerConfig: _, ...one }) => ({
        ...one,
        phase: 'failed',
      }))
      return pruned(
        withEvent(failed, clock.now(), {
          type: 'deployment',
          status: 'FAILED',
          revision: id,
          message: withServed(reason, body.traffic),
        }),
      )
    })
    this.#retire(failed, id, { now: true })
  }

  /** The deployment with the image of a revision under a tag that stays. */
  async #pin(deployment: StoredDeployment, revision: Revision): Promise<StoredDeployment> {
    const { images, records, sealing } = this.#options
    const { id, source } = revision
    if (revision.digest !== undefined) return deployment
    const { workspace, name, body } = deployment
    const reference = revision.image ?? source
    if (reference === undefined) throw new PlatformError('internal', `the revision ${id} has no image`)
    const dockerConfig = sealing.dockerConfig(body.uid, revision)
    const pinned = await images.pin(
      workspace,
      reference,
      { type: kindOf(deployment), name, tag: id },
      { fresh: revision.fresh === true, ...(dockerConfig === undefined ? {} : { dockerConfig }) },
    )
    const [imagePort, ...others] = pinned.ports
    return await records.change(deployment, (current) =>
      withRevision(current, id, ({ sealedDockerConfig: _, ...one }) => ({
        ...one,
        image: pinned.reference,
        digest: pinned.digest,
        ...(imagePort !== undefined && others.length === 0 ? { imagePort } : {}),
      })),
    )
  }

  async #moveTraffic(deployment: StoredDeployment, wanted: Traffic, signal: AbortSignal): Promise<void> {
    const { records, clock } = this.#options
    try {
      for (const id of served(wanted)) {
        const revision = revisionOf(deployment.body, id)
        if (revision === undefined) throw new PlatformError('not_found', `the revision ${id} is gone`)
        await this.#ready(deployment, revision, signal)
      }
    } catch (error) {
      if (signal.aborted) throw error
      const reason = this.#reasonOf(deployment, error)
      const failed = await records.change(deployment, (body) => {
        if (body.wanted === undefined || !sameTraffic(body.wanted, wanted)) return null
        const { wanted: _, ...rest } = body
        return withEvent(rest, clock.now(), {
          type: 'traffic',
          status: 'FAILED',
          ...(wanted.active === null ? {} : { revision: wanted.active }),
          message: withServed(reason, body.traffic),
        })
      })
      this.#retireAllBut(failed, served(wanted))
      return
    }
    let before = noTraffic
    const moved = await records.change(deployment, (body) => {
      if (body.wanted === undefined || !sameTraffic(body.wanted, wanted)) return null
      before = body.traffic
      const { wanted: _, ...rest } = body
      const deployed = [...served(wanted)].reduce(
        (made, id) =>
          withRevision(made, id, (one) => ({
            ...one,
            phase: one.phase === 'prepared' ? 'deployed' : one.phase,
          })),
        withTraffic(rest, wanted),
      )
      return pruned(
        withEvent(deployed, clock.now(), {
          type: 'traffic',
          status: 'DEPLOYED',
          ...(wanted.active === null ? {} : { revision: wanted.active }),
          ...(wanted.canary === null ? {} : { canaryRevision: wanted.canary }),
          message:
            wanted.active === null
              ? 'No revision serves'
              : `${capitalised(ledWords(kindOf(deployment)))} ${trafficText(wanted)}`,
        }),
      )
    })
    this.#retireAllBut(moved, [...served(before), ...served(wanted)])
  }

  /** Those of `ids` that requests are not led to any more end once they answered what they have. */
  #retireAllBut(deployment: StoredDeployment, ids: Iterable<string>): void {
    const { body } = deployment
    const kept = body.state === 'active' ? routed(body) : new Set<string>()
    for (const id of new Set(ids)) if (!kept.has(id)) this.#retire(deployment, id)
  }

  /** Nobody waits for it, the platform's end neither: it takes as long as the last request does. */
  #retire(deployment: StoredDeployment, id: string, options: { now?: boolean } = {}): void {
    const { fleet, background, log } = this.#options
    fleet.retire(id, options).then(
      () => {
        // What it stood on while it answered its last requests can be removed by now.
        const left = deployment.body.leftoverImages.length > 0
        if (left && !background.closing.aborted) void this.settle(deployment)
      },
      (error) => {
        if (!background.closing.aborted)
          log.warn('a revision did not end as it should', { deployment: workerKey(deployment), error })
      },
    )
  }

  async #deactivate(deployment: StoredDeployment): Promise<void> {
    const { records, clock } = this.#options
    await this.#endAll(deployment, drainMsMax)
    await records.change(deployment, (body) =>
      body.state !== 'deactivating'
        ? null
        : withEvent({ ...body, state: 'deactivated' }, clock.now(), {
            type: 'deactivation',
            status: 'DEACTIVATED',
            message: 'Deactivated: nothing of it runs',
          }),
    )
  }

  async #endAll({ body }: StoredDeployment, drainMs: number): Promise<void> {
    const { fleet, clock, background } = this.#options
    await Promise.all(
      body.revisions.map(async ({ id }) => {
        if (drainMs === 0) return await fleet.retire(id, { now: true })
        const stop = new AbortController()
        const late = clock.sleep(drainMs, AbortSignal.any([stop.signal, background.closing]))
        const draining = fleet.retire(id)
        draining.catch(() => {})
        const isLate = await Promise.race([
          draining.then(
            () => false,
            () => true,
          ),
          late.then(
            () => true,
            () => true,
          ),
        ])
        stop.abort()
        if (isLate) await fleet.retire(id, { now: true })
      }),
    )
  }

  async #delete(deployment: StoredDeployment): Promise<void> {
    const { records, forget, gone } = this.#options
    await forget(deployment)
    await this.#endAll(deployment, 0)
    const { body, name } = deployment
    // Of one that was being built there may be an image that its record does not know of yet.
    const own = body.revisions.map(({ id, image }) => image ?? `${kindOf(deployment)}/${name}:${id}`)
    for (const image of new Set([...body.leftoverImages, ...own])) await this.#removeImage(deployment, image)
    await records.remove(deployment)
    gone(deployment)
  }

  async #removeLeftovers(deployment: StoredDeployment): Promise<void> {
    const left = deployment.body.leftoverImages
    if (left.length === 0) return
    const removed = new Set<string>()
    for (const image of left) if (await this.#removeImage(deployment, image)) removed.add(image)
    if (removed.size === 0) return
    await this.#options.records.change(deployment, (body) => ({
      ...body,
      leftoverImages: body.leftoverImages.filter((image) => !removed.has(image)),
    }))
  }

  /** Whether it is gone, or not this deployment's own; one that something else stands on stays. */
  #removeImage(deployment: StoredDeployment, image: string): Promise<boolean> {
    const { workspace, name } = deployment
    return this.#options.images.release(workspace, image, { type: kindOf(deployment), name })
  }

  /** What the fleet is to know of a revision that has its image. */
  runOf(deployment: StoredDeployment, kind: ServedKind, revision: Revision): RevisionRun {
    const { workspace, name, body } = deployment
    const { sealing } = this.#options
    const { spec, built } = revision
    const transport = spec.transport ?? built?.transport
    return {
      id: revision.id,
      workspace,
      kind,
      name,
      labels: body.labels,
      image: revision.image ?? '',
      env: { ...sealing.builtEnv(body.uid, revision), ...sealing.revisionEnv(body.uid, revision) },
      memoryMb: spec.memoryMb,
      port:
        spec.port ?? revision.imagePort ?? (kind === 'application' ? applicationPortDefault : portDefault),
      minScale: spec.minScale,
      maxScale: spec.maxScale,
      ...(transport === undefined ? {} : { transport }),
    }
  }

  #reasonOf(deployment: StoredDeployment, error: unknown): string {
    if (PlatformError.is(error)) return error.message
    this.#options.log.error('a revision could not be brought up', {
      deployment: workerKey(deployment),
      error,
    })
    return 'an error inside the platform, which its log tells of'
  }
}

function workerKey(deployment: StoredDeployment): string {
  const { workspace, name, body } = deployment
  // One that was deleted may still be going when another gets its name.
  return `${workspace}/${kindFacts[kindOf(deployment)].plural}/${name}/${body.uid}`
}

function served({ active, canary }: Traffic): Set<string> {
  return new Set([active, canary].filter((id) => id !== null))
}

function withTraffic(body: DeploymentBody, traffic: Traffic): DeploymentBody {
  const before = body.traffic.active
  return {
    ...body,
    traffic,
    ...(before !== null && before !== traffic.active ? { previousActive: before } : {}),
  }
}

function withServed(reason: string, { active }: Traffic): string {
  return active === null ? reason : `${reason}\nThe revision ${active} goes on serving.`
}

function deployedMessage(kind: DeploymentKind, id: string, before: Traffic, traffic: Traffic): string {
  const led = ledWords(kind)
  if (sameTraffic(before, traffic)) return `${id} is ready; no ${led} it`
  return `Deployment successful: ${led} ${traffic.active === id ? id : trafficText(traffic)}`
}

/** What traffic is, of each kind. */
function ledWords(kind: DeploymentKind): string {
  return isServedKind(kind) ? 'requests go to' : 'executions are of'
}

function capitalised(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}
