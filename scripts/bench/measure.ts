/** What a bench reports: one row a figure, with the baseline of the same run and what is to be reached. */
export interface Row {
  what: string
  value: string
  baseline: string
  reach: string
}

export interface Sample {
  median: number
  p99: number
  count: number
}

export const samplesMin = 30

export function sample(values: number[]): Sample {
  if (values.length < samplesMin)
    throw new Error(`${values.length} samples are too few; ${samplesMin} are needed`)
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!
  return { median: at(0.5), p99: at(0.99), count: sorted.length }
}

export function milliseconds({ median, p99, count }: Sample): string {
  return `${median.toFixed(2)} ms (p99 ${p99.toFixed(1)}, n ${count})`
}

/** Times `work` once for warming up, then `count` times. */
export async function times(count: number, work: (index: number) => Promise<unknown>): Promise<Sample> {
  await work(-1)
  const values: number[] = []
  for (let index = 0; index < count; index++) {
    const startedAt = performance.now()
    await work(index)
    values.push(performance.now() - startedAt)
  }
  return sample(values)
}

const turnsOf = 10

/**
 * Times two kinds of work, a few of the one and a few of the other in turns, so that whatever else the machine does
 * meets both alike.
 */
export async function timesInTurns(
  count: number,
  work: (index: number) => Promise<unknown>,
  baseline: (index: number) => Promise<unknown>,
): Promise<{ measured: Sample; bare: Sample }> {
  const values: [number[], number[]] = [[], []]
  for (let turn = -1; turn * turnsOf < count; turn++) {
    for (const [at, one] of [work, baseline].entries()) {
      for (let index = turn * turnsOf; index < (turn + 1) * turnsOf; index++) {
        const startedAt = performance.now()
        await one(index)
        // The first turn warms up.
        if (turn >= 0) values[at]?.push(performance.now() - startedAt)
      }
    }
  }
  return { measured: sample(values[0]), bare: sample(values[1]) }
}

export async function run(argv: string[]): Promise<void> {
  const child = Bun.spawn(argv, { stdio: ['ignore', 'ignore', 'pipe'] })
  const [stderr, code] = await Promise.all([new Response(child.stderr).text(), child.exited])
  if (code !== 0) throw new Error(`${argv.join(' ')} exited with ${code}: ${stderr.trim()}`)
}
