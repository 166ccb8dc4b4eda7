import { isLoopbackHost } from '../lib/loopback.ts'
import type { ClientOptions } from './index.ts'

/** What the platform refused, in words for people. `status` 0: it did not answer at all. */
export class ClientError extends Error {
  constructor(
    readonly status: number,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options)
    this.name = 'ClientError'
  }
}

/** How a connection ends that breaks off while an answer is read. */
const lostCodes: ReadonlySet<unknown> = new Set(['ECONNRESET', 'ConnectionClosed', 'EPIPE'])

/** As a failure for people, where it is one of the connection: Bun's own words are for who wrote the request. */
export function asLost(error: unknown): unknown {
  if (error instanceof ClientError || !lostCodes.has((error as { code?: unknown }).code)) return error
  return new ClientError(0, 'the connection to the platform was lost', { cause: error })
}

const apiVersion = '2026-04-28'
const errorBodyBytesMax = 64 * 1024

/** Authenticated requests and readable failures. */
export class Transport {
  readonly apiUrl: string
  private readonly headers: Record<string, string>
  private readonly fetch: NonNullable<ClientOptions['fetch']>

  constructor(options: ClientOptions) {
    this.apiUrl = options.apiUrl.replace(/\/+$/, '')
    this.headers = {
      'x-blaxel-authorization': `Bearer ${options.apiKey}`,
      'x-blaxel-workspace': options.workspace,
      'blaxel-version': apiVersion,
    }
    this.fetch = options.fetch ?? fetch
  }

  /** `path` below the control plane, or a whole address. Any answer that is not a success is thrown. */
  async json<Answer>(method: string, path: string, body?: unknown): Promise<Answer> {
    const response = await this.request(path.startsWith('/') ? `${this.apiUrl}${path}` : path, {
      method,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    const text = await response.text().catch((error: unknown) => Promise.reject(asLost(error)))
    return (text === '' ? {} : JSON.parse(text)) as Answer
  }

  async request(url: string, init: RequestInit): Promise<Response> {
    const response = await this.send(url, init)
    if (!response.ok) throw await failure(response)
    return response
  }

  /** The answer whatever its status. */
  async send(url: string, init: RequestInit): Promise<Response> {
    this.checkOrigin(url)
    return await this.dispatch(url, { ...init, headers: { ...this.headers, ...(init.headers as object) } })
  }

  /** Without our key, so to whatever address the platform named. Any answer that is not a success is thrown. */
  async bare(url: string, init: RequestInit): Promise<Response> {
    const response = await this.dispatch(url, init)
    if (!response.ok) throw await failure(response)
    return response
  }

  private async dispatch(url: string, init: RequestInit): Promise<Response> {
    // A proxy that the environment names cannot reach this machine's own platform, and must not see the key to it.
    const way: BunFetchRequestInit = isLoopbackHost(new URL(url).host) ? { proxy: false } : {}
    try {
      // A redirect would carry the key somewhere else.
      return await this.fetch(url, { ...init, ...way, redirect: 'manual' })
    } catch (cause) {
      if (init.signal?.aborted) throw cause
      const { origin } = new URL(url)
      const { code, message } = cause as Error & { code?: string }
      throw new ClientError(0, `${origin} does not answer (${code ?? message})`, { cause })
    }
  }

  /** A WebSocket, with the same credentials. */
  socket(url: string): WebSocket {
    this.checkOrigin(url)
    // The options are Bun's; the DOM's type of the constructor does not know them.
    const Client = WebSocket as unknown as new (url: string, init: object) => WebSocket
    return new Client(url.replace(/^http/, 'ws'), { headers: this.headers })
  }

  /** Addresses in answers are followed only where the key already goes. */
  private checkOrigin(url: string): void {
    const { origin } = new URL(url)
    const ours = new URL(this.apiUrl).origin
    if (origin !== ours) throw new ClientError(0, `${origin} is not ${ours}: the key is not sent there`)
  }
}

async function failure(response: Response): Promise<ClientError> {
  const text = (await response.text().catch(() => '')).slice(0, errorBodyBytesMax)
  return new ClientError(
    response.status,
    messageOf(text) ?? `the platform answered ${response.status} ${response.statusText}`.trim(),
  )
}

/** The message in any of the three error shapes. */
export function messageOf(text: string): string | null {
  try {
    const body = JSON.parse(text) as { error?: unknown; message?: unknown }
    if (typeof body.message === 'string' && body.message) return body.message
    if (typeof body.error === 'string' && body.error) return body.error
    const nested = (body.error as { message?: unknown } | undefined)?.message
    return typeof nested === 'string' ? nested : null
  } catch {
    return null
  }
}
