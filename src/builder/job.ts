import type { ProjectSettings } from '../lib/project-settings.ts'
import type { LogStream, Steps } from './steps.ts'
import type { Survey } from './tree.ts'

/** Kinds of things that images are built for: it decides what starts a project, and is the image's type. */
export type BuildKind = 'agent' | 'function' | 'application' | 'job' | 'sandbox'

export interface BuildRequest {
  workspace: string
  kind: BuildKind
  name: string
  /** Tag of the image that comes out, e.g. a revision's id. */
  tag: string
  /** The uploaded archive, a regular file of the platform's. */
  archivePath: string
  archiveType: 'zip' | 'tar'
  /** Values that must not be in the log. */
  redact?: string[]
  onLine(line: string, stream: LogStream): void
  signal: AbortSignal
}

export interface BuildResult {
  /** A reference that images know: `agent/<name>:<tag>`. What starts it, where, and its environment are in the image. */
  image: string
  language: 'typescript' | 'python' | 'docker'
  /** The archive's blaxel.toml as checked: what the client's JSON does not carry. */
  settings: ProjectSettings
}

/** A build under way: its archive was looked through, nothing of it is written yet. */
export interface BuildJob {
  request: BuildRequest
  survey: Survey
  settings: ProjectSettings
  /** `[build.args]`, and `.env.build` over them: for programs of the build, in no image. */
  buildEnv: Record<string, string>
  /** What the image must not have in it, wherever a program of the build may write it. */
  secrets: string[]
  steps: Steps
  signal: AbortSignal
}
