import type { Clock } from '../lib/clock.ts'
import { Journal, removalOf } from '../spec/journal.ts'
import { type BatchStep, pageLimitMax, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'

const noteKind = 'execution_note'
/** In a workspace. */
const notesKeptMax = 20_000
/** Of one execution, that are told. */
const notesToldMax = 1000

interface NoteBody {
  execution: string
  message: string
  tags: string[]
}

export interface ExecutionNote {
  message: string
  tags: string[]
  at: number
}

/** What agents write down beside what they do, also when it is over already. The newest of a workspace are kept. */
export class Notes {
  readonly #store: Store
  readonly #clock: Clock
  readonly #journal: Journal<NoteBody>

  constructor({ store, clock }: { store: Store; clock: Clock }) {
    this.#store = store
    this.#clock = clock
    this.#journal = new Journal({ store, kind: noteKind, entriesMax: notesKeptMax })
  }

  /** Durable once it resolves. */
  async add(
    workspace: string,
    execution: string,
    { message, tags }: { message: string; tags: string[] },
  ): Promise<ExecutionNote> {
    const at = this.#clock.now()
    await this.#store.batch([
      this.#journal.entry(workspace, at, { execution, message, tags }, { execution }),
      inWorkspace(workspace),
    ])
    await this.#journal.added(workspace)
    return { message, tags, at }
  }

  /** The oldest first. */
  async list(workspace: string, execution: string): Promise<ExecutionNote[]> {
    const notes: ExecutionNote[] = []
    let cursor: string | undefined
    while (notes.length < notesToldMax) {
      const page = await this.#journal.page(workspace, {
        where: { execution },
        sort: 'createdAt:asc',
        limit: pageLimitMax,
        ...(cursor ? { cursor } : {}),
      })
      for (const { body, createdAt } of page.data)
        notes.push({ message: body.message, tags: body.tags, at: createdAt })
      if (!page.hasMore) break
      cursor = page.nextCursor
    }
    return notes
  }

  /** Steps that remove all of a workspace. */
  removal(workspace: string): Promise<BatchStep[]> {
    return removalOf(this.#store, [noteKind], workspace)
  }
}
