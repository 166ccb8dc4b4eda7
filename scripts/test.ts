import { build } from './build.ts'
import { addCounts, type Counts, countsLine, readSummary } from './test-summary.ts'

/**
 * Runs every test and prints, last, one line `N passed, N failed, N skipped`. Arguments go to `bun test` in place of
 * the folders. A run without a summary (a crash, a `process.exit` in a test) counts as a failure.
 */

const testTimeoutMs = 30_000
const only = process.argv.slice(2)

let total: Counts = { passed: 0, failed: 0, skipped: 0 }
try {
  await build()
  if (only.length > 0) total = await run(only)
  else {
    total = addCounts(total, await run(['./src', './plugins']))
    total = addCounts(total, await run(['./scripts/']))
  }
} catch (error) {
  console.error(String(error instanceof Error ? error.message : error))
  total = addCounts(total, { passed: 0, failed: 1, skipped: 0 })
}
console.log(countsLine(total))
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1)

async function run(args: string[]): Promise<Counts> {
  const child = Bun.spawn([process.execPath, 'test', `--timeout=${testTimeoutMs}`, ...args], {
    stdin: 'ignore',
    stdout: 'inherit',
    stderr: 'pipe',
    env: { ...process.env, FORCE_COLOR: process.stderr.isTTY ? '1' : '0' },
  })
  let output = ''
  const decoder = new TextDecoder()
  for await (const chunk of child.stderr) {
    process.stderr.write(chunk)
    // The summary stands at the end.
    output = (output + decoder.decode(chunk, { stream: true })).slice(-64 * 1024)
  }
  const code = await child.exited
  const counts = readSummary(output)
  if (counts === null) {
    console.error(`bun test ${args.join(' ')} ended with ${code} and without a summary`)
    return { passed: 0, failed: 1, skipped: 0 }
  }
  if (code !== 0 && counts.failed === 0) {
    console.error(`bun test ${args.join(' ')} ended with ${code} though no test failed`)
    return { ...counts, failed: 1 }
  }
  return counts
}
