/** What pyproject.toml and uv.lock say about dependencies. */
import { PlatformError } from '../errors.ts'

export interface PyProject {
  present: boolean
  dependencies: string[]
  requiresPython: string | null
  /** Names of the programs that the project itself brings. */
  scripts: string[]
  /** Its dependencies are known only to its build backend. */
  isOpaque: boolean
  /** Some of its dependencies are directories of the project. */
  hasLocalSources: boolean
}

type Table = Record<string, unknown>

/** @throws unprocessable */
export function readPyProject(text: string | null): PyProject {
  const toml = text === null ? {} : readToml(text, 'pyproject.toml')
  const project = table(toml.project)
  const tool = table(toml.tool)
  const uv = table(tool.uv)
  const sources = Object.values(table(uv.sources)).flatMap((source) =>
    Array.isArray(source) ? source : [source],
  )
  const isDynamic = texts(project.dynamic).includes('dependencies')
  const isPoetry = toml.project === undefined && tool.poetry !== undefined
  return {
    present: text !== null,
    dependencies: texts(project.dependencies),
    requiresPython: typeof project['requires-python'] === 'string' ? project['requires-python'] : null,
    scripts: Object.keys({ ...table(project.scripts), ...table(table(tool.poetry).scripts) }),
    isOpaque: isDynamic || isPoetry,
    hasLocalSources:
      uv.workspace !== undefined ||
      sources.some((source) => 'path' in table(source) || 'workspace' in table(source)),
  }
}

/** Requirements that pin what uv.lock has one version of. @throws unprocessable */
export function lockedVersions(text: string): string[] {
  const packages = readToml(text, 'uv.lock').package
  const versions = new Map<string, Set<string>>()
  for (const one of Array.isArray(packages) ? packages : []) {
    const { name, version, source } = table(one)
    if (typeof name !== 'string' || typeof version !== 'string' || !('registry' in table(source))) continue
    versions.set(name, (versions.get(name) ?? new Set()).add(version))
  }
  // Of several each is for another platform or Python: pip finds the one that fits.
  return [...versions].filter(([, some]) => some.size === 1).map(([name, some]) => `${name}==${[...some][0]}`)
}

function readToml(text: string, name: string): Table {
  // Loaded only here: most builds have neither, and this parser costs 30 ms.
  const toml = require('@iarna/toml') as typeof import('@iarna/toml')
  try {
    return toml.parse(text)
  } catch (cause) {
    const { line, message } = cause as { line?: number; message: string }
    const reason = message.split('\n')[0]?.replace(/ at row .*$/, '') ?? 'not TOML'
    throw new PlatformError(
      'unprocessable',
      `${name}${line === undefined ? '' : ` line ${line + 1}`}: ${reason}`,
      { cause },
    )
  }
}

function table(value: unknown): Table {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Table) : {}
}

function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((one): one is string => typeof one === 'string') : []
}
