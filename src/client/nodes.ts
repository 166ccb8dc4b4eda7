import type { Transport } from './transport.ts'

/** A program that registered itself to be called, as the API of its own platform tells of it. */
export interface NodeInfo {
  id: string
  base_url: string
  version: string
  deployment_type: string
  reasoners: { id: string }[]
  skills: { id: string }[]
  health_status: string
  lifecycle_status: string
  last_heartbeat: string
  registered_at: string
}

export class Nodes {
  private readonly url: string

  constructor(private readonly transport: Transport) {
    this.url = `${new URL(transport.apiUrl).origin}/api/v1/nodes`
  }

  async list(): Promise<NodeInfo[]> {
    return (await this.transport.json<{ nodes: NodeInfo[] }>('GET', this.url)).nodes
  }

  async get(id: string): Promise<NodeInfo> {
    return await this.transport.json('GET', `${this.url}/${encodeURIComponent(id)}`)
  }
}
