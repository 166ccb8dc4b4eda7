import { PlatformError } from '../errors.ts'
import type { BuildMachine } from './machine.ts'

/** In every instance: holds this executable under the name `node`, for hosts without one. */
export const asNodePath = '/opt/hutch/as-node'

/** Programs of the host image that builds may use. */
const names = ['node', 'npm', 'npx', 'pnpm', 'yarn', 'python3', 'uv', 'git'] as const
export type Tool = (typeof names)[number] | 'pip' | 'ensurepip'

export interface Toolchain {
  has(tool: Tool): boolean
  /** Of node or python3, e.g. "20.20.2"; null: it is not there. */
  node: string | null
  python: string | null
  /** Of the host's own interpreter, whatever the project has. */
  pythonPath: string
  /** Changes when one of them does. */
  text: string
}

const lookScript = `for tool in ${names.join(' ')}; do command -v $tool >/dev/null 2>&1 && echo "has $tool"; done
command -v node >/dev/null 2>&1 && echo "node $(node --version)"
command -v python3 >/dev/null 2>&1 && python3 -c '
import importlib.util, platform, sys
print("python", platform.python_version())
print("path", sys.executable)
for name, module in (("pip", "pip"), ("ensurepip", "ensurepip")):
    if importlib.util.find_spec(module) and importlib.util.find_spec("venv"): print("has", name)'
exit 0`

/** Looks which programs there are: of the host's own, and not what stands in for a `node` that it has not. */
export async function lookForTools(
  machine: Pick<BuildMachine, 'output'>,
  env: Record<string, string>,
  signal: AbortSignal,
): Promise<Toolchain> {
  const path = (env.PATH ?? '').split(':').filter((dir) => dir !== asNodePath)
  const command = {
    argv: ['/bin/sh', '-c', lookScript],
    env: { ...env, PATH: path.join(':') },
    workingDir: '/',
  }
  const { stdout, exitCode } = await machine.output(command, signal)
  if (exitCode !== 0)
    throw new PlatformError('unavailable', 'the host image cannot be built in: its shell does not work')
  const found = new Set<string>()
  const versions: Record<string, string> = {}
  for (const line of stdout.split('\n')) {
    const [key, value = ''] = line.split(' ')
    if (key === 'has') found.add(value)
    else if (key === 'node' || key === 'python' || key === 'path') versions[key] = value.replace(/^v/, '')
  }
  return {
    has: (tool) => found.has(tool),
    node: versions.node ?? null,
    python: versions.python ?? null,
    pythonPath: versions.path ?? 'python3',
    text: stdout,
  }
}
