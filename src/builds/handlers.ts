import type { BuildResult } from '../builder/index.ts'
import type { BuildView } from './record.ts'

/**
 * Called for one build after the other: `building`, then `built` or `failed`. Each may be called again after a crash, and is awaited:
 * the build counts as over once it resolved. They may call `begin` and `cancel`, and nothing waits for them that these wait for.
 */
export interface BuildHandlers {
  /** The archive is here, and the build waits for its turn. */
  building(build: BuildView): Promise<void>
  /** What it throws is how the build failed. */
  built(build: BuildView, result: BuildResult): Promise<void>
  /** Also when nothing was uploaded in time, and when a newer build of the owner took its place. */
  failed(build: BuildView, message: string): Promise<void>
  /** Values that must not be in the build's log. */
  redact?(build: BuildView): Promise<string[]>
}
