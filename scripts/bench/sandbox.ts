import { readdirSync, readFileSync } from 'node:fs'
import { RunningHutch, temporaryDataDir } from '../platform.ts'

/** A platform with one sandbox, and plain HTTP to that sandbox's API. */
export interface BenchSandbox extends AsyncDisposable {
  /** Of the platform. */
  readonly pid: number
  readonly dataDir: string
  call(path: string, init?: RequestInit): Promise<Response>
}

export async function benchSandbox(memoryMb = 1024, args: string[] = []): Promise<BenchSandbox> {
  const stack = new AsyncDisposableStack()
  const dataDir = stack.use(await temporaryDataDir())
  const platform = stack.use(await RunningHutch.start({ dataDir: dataDir.path, args }))
  const { code, stderr } = await platform.run(['sandbox', 'create', 'bench', '--memory', String(memoryMb)])
  if (code !== 0) throw new Error(stderr)
  const { BL_API_KEY, BL_RUN_URL, BL_WORKSPACE } = await platform.env()
  return {
    pid: platform.child.pid,
    dataDir: dataDir.path,
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

/** A process of the sandbox, which goes on for a day, as the host numbers it: the way into its namespaces. */
export async function sandboxPid(sandbox: BenchSandbox): Promise<string> {
  // Found on the host by a command line that nothing else has.
  const mark = `86400.${crypto.getRandomValues(new Uint32Array(1))[0]}`
  const body = JSON.stringify({ command: `exec sleep ${mark}` })
  await (await sandbox.call('/process', { method: 'POST', body })).arrayBuffer()
  return hostPid(mark)
}

async function hostPid(mark: string): Promise<string> {
  const deadline = performance.now() + 5000
  while (performance.now() < deadline) {
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        if (readFileSync(`/proc/${pid}/cmdline`, 'utf8') === `sleep\0${mark}\0`) return pid
      } catch {
        // It ended while we looked.
      }
    }
    await Bun.sleep(10)
  }
  throw new Error('the sandbox is not found among the processes of this host')
}
