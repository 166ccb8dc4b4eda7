import { type Client, ClientError, type LogLine, type Resource, type ResourceEvent } from '../client/index.ts'
import { isBuildEvent } from '../lib/build-event-types.ts'
import { CommandError } from './command.ts'
import type { Progress } from './progress.ts'

const pollMs = 300
const failedPollsMax = 100
const logLinesMax = 1000

/** What is on its way, and how it is looked at. */
export interface Followed {
  title: string
  /** Of the resource, below the control plane. */
  path: string
  /** As its logs are asked for. */
  resourceType: string
  name: string
  /** Null: what happened since `since` is followed. */
  revision: string | null
  /** The time of the first event that is of this deployment, where it has no revision. */
  since: string
}

export interface Outcome {
  status: string
  /** What failed is the build. */
  ofBuild: boolean
  /** Of what failed: the step, and the last lines. */
  message: string | null
  resource: Resource
}

const working: Record<string, (title: string) => [now: string, past: string]> = {
  UPLOADING: (title) => [`Waiting for the code of ${title}`, `The code of ${title} is there`],
  BUILDING: (title) => [`Building ${title}`, `Built ${title}`],
  DEPLOYING: (title) => [`Starting ${title}`, `Started ${title}`],
}
const over = new Set(['DEPLOYED', 'BUILT', 'FAILED', 'DEACTIVATED', 'DEACTIVATING', 'DELETING', 'TERMINATED'])

/** Waits until a build and what follows it are over, and shows what they say meanwhile. @throws CommandError on timeout */
export async function follow(
  client: Client,
  followed: Followed,
  progress: Progress,
  timeoutMs: number,
): Promise<Outcome> {
  const log = new BuildLog(client, followed, (line) => progress.line(line))
  const deadline = performance.now() + timeoutMs
  let shown = ''
  let failedPolls = 0
  try {
    for (;;) {
      const resource = await client.resources.get(followed.path).catch((error: unknown) => {
        if (!(error instanceof ClientError) || error.status !== 0 || ++failedPolls > failedPollsMax)
          throw error
        return null
      })
      if (resource !== null) {
        failedPolls = 0
        const { status, message, ofBuild } = stateOf(resource, followed)
        if (over.has(status)) {
          await log.finish()
          return { status, ofBuild, message: status === 'FAILED' ? message : null, resource }
        }
        const step = working[status]?.(followed.title)
        if (step !== undefined && status !== shown) {
          // What the build said is told before what comes after it.
          if (shown === 'BUILDING') await log.catchUp()
          progress.start(...step)
          shown = status
        }
      }
      if (performance.now() > deadline)
        throw new CommandError(`${followed.title} was not there in time; it goes on`)
      await Bun.sleep(pollMs)
    }
  } finally {
    log.stop()
  }
}

/** What the events of this deployment say, in true time; else what the resource says of itself. */
function stateOf(
  resource: Resource,
  { revision, since }: Pick<Followed, 'revision' | 'since'>,
): { status: string; message: string | null; ofBuild: boolean } {
  const events = resource.events ?? []
  // Nothing of what is deactivated is brought up.
  const rests = resource.status === 'DEACTIVATED' || resource.status === 'DELETING'
  const own = events.filter((event) =>
    revision === null
      ? event.time >= since &&
        // A sandbox that could not be made is told of as its machine.
        (isOfDeployment(event) || (event.type === 'instance' && event.status === 'FAILED'))
      : event.revision === revision && isOfDeployment(event),
  )
  const last = newest(own)
  if (last?.status !== undefined && !rests)
    return { status: last.status, message: last.message ?? null, ofBuild: isBuildEvent(last.type) }
  if (revision !== null && !rests) return { status: 'UPLOADING', message: null, ofBuild: false }
  const image = (resource.metadata as { status?: string; events?: ResourceEvent[] } | undefined) ?? {}
  const status = resource.status ?? image.status ?? 'UPLOADING'
  const event = newest([...events, ...(image.events ?? [])])
  return { status, message: event?.message ?? null, ofBuild: event !== undefined && isBuildEvent(event.type) }
}

function isOfDeployment({ type }: ResourceEvent): boolean {
  return type === 'deployment' || isBuildEvent(type)
}

/** They are listed in either order. */
function newest(events: ResourceEvent[]): ResourceEvent | undefined {
  const ordered = (events[0]?.time ?? '') <= (events.at(-1)?.time ?? '') ? events : events.toReversed()
  return ordered.findLast(({ status }) => status !== undefined)
}

/** The lines of a build, each once: as they come, and at the end what is still missing. */
class BuildLog {
  private readonly gone = new AbortController()
  private readonly following: Promise<void>
  private lastTimestamp = ''

  constructor(
    private readonly client: Client,
    private readonly followed: Followed,
    private readonly print: (line: string) => void,
  ) {
    this.following = this.run()
  }

  stop(): void {
    this.gone.abort()
  }

  async finish(): Promise<void> {
    this.stop()
    await this.following
    await this.catchUp()
  }

  /** Shows what is there and was not shown yet. */
  async catchUp(): Promise<void> {
    const { logs } = await this.client.logs
      .query({ ...this.query(), limit: logLinesMax })
      .catch(() => ({ logs: [] }))
    for (const line of logs.toReversed()) this.show(line)
  }

  private async run(): Promise<void> {
    while (!this.gone.signal.aborted) {
      try {
        for await (const line of this.client.logs.follow(this.query(), this.gone.signal)) this.show(line)
      } catch {
        // The platform went away for a moment, or cannot say: what is missed is read later.
      }
      if (!this.gone.signal.aborted) await Bun.sleep(pollMs)
    }
  }

  private query() {
    const { resourceType, name, revision, since } = this.followed
    return { resourceType, name, stream: 'build', ...(revision === null ? { start: since } : { revision }) }
  }

  private show({ timestamp, message }: LogLine): void {
    if (timestamp <= this.lastTimestamp) return
    this.lastTimestamp = timestamp
    for (const line of message.split('\n')) if (line.trim() !== '') this.print(line.trimEnd())
  }
}
