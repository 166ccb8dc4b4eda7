import type { SandboxInstance } from '@blaxel/core'
import { PlatformError } from './errors.ts'
import { createPlatform, type Platform, type PlatformOptions, temporaryDataDir } from './platform.ts'
import type { RuntimeCapabilities } from './spec/runtime.ts'

/** For tests: a platform that listens, and the unmodified client of the cloud pointed at it by its own variables. */
export interface TestClient extends AsyncDisposable {
  platform: Platform
  url: string
  SandboxInstance: typeof SandboxInstance
  /** A request as the first admin. */
  request(path: string, init?: RequestInit): Promise<Response>
}

export async function openTestClient(options: PlatformOptions): Promise<TestClient> {
  const platform = await createPlatform({ port: 0, logLevel: 'error', ...options })
  const { url } = await platform.listen()
  const { workspace, apiKey } = platform.credentials
  const settings: Record<string, string> = {
    BL_API_URL: `${url}/v0`,
    BL_RUN_URL: url,
    BL_WORKSPACE: workspace,
    BL_API_KEY: apiKey,
    BL_DISABLE_H2: '1',
  }
  const saved = Object.keys(settings).map((name) => [name, process.env[name]] as const)
  Object.assign(process.env, settings)
  const sdk = await import('@blaxel/core')
  // Another test file of the same process may have loaded it with its own platform's settings.
  sdk.initialize({ workspace, apiKey })
  return {
    platform,
    url,
    SandboxInstance: sdk.SandboxInstance,
    request: (path, init = {}) =>
      fetch(url + path, {
        ...init,
        headers: { authorization: `Bearer ${apiKey}`, 'x-blaxel-workspace': workspace, ...init.headers },
      }),
    async [Symbol.asyncDispose]() {
      for (const [name, value] of saved) {
        if (value === undefined) delete process.env[name]
        else process.env[name] = value
      }
      await platform.close()
    },
  }
}

/**
 * Why tests of a platform that isolates cannot run on this host, which is said aloud; '' when they can. `lacks` answers
 * what is missing besides. What else goes wrong is thrown, since it is no reason to skip anything.
 */
export async function whyNot(lacks: (able: RuntimeCapabilities) => string = () => ''): Promise<string> {
  let why: string
  try {
    await using platform = await createPlatform({ dataDir: temporaryDataDir, logLevel: 'error' })
    why = lacks(platform.runtime.capabilities)
  } catch (error) {
    if (!PlatformError.is(error) || error.code !== 'unavailable') throw error
    why = error.message
  }
  if (why) console.warn(`skipped: ${why}`)
  return why
}
