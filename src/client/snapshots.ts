import { pages } from './pages.ts'
import { ClientError, type Transport } from './transport.ts'

export interface SnapshotInfo {
  id: string
  name: string
  status: string
  sandboxName: string
  source: { name: string; deleted: boolean }
  spec: { image?: string; memory?: number }
  createdAt: string
  createdBy?: string
  /** In bytes, on the platform's disk. */
  size?: number
  /** Memory of its programs is in it; absent where none ran. */
  memoryKept?: boolean
  /** Why it failed. */
  reason?: string
}

export interface ForkInfo {
  type: string
  name: string
  snapshotId: string
}

export interface ForkOptions {
  env?: Record<string, string>
  port?: number
}

const pollMs = 500

/** Files of sandboxes as they were at one moment, and what is made of them. Names will do where ids are asked for. */
export class Snapshots {
  constructor(private readonly transport: Transport) {}

  async *list(): AsyncIterable<SnapshotInfo> {
    yield* pages<SnapshotInfo>(this.transport, '/snapshots')
  }

  async ofSandbox(sandbox: string): Promise<SnapshotInfo[]> {
    return await this.transport.json('GET', `${sandboxPath(sandbox)}/snapshots`)
  }

  /** Resolves when it is ready. */
  async create(sandbox: string, options: { name?: string } = {}): Promise<SnapshotInfo> {
    const body = { ...options, source: { name: sandbox, kind: 'sandbox' } }
    let snapshot = await this.transport.json<SnapshotInfo>('POST', '/snapshots', body)
    while (snapshot.status === 'pending') {
      await new Promise((resolve) => setTimeout(resolve, pollMs))
      snapshot = await this.transport.json('GET', `/snapshots/${encodeURIComponent(snapshot.id)}`)
    }
    if (snapshot.status === 'failed')
      throw new ClientError(
        422,
        `the snapshot could not be taken${snapshot.reason ? `: ${snapshot.reason}` : ''}`,
      )
    return snapshot
  }

  async remove(snapshot: string): Promise<void> {
    await this.transport.json('DELETE', `/snapshots/${encodeURIComponent(snapshot)}`)
  }

  async restore(sandbox: string, snapshot: string): Promise<{ name: string; snapshotId: string }> {
    const path = `${sandboxPath(sandbox)}/snapshots/${encodeURIComponent(snapshot)}/restore`
    return await this.transport.json('POST', path, {})
  }

  /** Of a sandbox as it is, or of a snapshot. */
  async fork(
    source: { sandbox: string; snapshot?: string } | { snapshot: string },
    target: string,
    { env = {}, port }: ForkOptions,
  ): Promise<ForkInfo> {
    const envs = Object.entries(env).map(([name, value]) => ({ name, value }))
    const body = { targetName: target, targetType: 'sandbox', port, envs }
    return 'sandbox' in source
      ? await this.transport.json('POST', `${sandboxPath(source.sandbox)}/fork`, {
          ...body,
          snapshotId: source.snapshot,
        })
      : await this.transport.json('POST', `/snapshots/${encodeURIComponent(source.snapshot)}/fork`, body)
  }
}

function sandboxPath(name: string): string {
  return `/sandboxes/${encodeURIComponent(name)}`
}
