import { PlatformError } from '../errors.ts'
import { Executions } from './executions.ts'
import { Files } from './files.ts'
import { Images } from './images.ts'
import { Logs } from './logs.ts'
import { Nodes } from './nodes.ts'
import { pages } from './pages.ts'
import { Processes } from './processes.ts'
import { Resources } from './resources.ts'
import { Snapshots } from './snapshots.ts'
import { Terminal, type TerminalOptions } from './terminal.ts'
import { ClientError, Transport } from './transport.ts'
import { Uploads } from './uploads.ts'
import { Workloads } from './workloads.ts'

export type { ExecutionEventInfo, ExecutionInfo, ExecutionQuery } from './executions.ts'
export { Gate } from './gate.ts'
export type { ImageInfo } from './images.ts'
export type { LogLine, LogQuery } from './logs.ts'
export type { NodeInfo } from './nodes.ts'
export type { Processes, ProcessInfo } from './processes.ts'
export type { Accepted, Resource, ResourceEvent } from './resources.ts'
export type { ForkInfo, SnapshotInfo } from './snapshots.ts'
export { asLost, ClientError, messageOf } from './transport.ts'
export { type Invocation, invokeLocal } from './workloads.ts'

export interface ClientOptions {
  /** Base of the control plane, with /v0. */
  apiUrl: string
  workspace: string
  apiKey: string
  fetch?: (url: string, init: RequestInit) => Promise<Response>
}

export interface Metadata {
  name: string
  displayName?: string
  externalId?: string
  labels?: Record<string, string>
  url?: string
  workspace?: string
  createdAt?: string
  updatedAt?: string
}

export interface SandboxInfo {
  metadata: Metadata
  spec: {
    region?: string
    runtime?: {
      image?: string
      memory?: number
      storageMb?: number
      envs?: { name: string; value: string }[]
      ttl?: string
    }
  }
  status?: string
  state?: string
  /** Seconds until it is deleted. */
  expiresIn?: number
  events?: { time: string; type: string; status?: string; message?: string }[]
}

export interface WorkspaceInfo {
  name: string
  displayName?: string
  status?: string
  createdAt?: string
}

export interface KeyInfo {
  id: string
  name: string
  sub?: string
  sub_type?: string
  createdAt?: string
  expiresAt?: string
  expires_in?: string
  /** Only in the answer that creates it. */
  apiKey?: string
}

const deployingPollMs = 1_000
const archivePollMs = 200

/** Typed client of the platform's own HTTP API. Failures are ClientErrors whose message is for people. */
export class Client {
  readonly sandboxes: Sandboxes
  readonly keys: Keys
  readonly workspaces: Workspaces
  readonly images: Images
  readonly snapshots: Snapshots
  /** Of whatever kind, by path. */
  readonly resources: Resources
  readonly uploads: Uploads
  readonly logs: Logs
  readonly workloads: Workloads
  readonly executions: Executions
  readonly nodes: Nodes
  private readonly transport: Transport

  constructor(options: ClientOptions) {
    this.transport = new Transport(options)
    this.sandboxes = new Sandboxes(this.transport)
    this.keys = new Keys(this.transport)
    this.workspaces = new Workspaces(this.transport)
    this.images = new Images(this.transport)
    this.snapshots = new Snapshots(this.transport)
    this.resources = new Resources(this.transport)
    this.uploads = new Uploads(this.transport)
    this.logs = new Logs(this.transport)
    this.workloads = new Workloads(this.transport)
    this.executions = new Executions(this.transport)
    this.nodes = new Nodes(this.transport)
  }

  /** Where the platform is, and the key goes. */
  get origin(): string {
    return new URL(this.transport.apiUrl).origin
  }

  /** Whether the platform lives, and is ready for work. */
  async health(): Promise<{ alive: boolean; ready: boolean }> {
    const { origin } = this
    const answers = async (path: string) => {
      const response = await this.transport.send(`${origin}${path}`, { method: 'GET' })
      await response.body?.cancel()
      return response.ok
    }
    return { alive: await answers('/healthz'), ready: await answers('/readyz') }
  }
}

export interface NewSandbox {
  name?: string
  image?: string
  memoryMb?: number
  storageMb?: number
  labels?: Record<string, string>
  env?: Record<string, string>
  ttl?: string
  region?: string
}

export interface OpenSandbox {
  info: SandboxInfo
  processes: Processes
  files: Files
  terminal(options: TerminalOptions): Terminal
}

class Sandboxes {
  constructor(private readonly transport: Transport) {}

  async *list(): AsyncIterable<SandboxInfo> {
    yield* pages<SandboxInfo>(this.transport, '/sandboxes')
  }

  async get(name: string): Promise<SandboxInfo> {
    return await this.transport.json('GET', `/sandboxes/${encodeURIComponent(name)}`)
  }

  async create(sandbox: NewSandbox, options: { ifNotExists?: boolean } = {}): Promise<SandboxInfo> {
    const envs = Object.entries(sandbox.env ?? {}).map(([name, value]) => ({ name, value }))
    const body = {
      metadata: { name: sandbox.name, labels: sandbox.labels },
      spec: {
        region: sandbox.region,
        runtime: {
          image: sandbox.image ?? 'blaxel/base-image:latest',
          memory: sandbox.memoryMb ?? 4096,
          storageMb: sandbox.storageMb,
          ttl: sandbox.ttl,
          envs: envs.length > 0 ? envs : undefined,
          generation: 'mk3',
        },
      },
    }
    const query = options.ifNotExists ? '?createIfNotExist=true' : ''
    let created = await this.transport.json<SandboxInfo>('POST', `/sandboxes${query}`, body)
    // Its image is still being pulled.
    while (created.status === 'DEPLOYING') {
      await new Promise((resolve) => setTimeout(resolve, deployingPollMs))
      created = await this.get(created.metadata.name)
    }
    if (created.status === 'FAILED') {
      throw new ClientError(422, created.events?.at(-1)?.message ?? 'the sandbox could not be started')
    }
    return created
  }

  async remove(name: string): Promise<void> {
    await this.transport.json('DELETE', `/sandboxes/${encodeURIComponent(name)}`)
  }

  /** Packs its files away, and waits until that is done; nothing of it runs then. */
  async archive(name: string): Promise<SandboxInfo> {
    return await this.move(name, 'archive', 'ARCHIVED')
  }

  /** What `archive` packed away, started again. */
  async unarchive(name: string): Promise<SandboxInfo> {
    return await this.move(name, 'unarchive', 'DEPLOYED')
  }

  private async move(name: string, way: 'archive' | 'unarchive', aim: string): Promise<SandboxInfo> {
    const path = `/sandboxes/${encodeURIComponent(name)}/${way}`
    let sandbox = await this.transport.json<SandboxInfo>('POST', path, {})
    while (sandbox.status?.endsWith('ARCHIVING')) {
      await new Promise((resolve) => setTimeout(resolve, archivePollMs))
      sandbox = await this.get(name)
    }
    if (sandbox.status !== aim) {
      throw new ClientError(422, sandbox.events?.at(-1)?.message ?? `its status is ${sandbox.status}`)
    }
    return sandbox
  }

  /** The sandbox's own API. Its address comes from the platform, which must be the one we already speak with. */
  async open(name: string): Promise<OpenSandbox> {
    const info = await this.get(name)
    const { url } = info.metadata
    if (!url) throw new PlatformError('internal', `sandbox ${name} has no address`)
    return {
      info,
      processes: new Processes(this.transport, url),
      files: new Files(this.transport, url),
      terminal: (options: TerminalOptions) => new Terminal(this.transport, url, options),
    }
  }
}

/** The user's own keys. The cloud has no public path for them, so they live outside of its control plane. */
class Keys {
  private readonly address: string

  constructor(private readonly transport: Transport) {
    this.address = `${new URL(transport.apiUrl).origin}/-/api_keys`
  }

  async *list(): AsyncIterable<KeyInfo> {
    yield* pages<KeyInfo>(this.transport, this.address)
  }

  async create(key: { name: string; expiresIn?: string }): Promise<KeyInfo> {
    return await this.transport.json('POST', this.address, { name: key.name, expires_in: key.expiresIn })
  }

  async revoke(id: string): Promise<void> {
    await this.transport.json('DELETE', `${this.address}/${encodeURIComponent(id)}`)
  }
}

class Workspaces {
  constructor(private readonly transport: Transport) {}

  async *list(): AsyncIterable<WorkspaceInfo> {
    yield* pages<WorkspaceInfo>(this.transport, '/workspaces')
  }

  async get(name: string): Promise<WorkspaceInfo> {
    return await this.transport.json('GET', `/workspaces/${encodeURIComponent(name)}`)
  }

  async create(workspace: { name: string; displayName?: string }): Promise<WorkspaceInfo> {
    return await this.transport.json('POST', '/workspaces', workspace)
  }

  async remove(name: string, { force = false }: { force?: boolean } = {}): Promise<void> {
    const query = force ? '?force=true' : ''
    await this.transport.json('DELETE', `/workspaces/${encodeURIComponent(name)}${query}`)
  }
}
