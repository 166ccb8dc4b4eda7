import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openTestBuilder } from '../../src/builder/test-builder.ts'
import { TestRegistries } from '../../src/builder/test-registries.ts'
import type { TestEntry } from '../../src/images/test-image.ts'
import { hostRegistries } from '../../src/network/index.ts'
import { temporaryDataDir } from '../platform.ts'
import { milliseconds, type Row, run, samplesMin, timesInTurns } from './measure.ts'

const packages = 40
const filesPerPackage = 25
const fileBytes = 4_096

/**
 * A second build, of other source with the dependencies of the first, against an installation of these by npm itself, whose cache has
 * them: what such a build would cost at least if nothing was kept.
 */
export default async function builds(): Promise<Row[]> {
  await using directory = await temporaryDataDir()
  using registries = new TestRegistries()
  const content = 'x'.repeat(fileBytes)
  const dependencies: Record<string, string> = {}
  for (let at = 0; at < packages; at++) {
    const files = Object.fromEntries(
      Array.from({ length: filesPerPackage }, (_, index) => [`lib/file-${index}.js`, content]),
    )
    registries.publish(`package-${at}`, { version: '1.0.0', files: { 'index.js': '', ...files } })
    dependencies[`package-${at}`] = '1.0.0'
  }
  writeFileSync(join(directory.path, '.npmrc'), registries.npmrc)
  const carried = hostRegistries({ env: {}, home: '/', root: directory.path })
  await using site = await openTestBuilder({ carried, builder: { registries: carried.installations } })
  let count = 0
  const project = (scripts: object): TestEntry[] => [
    { path: 'package.json', content: JSON.stringify({ name: 'bench', dependencies, scripts }) },
    { path: 'index.js', content: `console.log(${count++})` },
  ]
  const plain = { start: 'node index.js' }
  const built = { build: 'mkdir dist && cp index.js dist', start: 'node dist/index.js' }
  await site.build(project(plain))
  await site.build(project(built))

  const there = join(directory.path, 'there')
  mkdirSync(there)
  writeFileSync(
    join(there, 'package.json'),
    JSON.stringify({ name: 'bench', version: '1.0.0', dependencies }),
  )
  const install = [
    ...['npm', 'install', '--no-audit', '--no-fund', '--prefix', there],
    ...[`--userconfig=${join(directory.path, '.npmrc')}`, `--cache=${join(directory.path, 'cache')}`],
  ]
  const npm = async () => {
    await run(install)
    rmSync(join(there, 'node_modules'), { recursive: true })
  }
  await npm()
  const rows: Row[] = []
  for (const [what, scripts] of [
    ['second build, dependencies unchanged', plain],
    ['the same, with a build script', built],
  ] as const) {
    const { measured, bare } = await timesInTurns(samplesMin, () => site.build(project(scripts)), npm)
    rows.push({
      what: `${what} (${packages} packages, ${packages * filesPerPackage} files)`,
      value: milliseconds(measured),
      baseline: `${milliseconds(bare)} npm install, cache full`,
      reach: 'under 2 s',
    })
  }
  return rows
}
