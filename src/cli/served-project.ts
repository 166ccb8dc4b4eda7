import { existsSync, readFileSync } from 'node:fs'
import { basename, delimiter, dirname, join } from 'node:path'
import { detectProject, type Project } from '../lib/project.ts'
import { emptyProjectSettings, type ProjectSettings, parseProjectSettings } from '../lib/project-settings.ts'
import { CommandError } from './command.ts'

/** A folder that `hutch serve` runs, as its files are now. */
export interface ServedProject {
  name: string
  /** `agent`, `function`, ... */
  kind: string
  directory: string
  project: Project
  settings: ProjectSettings
}

export interface ProjectPlace {
  directory: string
  /** As a package of a monorepo is called there, and what it is. */
  name?: string
  kind?: string
}

/** Programs of the project first, then of the folders above it, as far as they belong to it. */
const foldersAboveMax = 3

export function readSettings(directory: string): ProjectSettings {
  const path = join(directory, 'blaxel.toml')
  return existsSync(path) ? parseProjectSettings(readFileSync(path, 'utf8')) : emptyProjectSettings()
}

/** Null when there is nothing in the folder that could be served. */
export function readProject({ directory, name, kind }: ProjectPlace): ServedProject | null {
  const settings = readSettings(directory)
  const files = {
    has: (path: string) => existsSync(join(directory, path)),
    read: (path: string) =>
      existsSync(join(directory, path)) ? readFileSync(join(directory, path), 'utf8') : null,
  }
  const project = detectProject(files, settings.entrypoint)
  if (project === null) return null
  return {
    name: name ?? settings.name ?? basename(directory),
    kind: kind ?? settings.type ?? 'agent',
    directory,
    project,
    settings,
  }
}

/** The line for a shell that serves it. @throws CommandError when the project does not say how */
export function lineOf(
  { directory, project }: ServedProject,
  hot: boolean,
): { line: string; reloads: boolean } {
  if (hot && project.dev !== null) return { line: project.dev, reloads: true }
  const line = project.start ?? project.prod
  if (line !== null) return { line, reloads: false }
  const wanted =
    project.language === 'typescript'
      ? 'a script "start" in package.json, or src/index.ts'
      : 'src/main.py, or [entrypoint] prod in blaxel.toml'
  throw new CommandError(`${directory} does not say what to run: it needs ${wanted}`)
}

/** Where a shell finds what the project installed. */
export function pathOf(directory: string, rest: string | undefined): string {
  const folders: string[] = []
  for (let at = directory, above = 0; above <= foldersAboveMax; at = dirname(at), above++) {
    folders.push(join(at, 'node_modules', '.bin'), join(at, '.venv', 'bin'))
    if (existsSync(join(at, '.git')) || at === dirname(at)) break
  }
  return [...folders.filter((folder) => existsSync(folder)), rest ?? ''].join(delimiter)
}
