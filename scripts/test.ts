import { build } from './build.ts'
import { addCounts, type Counts, countsLine, Failures, readSummary } from './test-summary.ts'

/**
 * Runs every test and prints, last, what failed once more and one line `N passed, N failed, N skipped`: of a long output
 * often only the end is kept. Arguments go to `bun test` in place of the folders. A run without a summary (a crash, a `process.exit` in a test) counts as a failure.
 */

const testTimeoutMs = 120_000
const outputEndCharsMax = 64 * 1024
const cutOffLinesMax = 100
const only = process.argv.slice(2)
const failed: string[] = []

let total: Counts = { passed: 0, failed: 0, skipped: 0 }
try {
  await build()
  if (only.length > 0) total = await run(only)
  else {
    total = addCounts(total, await run(['./src', './plugins']))
    total = addCounts(total, await run(['./scripts/']))
  }
} catch (error) {
  failed.push(String(error instanceof Error ? error.message : error))
  total = addCounts(total, { passed: 0, failed: 1, skipped: 0 })
}
if (failed.length > 0) console.log(`\nWhat failed:\n\n${failed.join('\n\n')}\n`)
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
  const failures = new Failures()
  const decoder = new TextDecoder()
  for await (const chunk of child.stderr) {
    process.stderr.write(chunk)
    const text = decoder.decode(chunk, { stream: true })
    failures.push(text)
    // The summary stands at the end.
    output = (output + text).slice(-outputEndCharsMax)
  }
  const code = await child.exited
  failed.push(...failures.texts)
  const counts = readSummary(output)
  if (counts === null) {
    const end = output.split('\n').slice(-cutOffLinesMax).join('\n').trim()
    failed.push(`${end}\nbun test ${args.join(' ')} ended with ${ending(child, code)} and without a summary`)
    return { passed: 0, failed: 1, skipped: 0 }
  }
  if (code !== 0 && counts.failed === 0) {
    failed.push(`bun test ${args.join(' ')} ended with ${ending(child, code)} though no test failed`)
    return { ...counts, failed: 1 }
  }
  return counts
}

function ending({ signalCode }: { signalCode: unknown }, code: number): string {
  return signalCode ? String(signalCode) : `exit code ${code}`
}
