import { BoundedMap } from '../lib/bounded-map.ts'
import type { Dialer } from '../lib/dialer.ts'
import type { Logger } from '../lib/log.ts'
import type { Guest } from '../spec/guest.ts'
import {
  type CodegenProvider,
  configuredProvider,
  notConfigured,
  type ProviderSettings,
} from './providers.ts'
import { type RankedText, type RankQuestion, rankFiles } from './rank.ts'
import { CodebaseSearch } from './search/codebase.ts'

export interface CodegenOptions {
  dialer: Dialer
  log: Logger
}

/** A merge that was made, for when it turns out to be wrong. */
export interface Edited {
  before: string
  after: string
  edit: string
  instructions?: string | undefined
}

/** Of one machine. */
const editsMax = 32
const editCharsMax = 1024 * 1024

/** What tools for generated code need besides files: an account that merges and ranks, a memory of merges, a search. */
export class Codegen {
  readonly #options: CodegenOptions
  readonly search: CodebaseSearch
  readonly #edits = new WeakMap<Guest, BoundedMap<string, Edited>>()

  constructor(options: CodegenOptions) {
    this.#options = options
    this.search = new CodebaseSearch(options)
  }

  isConfigured(settings: ProviderSettings): boolean {
    return this.#provider(settings) !== null
  }

  /** @throws bad_request that names the variables, when no key is set in this environment */
  provider(settings: ProviderSettings): CodegenProvider {
    const provider = this.#provider(settings)
    if (!provider) throw notConfigured()
    return provider
  }

  remember(guest: Guest, path: string, edited: Edited): void {
    const edits = this.#edits.get(guest) ?? new BoundedMap<string, Edited>(editsMax)
    this.#edits.set(guest, edits)
    const chars = edited.before.length + edited.after.length + edited.edit.length
    if (chars <= editCharsMax) edits.set(path, edited)
    else edits.delete(path)
  }

  /** @throws bad_request without a key, not_found, unprocessable when the provider failed */
  rank(guest: Guest, settings: ProviderSettings, question: RankQuestion): Promise<RankedText[]> {
    return rankFiles(guest, this.provider(settings), this.search, question)
  }

  /** The last merge into this file, as long as this process and the machine live. */
  lastEdit(guest: Guest, path: string): Edited | null {
    return this.#edits.get(guest)?.get(path) ?? null
  }

  close(): void {
    this.search.close()
  }

  #provider(settings: ProviderSettings): CodegenProvider | null {
    return configuredProvider(settings, this.#options.dialer)
  }
}
