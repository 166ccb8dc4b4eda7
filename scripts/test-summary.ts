export interface Counts {
  passed: number
  failed: number
  skipped: number
}

/** The counts in the last summary block of `bun test`, or null when there is none. */
export function readSummary(output: string): Counts | null {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are taken out
  const lines = output.replace(/\x1b\[[0-9;]*m/g, '').split('\n')
  let end = lines.findLastIndex((line) => /^Ran \d+ tests? across \d+ files?\./.test(line))
  if (end === -1) return null
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 }
  let found = false
  let errors = 0
  while (--end >= 0) {
    const line = lines[end]!
    const match =
      /^\s*(\d+) (pass|fail|skip|todo|error|errors|filtered out|expect\(\) calls|snapshots.*)$/.exec(line)
    if (!match) {
      if (line.trim() === '' && !found) continue
      break
    }
    const count = Number(match[1])
    if (match[2] === 'pass') {
      counts.passed += count
      found = true
    } else if (match[2] === 'fail') counts.failed += count
    else if (match[2]!.startsWith('error')) errors += count
    else if (match[2] === 'skip' || match[2] === 'todo') counts.skipped += count
  }
  // An error outside a test is usually counted among the failures as well, but never missed.
  counts.failed = Math.max(counts.failed, errors)
  return found ? counts : null
}

export function addCounts(a: Counts, b: Counts): Counts {
  return { passed: a.passed + b.passed, failed: a.failed + b.failed, skipped: a.skipped + b.skipped }
}

export function countsLine(counts: Counts): string {
  return `${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`
}
