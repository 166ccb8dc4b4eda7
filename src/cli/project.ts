import { existsSync, readFileSync, statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { detectProject, type Project } from '../lib/project.ts'
import {
  emptyProjectSettings,
  type ProjectSettings,
  type ProjectType,
  parseProjectSettings,
} from '../lib/project-settings.ts'
import { CommandError } from './command.ts'
import { failureMessage } from './failure.ts'
import { warn } from './output.ts'

const settingsFile = 'blaxel.toml'
const nameCharsMax = 63

/** A folder of code as the command line deploys it. */
export interface ProjectFolder {
  /** Absolute. */
  directory: string
  settings: ProjectSettings
  hasSettings: boolean
  dockerfile: string | null
  /** Null when it is in no language that is known here. */
  code: Project | null
}

/** @throws CommandError naming what is wrong with the folder or its blaxel.toml */
export function readProject(directory: string, interpolate: (text: string) => string): ProjectFolder {
  const folder = resolve(directory)
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory())
    throw new CommandError(`${directory} is no folder`)
  const text = readOptional(join(folder, settingsFile))
  let settings = emptyProjectSettings()
  try {
    if (text !== null) settings = parseProjectSettings(text, interpolate)
  } catch (error) {
    throw new CommandError(
      `${join(directory, settingsFile)}${failureMessage(error).replace(/^blaxel\.toml/, '')}`,
    )
  }
  const files = {
    has: (path: string) => existsSync(join(folder, path)),
    read: (path: string) => readOptional(join(folder, path)),
  }
  return {
    directory: folder,
    settings,
    hasSettings: text !== null,
    dockerfile: readOptional(join(folder, settings.build.dockerfile)),
    code: detectProject(files, settings.entrypoint),
  }
}

/**
 * Its name: of blaxel.toml, else as asked for (`first.asked`: the other way around), else of its image, else of the folder;
 * fit for an address.
 */
export function projectName(
  { directory, settings }: ProjectFolder,
  asked: string | undefined,
  first: { asked: boolean } = { asked: false },
): string {
  const ofImage = settings.image
    ?.replace(/[@:][^/]*$/, '')
    .split('/')
    .at(-1)
  const named = first.asked ? (asked ?? settings.name) : (settings.name ?? asked)
  const written = named ?? ofImage ?? basename(directory)
  if (!first.asked && asked !== undefined && settings.name !== undefined && asked !== settings.name)
    warn(`${settingsFile} names it ${settings.name}: --name ${asked} is not looked at`)
  const name = slug(written)
  if (name === '')
    throw new CommandError(`no name can be made of ${JSON.stringify(written)}`, 'hutch deploy --name NAME')
  return name
}

function slug(text: string): string {
  const plain = text
    .normalize('NFKD')
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
  return plain.slice(0, nameCharsMax).replace(/^-+|-+$/g, '')
}

/** What is likely to go wrong with the build or the start, in words that say what to do. */
export function projectWarnings(project: ProjectFolder, type: ProjectType): string[] {
  const { code, dockerfile } = project
  if (type === 'volume-template') return []
  if (type === 'sandbox') return sandboxWarnings(dockerfile)
  if (dockerfile !== null) return []
  if (code === null)
    return ['no language was found here: add package.json, pyproject.toml, requirements.txt or a Dockerfile']
  if (code.prod !== null) return []
  const file = code.language === 'python' ? 'main.py' : 'a start script in package.json'
  return [`nothing says how to start it: add ${file}, or [entrypoint] prod = "..." in ${settingsFile}`]
}

function sandboxWarnings(dockerfile: string | null): string[] {
  const stub = 'COPY --from=ghcr.io/blaxel-ai/sandbox:latest /sandbox-api /usr/local/bin/sandbox-api'
  if (dockerfile === null)
    return [`a sandbox is built from a Dockerfile, and there is none; it has the line: ${stub}`]
  const known = /^\s*(FROM|COPY\s+--from=)\s*ghcr\.io\/blaxel-ai\/sandbox/im
  return known.test(dockerfile) ? [] : [`the Dockerfile has no sandbox-api, which other clouds need: ${stub}`]
}

function readOptional(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EISDIR'].includes((error as { code?: string }).code ?? '')) return null
    throw error
  }
}
