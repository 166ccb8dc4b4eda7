const pollMs = 10

type Holds<Result> = () => Promise<Result> | Result

/**
 * For tests: looks until `holds` answers something true, and answers that. Fails, after a generous while, with `what` or,
 * where that says nothing more, with the text of `holds`.
 */
export function eventually<Result>(holds: Holds<Result>): Promise<NonNullable<Result>>
export function eventually<Result>(
  what: string,
  holds: Holds<Result>,
  waitMs?: number,
): Promise<NonNullable<Result>>
export async function eventually<Result>(
  ...[first, second, waitMs = 60_000]: [Holds<Result>] | [string, Holds<Result>, number?]
): Promise<NonNullable<Result>> {
  const holds = typeof first === 'string' ? second! : first
  const deadline = performance.now() + waitMs
  for (;;) {
    const result = await holds()
    if (result) return result
    if (performance.now() > deadline) throw new Error(`never happened: ${first}`)
    await Bun.sleep(pollMs)
  }
}
