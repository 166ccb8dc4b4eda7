import type { Transport } from './transport.ts'

export interface Invocation {
  method: string
  /** Below the workload's own address; '' for that itself. */
  path: string
  params?: [name: string, value: string][]
  headers?: Record<string, string>
  body?: string | Blob
  signal?: AbortSignal
}

/** Programs that run here, by the address that the platform says they have. */
export class Workloads {
  constructor(private readonly transport: Transport) {}

  /** The program's own answer, whatever its status. */
  async invoke(url: string, invocation: Invocation): Promise<Response> {
    return await this.transport.send(addressOf(url, invocation), requestOf(invocation))
  }
}

/** The same request to a program on this machine, without any credential. */
export async function invokeLocal(url: string, invocation: Invocation): Promise<Response> {
  const init: BunFetchRequestInit = { ...requestOf(invocation), redirect: 'manual', proxy: false }
  return await fetch(addressOf(url, invocation), init)
}

function addressOf(url: string, { path, params = [] }: Invocation): string {
  const address = new URL(url + (path === '' || path.startsWith('/') ? path : `/${path}`))
  for (const [name, value] of params) address.searchParams.append(name, value)
  return address.href
}

function requestOf({ method, headers = {}, body, signal }: Invocation): RequestInit {
  return {
    method,
    headers,
    ...(body === undefined || method === 'GET' || method === 'HEAD' ? {} : { body }),
    ...(signal === undefined ? {} : { signal }),
  }
}
