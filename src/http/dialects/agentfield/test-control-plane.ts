import type { FakeClock } from '../../../lib/test-clock.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import type { Platform, PlatformOptions } from '../../../platform.ts'
import { type Asked, openDialectPlatform, requestTo, told } from '../test-dialect.ts'

export interface Told {
  execution_id: string
  run_id: string
  status: string
  error?: string
  error_category?: string
  [field: string]: unknown
}

/** A platform, asked as SDKs of AgentField ask. Its clock stands still until it is moved. */
export class TestControlPlane implements AsyncDisposable {
  readonly platform: Platform
  readonly clock: FakeClock

  private constructor(platform: Platform, clock: FakeClock) {
    this.platform = platform
    this.clock = clock
  }

  static async open(options: PlatformOptions = {}): Promise<TestControlPlane> {
    const { platform, clock } = await openDialectPlatform(options)
    return new TestControlPlane(platform, clock)
  }

  request(path: string, asked: Asked = {}): Promise<Response> {
    return requestTo(this.platform, `/api/v1${path}`, asked)
  }

  async ask(path: string, asked: Asked = {}): Promise<{ status: number; body: unknown }> {
    return await told(await this.request(path, asked))
  }

  async execute(
    target: string,
    input: unknown = {},
    headers: Record<string, string> = {},
  ): Promise<{ status: number; body: Told }> {
    const { status, body } = await this.ask(`/execute/${target}`, { json: { input }, headers })
    return { status, body: body as Told }
  }

  async executeLater(
    target: string,
    json: object = {},
    headers: Record<string, string> = {},
  ): Promise<{ status: number; body: Told }> {
    const { status, body } = await this.ask(`/execute/async/${target}`, { json, headers })
    return { status, body: body as Told }
  }

  /** What is told of an execution now. */
  async told(id: string): Promise<Told> {
    return (await this.ask(`/executions/${id}`)).body as Told
  }

  /** What is told of it once it ended. */
  ended(id: string): Promise<Told> {
    return eventually(`${id} ended`, async () => {
      const execution = await this.told(id)
      return /^(queued|running|waiting)$/.test(execution.status) ? null : execution
    })
  }

  /** Once its node took it up and is to report. */
  async takenUp(id: string): Promise<void> {
    const { executions, credentials } = this.platform
    await eventually('it is worked on', () => executions.get(credentials.workspace, id)?.status === 'waiting')
  }

  report(id: string, json: object, asked: { key?: string } = {}): Promise<{ status: number; body: unknown }> {
    return this.ask(`/executions/${id}/status`, { json, ...asked })
  }

  /** Of an instance of something deployed. */
  async workload(kind: string, name: string, instanceId = `${name}-1`): Promise<string> {
    return await this.platform.access.mintWorkloadToken({
      ...{ instanceId, workspace: this.platform.credentials.workspace, labels: {}, ttlMs: 3_600_000 },
      resource: { kind, name },
    })
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.platform.close()
  }
}
