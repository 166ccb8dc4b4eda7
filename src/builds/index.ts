/** Builds: from an upload address, by way of an archive and a queue, to an image, and what its owner is told meanwhile. */
import { mkdir } from 'node:fs/promises'
import type { Builder, BuildRequest, BuildResult } from '../builder/index.ts'
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { Deadlines } from '../lib/deadlines.ts'
import { randomSecret, sortableId } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import type { Logs } from '../telemetry/index.ts'
import { Archives } from './archives.ts'
import type { BuildHandlers } from './handlers.ts'
import {
  type BuildBody,
  type BuildOwner,
  type BuildView,
  buildView,
  fullKey,
  imageTypeOf,
  isOver,
  logKindOf,
  ownerKey,
  type StoredBuild,
} from './record.ts'
import { BuildRecords, keyOf } from './records.ts'
import { archiveTypeOf, CalledOff, over, used } from './refusals.ts'
import { BuildTurns } from './turns.ts'

export type { BuildHandlers } from './handlers.ts'
export { ImageBuilds } from './image-builds.ts'
export type { BuildOwner, BuildView } from './record.ts'

/** Clients that poll are told at least this long after the upload that something is being built. */
export const buildingShownMs = 9_000
/** From the address to the end of the upload. */
const uploadMsMax = 60 * 60 * 1000
const archiveBytesMaxDefault = 1024 * 1024 * 1024
const uploadsAtOnceMax = 64
const uploadsPerWorkspaceMax = 16
/** Archives of a workspace that wait to be built; one more may come while there are fewer. */
const archiveBytesPerWorkspaceMax = 4 * 1024 * 1024 * 1024
const buildsAtOnceMax = 2
/** Not over yet, in all and of one workspace. */
const buildsMax = 1000
const buildsPerWorkspaceMax = 100
/** Begun again after the platform ended without a word: a build that takes it down does so no more often than this. */
const attemptsMax = 3
/** Of one owner, of those that are over. */
const buildsKeptMax = 5

export interface BuildsOptions {
  store: Store
  secrets: Pick<SecretBox, 'lookupHash'>
  builder: Pick<Builder, 'build'>
  logs: Pick<Logs, 'append'>
  clock: Clock
  log: Logger
  /** `<dataDir>/builds` */
  dir: string
  archiveBytesMax?: number
}

/** A build that is not over. */
interface Live {
  build: StoredBuild
  receiving: boolean
  readonly off: AbortController
  /** While the builder works. */
  working: Promise<unknown> | null
}

export class Builds {
  readonly #options: BuildsOptions
  readonly #records: BuildRecords
  readonly #archives: Archives
  readonly #turns = new BuildTurns(buildsAtOnceMax)
  readonly #uploads = new Semaphore({
    concurrencyMax: uploadsAtOnceMax,
    waitingMax: 0,
    what: 'archives are being uploaded',
  })
  readonly #live = new Map<string, Live>()
  readonly #handlers = new Map<string, BuildHandlers>()
  readonly #deadlines: Deadlines
  readonly #background: Background
  readonly #lock = new KeyedLock()

  constructor(options: BuildsOptions) {
    this.#options = options
    this.#records = new BuildRecords(options.store)
    this.#archives = new Archives(options.dir)
    this.#background = new Background((error) => {
      if (!this.#background.closing.aborted) options.log.error('work on a build failed', { error })
    })
    this.#deadlines = new Deadlines({
      clock: options.clock,
      log: options.log,
      due: async (id) => this.#uploadOver(id),
    })
  }

  /** At start, before `open`. */
  on(kind: string, handlers: BuildHandlers): void {
    this.#handlers.set(kind, handlers)
  }

  /** At start: goes on with what an earlier life left, the newest of each owner. */
  async open(): Promise<void> {
    await mkdir(this.#options.dir, { recursive: true, mode: 0o700 })
    const newest = new Map<string, string>()
    for await (const build of this.#records.underWay()) {
      this.#live.set(build.name, { build, receiving: false, off: new AbortController(), working: null })
      if (build.body.status === 'building' && build.body.error === null)
        newest.set(fullKey(build), newestOf(build, this.#live.get(newest.get(fullKey(build)) ?? '')))
    }
    await this.#archives.removeExcept(new Set(newest.values()))
    for (const live of this.#live.values()) {
      const { body, name } = live.build
      if (body.error !== null) this.#background.run(this.#tellFailed(live, body.error))
      else if (body.status === 'uploading') this.#deadlines.set(name, body.uploadEndsAt)
      else if (newest.get(fullKey(live.build)) === name) this.#background.run(this.#carryOut(live))
      else this.#background.run(this.#fail(live, replaced))
    }
  }

  /** What is being built is given up, and begun again by the next platform. */
  async close(): Promise<void> {
    this.#background.close()
    this.#deadlines[Symbol.dispose]()
    await this.#background.settled()
  }

  /**
   * Makes an upload address for what `owner` names, good for one upload, which starts the build. One of the same owner that was not
   * used takes none any more. `origin`: what the address begins with. @throws too_many_requests, workspace_not_found
   */
  async begin(owner: BuildOwner, origin: string): Promise<{ id: string; uploadUrl: string }> {
    this.#background.refuseWhenClosing()
    return await this.#lock.run(`${owner.workspace}/${ownerKey(owner)}`, async () => {
      const before = this.#liveOf(owner).filter(({ build }) => build.body.status === 'uploading')
      this.#admit(owner.workspace, before.length)
      const { clock, secrets } = this.#options
      const token = randomSecret()
      const id = sortableId(clock.now())
      const { workspace, ...rest } = owner
      const body: BuildBody = {
        owner: rest,
        tokenHash: secrets.lookupHash(token),
        uploadEndsAt: clock.now() + uploadMsMax,
        archiveType: null,
        archiveBytes: 0,
        status: 'uploading',
        uploadedAt: null,
        startedAt: null,
        endedAt: null,
        attempts: 0,
        error: null,
        image: null,
      }
      const build = await this.#records.create(workspace, id, body)
      this.#live.set(id, { build, receiving: false, off: new AbortController(), working: null })
      this.#deadlines.set(id, body.uploadEndsAt)
      for (const live of before) this.#background.run(this.#fail(live, replaced))
      return { id, uploadUrl: `${origin}/-/uploads/${token}` }
    })
  }

  /**
   * Takes the archive of an upload address. Resolves once it is kept for good and its build is recorded; what fails before leaves
   * nothing but the address, which is good for another try.
   * @throws not_found, gone, conflict for an address that was used or is in use, unsupported_media_type, bad_request,
   * body_too_large, bad_gateway, gateway_timeout, insufficient_storage, too_many_requests
   */
  async receive(
    token: string,
    body: ReadableStream<Uint8Array> | null,
    contentType: string,
    length: number | null,
    signal: AbortSignal = new AbortController().signal,
  ): Promise<void> {
    this.#background.refuseWhenClosing()
    const type = archiveTypeOf(contentType)
    const live = await this.#addressed(token)
    this.#enter(live)
    const { build, off } = live
    const { name: id } = build
    try {
      using _place = await this.#uploads.acquire()
      const bytesMax = this.#options.archiveBytesMax ?? archiveBytesMaxDefault
      const stop = AbortSignal.any([signal, off.signal, this.#background.closing])
      const archiveBytes = await this.#archives.receive(id, { body, type, length, bytesMax, signal: stop })
      await this.#accept(live, { archiveType: type, archiveBytes })
    } finally {
      live.receiving = false
    }
  }

  /** Null when there is none, or it is long over. */
  async get(workspace: string, id: string): Promise<BuildView | null> {
    const found = await this.#records.get(workspace, id)
    return found && buildView(found)
  }

  /** The newest of an owner, over or not. */
  async newest(owner: Omit<BuildOwner, 'tag'>): Promise<BuildView | null> {
    const [found] = await this.#records.ofOwner(owner)
    return found === undefined ? null : buildView(found)
  }

  /** The newest of each owner of a kind. */
  async newestOf(workspace: string, kind: string): Promise<BuildView[]> {
    const newest = new Map<string, BuildView>()
    for await (const build of this.#records.ofWorkspace(workspace))
      if (build.body.owner.kind === kind) newest.set(ownerKey(build.body.owner), buildView(build))
    return [...newest.values()]
  }

  /**
   * Ends and forgets the builds of an owner, or the one of a tag. Resolves when nothing is being built any more. Nobody is told; a
   * handler that was called may still be at work.
   */
  async cancel(owner: Omit<BuildOwner, 'tag'> & { tag?: string }): Promise<void> {
    const wanted = ({ body }: StoredBuild) => owner.tag === undefined || body.owner.tag === owner.tag
    for (const live of this.#liveOf(owner)) if (wanted(live.build)) await this.#forget(live)
    for (const build of await this.#records.ofOwner(owner)) {
      if (wanted(build)) await this.#records.remove(build)
    }
  }

  /** Everything of a workspace ends; steps that remove its records, for the batch that removes it. */
  async removal(workspace: string): Promise<BatchStep[]> {
    for (const live of this.#live.values()) if (live.build.workspace === workspace) await this.#forget(live)
    const builds = await Array.fromAsync(this.#records.ofWorkspace(workspace))
    return builds.map((build) => ({ op: 'remove', key: keyOf(build) }))
  }

  #admit(workspace: string, replacedNow: number): void {
    // What was called off ends without its turn.
    const underWay = this.#live.values().filter(({ off }) => !off.signal.aborted)
    const workspaces = [...underWay].map(({ build }) => build.workspace)
    const own = workspaces.filter((one) => one === workspace).length - replacedNow
    if (own < buildsPerWorkspaceMax && workspaces.length - replacedNow < buildsMax) return
    const whose = own >= buildsPerWorkspaceMax ? 'the workspace' : 'the platform'
    throw new PlatformError(
      'too_many_requests',
      `${whose} has as many builds under way as it may: wait for one to end`,
      { retryAfterSeconds: 30 },
    )
  }

  /** One at a time is uploaded to an address, and a few of a workspace. */
  #enter(live: Live): void {
    const { workspace, body } = live.build
    if (body.status !== 'uploading') throw used()
    if (live.receiving)
      throw new PlatformError('conflict', 'an archive is being uploaded to this address at this moment')
    live.off.signal.throwIfAborted()
    if (this.#options.clock.now() >= body.uploadEndsAt) throw over(tooLate)
    const others = [...this.#live.values()].filter(({ build }) => build.workspace === workspace)
    const uploads = others.filter(({ receiving }) => receiving).length
    const bytes = others.reduce((sum, { build }) => sum + build.body.archiveBytes, 0)
    if (uploads >= uploadsPerWorkspaceMax || bytes >= archiveBytesPerWorkspaceMax) {
      const what = uploads >= uploadsPerWorkspaceMax ? 'are being uploaded' : 'wait to be built'
      throw new PlatformError('too_many_requests', `too many archives of this workspace ${what}`, {
        retryAfterSeconds: 5,
      })
    }
    live.receiving = true
  }

  async #addressed(token: string): Promise<Live> {
    const found = await this.#records.byToken(this.#options.secrets.lookupHash(token))
    if (found === null)
      throw new PlatformError(
        'not_found',
        'there is no such upload address: ask for a new one (?upload=true)',
      )
    const { error, uploadedAt } = found.body
    if (error !== null && uploadedAt === null) throw over(error)
    const live = this.#live.get(found.name)
    if (live === undefined) throw used()
    return live
  }

  async #accept(live: Live, archive: Pick<BuildBody, 'archiveType' | 'archiveBytes'>): Promise<void> {
    const { workspace, name: id, body } = live.build
    await this.#lock.run(`${workspace}/${ownerKey(body.owner)}`, async () => {
      const uploadedAt = this.#options.clock.now()
      const accepted = await this.#records.change(live.build, (current) =>
        current.status === 'uploading' && current.error === null && !live.off.signal.aborted
          ? { ...current, ...archive, status: 'building', uploadedAt }
          : null,
      )
      if (accepted?.body.status !== 'building') {
        await this.#archives.remove(id)
        throw live.off.signal.reason ?? new CalledOff(null)
      }
      live.build = accepted
      this.#deadlines.delete(id)
      for (const other of this.#liveOf({ workspace, ...body.owner })) {
        // A newer address may be about to be used; what was uploaded before is out of date.
        if (other !== live && other.build.body.status === 'building') other.off.abort(new CalledOff(replaced))
      }
      this.#background.run(this.#carryOut(live))
    })
  }

  async #carryOut(live: Live): Promise<void> {
    const { closing } = this.#background
    let result: BuildResult
    try {
      await this.#tellBuilding(live)
      result = await this.#build(live)
    } catch (error) {
      if (closing.aborted) return await this.#putBack(live)
      const { reason } = live.off.signal
      if (reason instanceof CalledOff && reason.told === null) return
      return await this.#fail(live, reason instanceof CalledOff ? reason.message : this.#messageOf(error))
    }
    await this.#finish(live, result)
  }

  async #build(live: Live): Promise<BuildResult> {
    const { builder } = this.#options
    const stop = AbortSignal.any([live.off.signal, this.#background.closing])
    using _turn = await this.#turns.take(live.build.workspace, stop)
    await this.#noteStart(live)
    stop.throwIfAborted()
    const request = await this.#requestOf(live, stop)
    const building = builder.build(request)
    live.working = building.catch(() => {})
    try {
      const result = await building
      stop.throwIfAborted()
      return result
    } finally {
      live.working = null
    }
  }

  async #requestOf(live: Live, signal: AbortSignal): Promise<BuildRequest> {
    const { workspace, name: id, body } = live.build
    const redact = await this.#handlers.get(body.owner.kind)?.redact?.(buildView(live.build))
    return {
      workspace,
      kind: imageTypeOf(body.owner),
      name: body.owner.name,
      tag: body.owner.tag,
      archivePath: this.#archives.pathOf(id),
      archiveType: body.archiveType ?? 'zip',
      ...(redact === undefined ? {} : { redact }),
      onLine: (line) => this.#say(live, line),
      signal,
    }
  }

  /** Written before it begins: a build that ends the platform is counted. */
  async #noteStart(live: Live): Promise<void> {
    const { attempts } = live.build.body
    if (attempts >= attemptsMax || !(await this.#archives.has(live.build.name))) {
      throw new PlatformError(
        'unprocessable',
        attempts >= attemptsMax
          ? `the platform ended ${attempts} times while this was built`
          : 'the uploaded archive is gone: deploy again',
      )
    }
    const startedAt = this.#options.clock.now()
    await this.#change(live, (current) => ({ ...current, attempts: attempts + 1, startedAt }))
  }

  /** For the next platform. This stop was no fault of its. */
  async #putBack(live: Live): Promise<void> {
    if (live.build.body.attempts > 0) await this.#change(live, (current) => ({ ...current, attempts: 0 }))
  }

  async #finish(live: Live, result: BuildResult): Promise<void> {
    const { image } = result
    const seconds = ((this.#options.clock.now() - (live.build.body.startedAt ?? 0)) / 1000).toFixed(1)
    this.#say(live, `Built ${image} in ${seconds} s`)
    try {
      await this.#handlers.get(live.build.body.owner.kind)?.built({ ...buildView(live.build), image }, result)
    } catch (error) {
      if (this.#background.closing.aborted) return await this.#putBack(live)
      return await this.#fail(live, this.#messageOf(error))
    }
    await this.#end(live, 'built', image)
  }

  async #fail(live: Live, message: string): Promise<void> {
    live.off.abort(new CalledOff(message))
    this.#deadlines.delete(live.build.name)
    const endedAt = this.#options.clock.now()
    if (!(await this.#change(live, (current) => ({ ...current, error: message, endedAt })))) return
    await this.#archives.remove(live.build.name)
    if (live.build.body.uploadedAt !== null) this.#say(live, `ERROR: ${firstLine(message)}`)
    await this.#tellFailed(live, message)
  }

  async #tellBuilding(live: Live): Promise<void> {
    const { owner } = live.build.body
    await this.#handlers
      .get(owner.kind)
      ?.building(buildView(live.build))
      .catch((error) => this.#options.log.error('a build was not told of', { ...owner, error }))
  }

  async #tellFailed(live: Live, message: string): Promise<void> {
    await this.#handlers.get(live.build.body.owner.kind)?.failed(buildView(live.build), message)
    await this.#end(live, 'failed', null)
  }

  async #end(live: Live, status: 'built' | 'failed', image: string | null): Promise<void> {
    const now = this.#options.clock.now()
    const there = await this.#change(live, (current) => ({
      ...current,
      status,
      image,
      endedAt: current.endedAt ?? now,
    }))
    this.#live.delete(live.build.name)
    await this.#archives.remove(live.build.name)
    if (!there) return
    const { workspace, body } = live.build
    const over = (await this.#records.ofOwner({ workspace, ...body.owner })).filter((one) => isOver(one.body))
    for (const old of over.slice(buildsKeptMax)) await this.#records.remove(old)
  }

  async #forget(live: Live): Promise<void> {
    const { name: id } = live.build
    live.off.abort(new CalledOff(null))
    this.#deadlines.delete(id)
    this.#live.delete(id)
    await live.working
    await this.#records.remove(live.build)
    await this.#archives.remove(id)
  }

  async #uploadOver(id: string): Promise<void> {
    const live = this.#live.get(id)
    if (live?.build.body.status === 'uploading') await this.#fail(live, tooLate)
  }

  /** False when it is gone. */
  async #change(live: Live, change: (current: BuildBody) => BuildBody): Promise<boolean> {
    const changed = await this.#records.change(live.build, change)
    if (changed) live.build = changed
    return changed !== null
  }

  #liveOf(owner: Omit<BuildOwner, 'tag'>): Live[] {
    const key = ownerKey(owner)
    return [...this.#live.values()].filter(
      ({ build }) => build.workspace === owner.workspace && ownerKey(build.body.owner) === key,
    )
  }

  #say(live: Live, line: string): void {
    const { workspace, body } = live.build
    const { name, tag } = body.owner
    const kind = logKindOf[imageTypeOf(body.owner)]
    this.#options.logs.append({ workspace, kind, name, revision: tag, stream: 'build' }, line)
  }

  #messageOf(error: unknown): string {
    if (PlatformError.is(error)) return error.message
    this.#options.log.error('a build failed for a reason of the platform', { error })
    return 'the platform failed to build this: try again, and look at its log if that does not help'
  }
}

const replaced = 'a newer build took the place of this one'
const tooLate = `no archive was uploaded within ${uploadMsMax / 60_000} minutes`

function newestOf(build: StoredBuild, other: Live | undefined): string {
  const later = (other?.build.body.uploadedAt ?? 0) > (build.body.uploadedAt ?? 0)
  return later ? other!.build.name : build.name
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0]!
}
