import { describe, expect, test } from 'bun:test'
import { chunksOf } from './chunks.ts'
import { CodeIndex } from './code-index.ts'
import { eachWord, stem } from './words.ts'

describe('words', () => {
  const wordsOf = (text: string) => {
    const words: string[] = []
    eachWord(text, (word) => words.push(word))
    return words
  }

  test('identifiers are taken apart and kept whole', () => {
    expect(wordsOf('parseHTTPHeader')).toEqual(['pars', 'http', 'header', '=parsehttpheader'].map(same))
    expect(wordsOf('max_retry_count')).toEqual([stem('max'), stem('retry'), stem('count'), '=maxretrycount'])
    expect(wordsOf('const x = 1')).toEqual([])
    expect(wordsOf('Größe der Datei')).toEqual(['größe', 'der', 'datei'].map((word) => stem(word)))
  })

  test('forms of a word meet', () => {
    for (const [one, ...others] of [
      ['validate', 'validation', 'validator', 'validated', 'validating', 'validates'],
      ['connect', 'connection', 'connections', 'connected', 'connecting'],
      ['retry', 'retries', 'retrying', 'retried'],
      ['run', 'running', 'runs', 'runner'],
      ['cache', 'caches', 'cached', 'caching'],
      ['class', 'classes'],
    ] as [string, ...string[]][]) {
      for (const other of others) expect([other, stem(other)]).toEqual([other, stem(one)])
    }
    expect(stem('status')).not.toBe(stem('stat'))
  })

  function same(word: string): string {
    return word.startsWith('=') ? word : stem(word === 'pars' ? 'parse' : word)
  }
})

describe('chunks', () => {
  const cut = (path: string, text: string) =>
    chunksOf(path, text.split('\n')).map(({ startLine, endLine, symbols }) => [
      startLine,
      endLine,
      ...symbols,
    ])

  test('code is cut where definitions begin, comments and decorators with what they are about', () => {
    const body = '  one()\n  two()\n  three()\n  four()\n'
    const text = `import x from 'x'\nimport y from 'y'\nimport z from 'z'\nimport v from 'v'\nimport w from 'w'\n\n// Adds.\nexport function add(a, b) {\n${body}}\n\n@decorated\nclass Sum {\n  total() {\n  ${body}  }\n\n  /** Empties. */\n  reset() {\n  ${body}  }\n}\n`
    expect(cut('a.ts', text)).toEqual([
      [1, 6],
      [7, 14, 'add'],
      [15, 23, 'Sum', 'total'],
      [24, 32, 'Sum', 'reset'],
    ])
  })

  test.each([
    ['a.py', 'class Store:\n    def read(self):\n        pass\n', ['Store', 'read']],
    ['a.go', 'func (s *Store) Read(key string) error {\n\treturn nil\n}\n', ['Read']],
    ['a.rs', 'pub(crate) async fn read<T>(key: T) -> Result<()> {\n}\n', ['read']],
    ['a.c', 'static int read_all(int fd, char *to) {\n  return 0;\n}\n', ['read_all']],
    ['a.java', 'public final class Store {\n  public String read(String key) {\n  }\n}\n', ['Store', 'read']],
    ['a.rb', 'class Store\n  def self.read(key)\n  end\nend\n', ['Store', 'read']],
    ['a.sql', 'CREATE TABLE accounts (\n  id int\n);\n', ['accounts']],
    ['a.sh', 'deploy() {\n  echo hi\n}\n', ['deploy']],
    ['a.js', 'exports.read = async (key) => {\n}\nconst table = {\n}\n', ['read', 'table']],
    ['a.md', '# Store\n\ntext\n\n## Reading\n\ntext\n', ['Store', 'Reading']],
  ])('%s: names are found', (path, text, names) => {
    const found = chunksOf(path, text.split('\n')).flatMap(({ symbols }) => symbols)
    expect([...new Set(found)]).toEqual(names)
  })

  test('a long body is cut at empty lines, and every line is in one chunk', () => {
    const lines = Array.from({ length: 400 }, (_, at) => (at % 30 === 29 ? '' : `  call${at}()`))
    const chunks = chunksOf('a.js', ['function long() {', ...lines, '}'])
    let next = 1
    for (const { startLine, endLine } of chunks) {
      expect(startLine).toBe(next)
      expect(endLine - startLine).toBeLessThan(80)
      next = endLine + 1
    }
    expect(next).toBe(403)
  })

  test('a file that was made to be slow is not', () => {
    const hostile = [
      `${'get '.repeat(60)}(`,
      `${'static '.repeat(40)}x`,
      `${'a,'.repeat(100)}(`,
      `impl${'<'.repeat(290)}`,
      `const a${' '.repeat(280)}:`,
      'x'.repeat(1_000_000),
      `#${' '.repeat(500_000)}`,
    ]
    // Seconds at the least if any of it were quadratic, whenever it is measured.
    let ms = Number.POSITIVE_INFINITY
    for (let attempt = 0; attempt < 5 && ms >= 2000; attempt++) {
      const startedAt = performance.now()
      chunksOf('a.ts', Array(200).fill(hostile).flat().slice(0, 1000))
      chunksOf('a.md', hostile)
      ms = performance.now() - startedAt
    }
    expect(ms).toBeLessThan(2000)
  })
})

describe('an index', () => {
  const ask = (index: CodeIndex, query: string, directories: string[] = []) =>
    index.search({ query, directories, resultsMax: 10, perFileMax: 2 }).map(({ path }) => path)

  test('follows what is added, changed and removed', () => {
    const index = new CodeIndex()
    index.add('/a/login.ts', 'export function signIn(user, password) {\n}\n')
    index.add('/b/cart.ts', 'export function addToCart(item) {\n}\n')
    expect(ask(index, 'how do users sign in')).toEqual(['/a/login.ts'])
    expect(ask(index, 'shopping cart', ['/a/'])).toEqual([])
    index.add('/a/login.ts', 'export function brewCoffee() {\n}\n')
    expect(ask(index, 'sign in password')).toEqual([])
    expect(ask(index, 'coffee')).toEqual(['/a/login.ts'])
    index.remove('/a/login.ts')
    expect(ask(index, 'coffee')).toEqual([])
    expect([index.files, index.bytes]).toEqual([1, 'export function addToCart(item) {\n}\n'.length])
  })

  test('takes related words, beginnings and slips of the finger for what was meant', () => {
    const index = new CodeIndex()
    index.add('/auth.ts', 'export function login(credentials) {\n  return check(credentials)\n}\n')
    index.add('/other.ts', 'export function paint(colour) {\n  return colour\n}\n')
    for (const query of ['authenticate', 'authentication of people', 'credential', 'credentals', 'signin']) {
      expect([query, ask(index, query)[0]]).toEqual([query, '/auth.ts'])
    }
  })

  test('prefers code to its tests and its documentation, unless they are asked for', () => {
    const index = new CodeIndex()
    index.add('/src/limiter.ts', 'export function limitRate(requests) {\n  return requests\n}\n')
    index.add('/src/limiter.test.ts', 'test("limit rate of requests", () => {\n  limitRate(requests)\n})\n')
    index.add('/docs/limiter.md', '# Limit rate\n\nHow to limit the rate of requests\n')
    expect(ask(index, 'limit the rate of requests')[0]).toBe('/src/limiter.ts')
    expect(ask(index, 'tests of the rate limiter')[0]).toBe('/src/limiter.test.ts')
    expect(ask(index, 'documentation of the rate limiter')[0]).toBe('/docs/limiter.md')
  })

  test('is right however often files change', () => {
    const index = new CodeIndex()
    for (let round = 0; round < 40; round++) {
      for (let file = 0; file < 60; file++) {
        index.add(`/f${file}.ts`, `export function thing${file}() {\n  return round${round}word()\n}\n`)
      }
    }
    expect(ask(index, 'thing7')[0]).toBe('/f7.ts')
    expect(ask(index, 'round39word')).toHaveLength(10)
    expect(index.files).toBe(60)
    index.remove('/f7.ts')
    expect(ask(index, 'thing7')).not.toContain('/f7.ts')
  })
})
