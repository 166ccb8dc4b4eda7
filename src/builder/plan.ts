import type { Project } from '../lib/project.ts'
import type { ProjectSettings } from '../lib/project-settings.ts'
import type { Toolchain } from './toolchain.ts'

/** Where an archive's files are, while they are built and when they run. */
export const sourceDir = '/blaxel'

/** One command of a build. */
export interface Action {
  /** As a person would say it; of a failure the message names it. */
  name: string
  argv: string[]
  env?: Record<string, string>
}

/** How the dependencies of a project come. */
export interface Installation {
  /** Absolute. */
  dir: string
  /** What is told of in the log. */
  manager: string
  actions: Action[]
  /** Written before, into its directory: what decides which dependencies there are. */
  files: ReadonlyMap<string, Uint8Array>
  /** It depends on other files of the project, too: then any change of those installs anew. */
  needsSource: boolean
  /** Names of the directories that are kept of it, wherever they come to be. */
  keeps: string[]
  /** Said when it fails. */
  hint?: string
  /**
   * How the dependencies come without what is for development only: made of all of them, or else installed by themselves. Absent where
   * there is nothing to leave out.
   */
  prune?: { actions: Action[]; isInstallation: boolean }
}

/** What is to be done to make an image of a project. */
export interface Plan {
  language: 'typescript' | 'python'
  /** Paths that are not taken from the archive. */
  without(path: string): boolean
  installation: Installation | null
  /** After the dependencies, with all of the source. */
  actions: Action[]
  /** What a TypeScript program is started from, when a bundle of it may stand in. */
  bundle: { entry: string; args: string[] } | null
  /** The file of its own that the program begins with, below the project's directory; null: not known. */
  entry: string | null
  /** Of the image. */
  env: Record<string, string>
  program: string[]
  /** Warnings for the log. */
  notes: string[]
}

export interface PlanInput {
  /** Of the project: absolute. */
  dir: string
  project: Project
  kind: string
  settings: ProjectSettings
  tools: Toolchain
  /** Sizes by path below the project's directory. */
  files: ReadonlyMap<string, number>
  /** Contents of those that were noticed. */
  noticed: ReadonlyMap<string, Uint8Array>
  text(path: string): string | null
  /** The project around this one, which installs for all in it; null: it stands alone. */
  around: PlanInput | null
}
