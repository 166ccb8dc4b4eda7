import { RunningHutch, temporaryDataDir } from '../platform.ts'

/** A platform with one sandbox, and plain HTTP to that sandbox's API. */
export interface BenchSandbox extends AsyncDisposable {
  /** Of the platform. */
  readonly pid: number
  call(path: string, init?: RequestInit): Promise<Response>
}

export async function benchSandbox(memoryMb = 1024): Promise<BenchSandbox> {
  const stack = new AsyncDisposableStack()
  const dataDir = stack.use(await temporaryDataDir())
  const platform = stack.use(await RunningHutch.start({ dataDir: dataDir.path }))
  const { code, stderr } = await platform.run(['sandbox', 'create', 'bench', '--memory', String(memoryMb)])
  if (code !== 0) throw new Error(stderr)
  const { BL_API_KEY, BL_RUN_URL, BL_WORKSPACE } = await platform.env()
  return {
    pid: platform.child.pid,
    async call(path, init = {}) {
      const response = await fetch(`${BL_RUN_URL}/${BL_WORKSPACE}/sandboxes/bench${path}`, {
        ...init,
        headers: { authorization: `Bearer ${BL_API_KEY}`, ...(init.headers as Record<string, string>) },
      })
      if (!response.ok) throw new Error(`${path} answered ${response.status}: ${await response.text()}`)
      return response
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}
