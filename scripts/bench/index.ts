import { readdirSync } from 'node:fs'
import { availableParallelism, cpus, loadavg, release } from 'node:os'
import { join } from 'node:path'
import { table } from '../../src/cli/output.ts'
import { buildIfStale } from '../build.ts'
import type { Row } from './measure.ts'

/**
 * `npm run bench [-- NAME...]`: runs each bench file, and prints the rows its default
 * export answers; one without such an export prints for itself.
 * Writes nothing: docs/benchmarks.md is edited by hand, with the machine named.
 */

const helpers = new Set([
  ...['index.ts', 'measure.ts', 'platform-client.ts', 'hosting-client.ts', 'sandbox.ts'],
  'executions-client.ts',
])
const available = readdirSync(import.meta.dir)
  .filter((file) => file.endsWith('.ts') && !helpers.has(file))
  .map((file) => file.replace(/\.ts$/, ''))
  .sort()

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !available.includes(name))
if (unknown.length > 0) {
  console.error(`no bench named ${unknown.join(', ')}; there are ${available.join(', ')}`)
  process.exit(2)
}

await buildIfStale()
console.log(
  `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${availableParallelism()} processors, kernel ${release()}, ` +
    `load ${loadavg()[0]?.toFixed(1)}`,
)
let failed = 0
for (const name of asked.length > 0 ? asked : available) {
  console.log(`\n${name}`)
  try {
    const file = join(import.meta.dir, `${name}.ts`)
    if (!/^export default /m.test(await Bun.file(file).text())) {
      // A bench that prints for itself.
      const child = Bun.spawn([process.execPath, file], { stdio: ['ignore', 'inherit', 'inherit'] })
      if ((await child.exited) !== 0) failed++
      continue
    }
    const bench = (await import(file)) as { default: () => Promise<Row[]> }
    const rows = await bench.default()
    console.log(
      table(
        ['WHAT', 'MEASURED', 'BASELINE, SAME RUN', 'TO REACH'],
        rows.map((row) => [row.what, row.value, row.baseline, row.reach]),
      ),
    )
  } catch (error) {
    failed++
    console.error(error instanceof Error ? error.message : error)
  }
}
process.exit(failed === 0 ? 0 : 1)
