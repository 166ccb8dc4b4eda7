import type { MemoryChange } from './index.ts'

/** Changes that a follower may be behind: they are in memory once, however many follow. */
const behindMax = 256

interface Follower {
  readonly unread: MemoryChange[]
  wake: () => void
  isOver: boolean
}

/** Those of one workspace. */
interface Feed {
  readonly followers: Set<Follower>
  readonly over: AbortController
}

type Changes = (workspace: string, signal: AbortSignal) => AsyncIterable<MemoryChange>

/** Whoever follows the changes of a workspace: each change is read once for all of them. */
export class Followers {
  readonly #changes: Changes
  readonly #feeds = new Map<string, Feed>()

  constructor(changes: Changes) {
    this.#changes = changes
  }

  /** From this very call on, until `signal` aborts; ends early for who does not keep up. */
  follow(workspace: string, signal: AbortSignal): AsyncGenerator<MemoryChange> {
    const follower: Follower = { unread: [], wake: () => {}, isOver: false }
    const feed = this.#feeds.get(workspace) ?? this.#begin(workspace)
    feed.followers.add(follower)
    const leave = () => {
      signal.removeEventListener('abort', leave)
      follower.isOver = true
      follower.wake()
      feed.followers.delete(follower)
      if (feed.followers.size === 0) this.#end(workspace, feed)
    }
    signal.addEventListener('abort', leave)
    if (signal.aborted) leave()
    return (async function* () {
      try {
        while (!signal.aborted) {
          const change = follower.unread.shift()
          if (change !== undefined) yield change
          else if (follower.isOver) return
          else {
            const { promise, resolve } = Promise.withResolvers<void>()
            follower.wake = resolve
            await promise
          }
        }
      } finally {
        leave()
      }
    })()
  }

  #begin(workspace: string): Feed {
    const feed: Feed = { followers: new Set(), over: new AbortController() }
    this.#feeds.set(workspace, feed)
    // Watched from here on, whenever the first change comes.
    void this.#tell(workspace, feed, this.#changes(workspace, feed.over.signal))
    return feed
  }

  async #tell(workspace: string, feed: Feed, changes: AsyncIterable<MemoryChange>): Promise<void> {
    try {
      for await (const change of changes) {
        for (const follower of feed.followers) {
          if (follower.unread.length >= behindMax) follower.isOver = true
          if (!follower.isOver) follower.unread.push(change)
          follower.wake()
        }
      }
    } finally {
      this.#end(workspace, feed)
      for (const follower of feed.followers) {
        follower.isOver = true
        follower.wake()
      }
    }
  }

  #end(workspace: string, feed: Feed): void {
    if (this.#feeds.get(workspace) === feed) this.#feeds.delete(workspace)
    feed.over.abort()
  }
}
