import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { FuzzyQuery } from './fuzzy.ts'

const ranked = (query: string, ...paths: string[]) => {
  const fuzzy = new FuzzyQuery(query)
  return paths
    .map((path) => ({ path, score: fuzzy.score(path) }))
    .filter(({ score }) => score !== null)
    .sort((a, b) => (b.score ?? 0) - (a.score ?? 0))
    .map(({ path }) => path)
}

test('a path is found by letters in their order', () => {
  expect(ranked('mnts', 'src/main.ts', 'src/tsnm')).toEqual(['src/main.ts'])
  expect(ranked('xyz', 'src/main.ts')).toEqual([])
})

test('the name counts for more than its directories, and starts of words for more than what is within', () => {
  expect(ranked('main', 'main/other.ts', 'src/main.ts', 'src/domain.ts')[0]).toBe('src/main.ts')
  expect(ranked('fs', 'src/offset.ts', 'src/file-system.ts')[0]).toBe('src/file-system.ts')
  expect(ranked('index', 'a/index.ts', 'a/reindexed.ts')[0]).toBe('a/index.ts')
  expect(ranked('uc', 'lucky.ts', 'UserController.java')[0]).toBe('UserController.java')
})

test('words are found each, and capitals are meant', () => {
  expect(ranked('test user', 'src/user.test.ts', 'src/user.ts')).toEqual(['src/user.test.ts'])
  expect(ranked('README', 'readme.md', 'README.md')).toEqual(['README.md'])
  expect(ranked('', 'a')).toEqual(['a'])
})

test('whatever letters are taken out of a path find it', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', minLength: 1 }), fc.func(fc.boolean()), (path, keep) => {
      const query = [...path].filter((letter, index) => keep(index) && letter.trim() !== '').join('')
      expect(new FuzzyQuery(query).score(path)).not.toBeNull()
    }),
  )
})
