import type { ProjectSettings } from '../lib/project-settings.ts'

export interface BuildRequest {
  workspace: string
  /** Which kind of thing the image is for: it decides what an entrypoint is, and the image's type. */
  kind: 'agent' | 'function' | 'application' | 'job' | 'sandbox'
  name: string
  /** Tag of the image that comes out, e.g. a revision's id. */
  tag: string
  /** The uploaded archive, a regular file of the platform's (0600). */
  archivePath: string
  archiveType: 'zip' | 'tar'
  /** Values that must not be in the log. */
  redact?: string[]
  onLine(line: string, stream: 'stdout' | 'stderr'): void
  signal: AbortSignal
}

export interface BuildResult {
  /** A reference that images.resolve knows: `agent/<name>:<tag>`. Entrypoint, workingDir, env are in the image. */
  image: string
  language: 'typescript' | 'python' | 'docker'
  /** The archive's blaxel.toml as checked. */
  settings: ProjectSettings
}

export interface Builder {
  build(request: BuildRequest): Promise<BuildResult>
}
