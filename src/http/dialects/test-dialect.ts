import { FakeClock } from '../../lib/test-clock.ts'
import { createPlatform, type Platform, type PlatformOptions, temporaryDataDir } from '../../platform.ts'
import { fakeRuntime } from '../../runtimes/fake/index.ts'

export type Asked = Omit<RequestInit, 'headers'> & {
  json?: unknown
  key?: string | null
  headers?: Record<string, string>
}

/** A platform on disk that is gone with it. Its clock stands still until it is moved. */
export async function openDialectPlatform(
  options: PlatformOptions = {},
): Promise<{ platform: Platform; clock: FakeClock }> {
  const clock = new FakeClock(Date.UTC(2026, 0, 1))
  const platform = await createPlatform({
    dataDir: temporaryDataDir,
    runtime: fakeRuntime(),
    port: 0,
    logLevel: 'error',
    clock,
    ...options,
  })
  return { platform, clock }
}

/** With the first admin's key, as these clients send it, unless another is given; null: with none. */
export function requestTo(platform: Platform, path: string, asked: Asked): Promise<Response> {
  const { json, key = platform.credentials.apiKey, headers: given, ...rest } = asked
  const headers = new Headers(given)
  if (key !== null) headers.set('x-api-key', key)
  if (json !== undefined) headers.set('content-type', 'application/json')
  const body = json === undefined ? rest.body : JSON.stringify(json)
  return platform.request(path, {
    ...rest,
    headers,
    ...(body === undefined || body === null ? {} : { body }),
    method: rest.method ?? (json === undefined ? 'GET' : 'POST'),
  })
}

/** The answer's status, and its body as what it says. */
export async function told<Body>(response: Response): Promise<{ status: number; body: Body }> {
  const text = await response.text()
  const isJson = response.headers.get('content-type')?.includes('json') === true
  return { status: response.status, body: isJson ? JSON.parse(text) : text }
}
