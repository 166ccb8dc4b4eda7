/** What programs of a project find when they are run on this machine. */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { CommandError, type Target } from './command.ts'
import { connectionFor } from './connection.ts'
import { note } from './output.ts'
import { readSettings } from './served-project.ts'
import { shellQuote } from './shell.ts'

export type Variables = Record<string, string | undefined>

/** What the SDK finds the platform by; nothing where there is none, and that is said. */
export function platformVariables(flags: Target, root: string): Variables {
  try {
    const workspace = flags.workspace ?? readSettings(root).workspace
    const connection = connectionFor({ 'data-dir': flags['data-dir'], workspace })
    return {
      BL_API_URL: connection.apiUrl,
      BL_RUN_URL: connection.apiUrl.replace(/\/v0$/, ''),
      BL_WORKSPACE: connection.workspace,
      BL_API_KEY: connection.apiKey,
      BL_DISABLE_H2: '1',
    }
  } catch (error) {
    if (!(error instanceof CommandError)) throw error
    note(`without a platform (${error.message}): BL_API_URL and the like are as they were`)
    return {}
  }
}

/** `node` and `bun` for scripts that ask for them, where this machine has none: the executable is one. */
export class StandInPrograms implements Disposable {
  readonly #directory: string | null

  constructor() {
    const missing = ['node', 'bun'].filter((name) => Bun.which(name) === null)
    this.#directory = missing.length === 0 ? null : mkdtempSync(join(tmpdir(), 'hutch-serve-'))
    for (const name of missing) {
      const path = join(this.#directory ?? '', name)
      writeFileSync(path, `#!/bin/sh\nBUN_BE_BUN=1 exec ${shellQuote(process.execPath)} "$@"\n`)
      chmodSync(path, 0o755)
    }
  }

  /** The path with them at its end. */
  after(path: string): string {
    return this.#directory === null ? path : `${path}${delimiter}${this.#directory}`
  }

  [Symbol.dispose](): void {
    if (this.#directory !== null) rmSync(this.#directory, { recursive: true, force: true })
  }
}
