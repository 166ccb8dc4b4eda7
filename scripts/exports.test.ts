import { expect, test } from 'bun:test'
import { unusedExports } from './exports.ts'

test('an export that no other file names is told of, and those of the library are not', () => {
  const files = new Map([
    ['src/lib/one.ts', 'export const used = 1\nexport async function forgotten() {}\nexport class Gone {}'],
    ['src/lib/two.ts', "import { used } from './one.ts'\nconst own = used"],
    ['src/index.ts', 'export function createPlatform() {}'],
  ])
  expect(unusedExports(files)).toEqual(['src/lib/one.ts: forgotten', 'src/lib/one.ts: Gone'])
})
