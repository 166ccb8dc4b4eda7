export interface SeededChoices {
  readonly seed: number
  /** From 0 to below 1. */
  random(): number
  /** A whole number from 0 to below `count`. */
  below(count: number): number
  oneOf<Item>(items: readonly Item[]): Item | undefined
}

/** The same choices for the same seed: HUTCH_TEST_SEED repeats a run, as far as timing allows. */
export function seededChoices(
  seed = Number(process.env.HUTCH_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31)),
): SeededChoices {
  let state = seed
  const random = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (count: number) => Math.floor(random() * count)
  return { seed, random, below, oneOf: (items) => items[below(items.length)] }
}
