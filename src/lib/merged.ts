/** What several iterables give, as it comes. Ends when all have ended; leaving it leaves them all. */
export async function* merged<Item>(...sources: AsyncIterable<Item>[]): AsyncGenerator<Item> {
  const iterators = sources.map((source) => source[Symbol.asyncIterator]())
  const next = (at: number) => iterators[at]!.next().then((result) => ({ at, result }))
  const waiting = new Map(iterators.map((_, at) => [at, next(at)]))
  try {
    while (waiting.size > 0) {
      const { at, result } = await Promise.race(waiting.values())
      if (result.done) {
        waiting.delete(at)
      } else {
        yield result.value
        waiting.set(at, next(at))
      }
    }
  } finally {
    for (const pending of waiting.values()) pending.catch(() => {})
    // Not waited for: one that waits for its next item would hold the others up.
    for (const iterator of iterators) void iterator.return?.()?.catch(() => {})
  }
}
