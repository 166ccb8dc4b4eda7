import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { compileGlobs, compileIgnored, compileLinePattern, Matcher, PatternError } from './index.ts'

const regex = (pattern: string, ignoreCase = false) =>
  compileLinePattern(pattern, { syntax: 'regex', ignoreCase })
const matchOf = (pattern: string, text: string, ignoreCase = false) => {
  const bytes = new TextEncoder().encode(text)
  const found = new Matcher(regex(pattern, ignoreCase).program).find(bytes)
  return found && new TextDecoder().decode(bytes.subarray(found.start, found.end))
}
const messageOf = (pattern: string) => {
  try {
    regex(pattern)
    return ''
  } catch (error) {
    if (error instanceof PatternError) return error.message
    throw error
  }
}

/** Patterns that mean the same to JavaScript, with its flags `u` and `v` off. */
const atom = fc.oneof(
  fc.constantFrom(
    'a',
    'b',
    'c',
    'A',
    '_',
    ' ',
    '7',
    '.',
    '\\d',
    '\\w',
    '\\W',
    '[ab]',
    '[^a]',
    '[a-c_]',
    '\\.',
    '-',
  ),
  fc.constantFrom('^', '$', '\\b', '\\B'),
)
const pattern = fc.letrec<{ choice: string; sequence: string; piece: string }>((tie) => ({
  choice: fc.array(tie('sequence'), { minLength: 1, maxLength: 3 }).map((items) => items.join('|')),
  sequence: fc.array(tie('piece'), { maxLength: 4 }).map((items) => items.join('')),
  piece: fc.oneof(
    { maxDepth: 3 },
    atom,
    fc
      .tuple(
        tie('choice'),
        fc.constantFrom('', '*', '+', '?', '*?', '+?', '??', '{2}', '{1,3}', '{0,2}?', '{1,}'),
      )
      .map(([inside, times]) => `(?:${inside})${times}`),
  ),
})).choice
const line = fc.string({
  unit: fc.constantFrom('a', 'b', 'c', 'A', 'B', '_', ' ', '7', '.', '-'),
  maxLength: 12,
})

describe('regular expressions', () => {
  test('find in a line what JavaScript finds there', () => {
    fc.assert(
      fc.property(pattern, line, fc.boolean(), (source, text, ignoreCase) => {
        fc.pre(source !== '')
        const expected = new RegExp(source, ignoreCase ? 'i' : '').exec(text)
        const found = new Matcher(regex(source, ignoreCase).program).find(new TextEncoder().encode(text))
        expect(found === null).toBe(expected === null)
        if (found && expected) expect(found.start).toBe(expected.index)
        // JavaScript lets a loop end with an empty round where others stop before it.
        if (found && expected && !/[*+}?]\)|\|\)|\(\?:\)|\(\?:\||\|\||[$^bB]/.test(source)) {
          expect(found.end).toBe(expected.index + expected[0].length)
        }
      }),
      { numRuns: 2000 },
    )
  })

  test('every match contains one of the literals that are asked for first', () => {
    fc.assert(
      fc.property(pattern, line, fc.boolean(), (source, text, ignoreCase) => {
        fc.pre(source !== '')
        const { program, literals } = regex(source, ignoreCase)
        const bytes = new TextEncoder().encode(text)
        const found = new Matcher(program).find(bytes)
        if (!found || literals.length === 0) return
        const inside = bytes.subarray(found.start, found.end)
        const contains = literals.some(({ bytes: wanted, masks }) =>
          [...inside.keys()].some((at) =>
            wanted.every((byte, i) => ((inside[at + i] ?? 0) | (masks[i] ?? 0)) === byte),
          ),
        )
        expect(contains).toBe(true)
      }),
      { numRuns: 2000 },
    )
  })

  test('know Unicode', () => {
    expect(matchOf('gr.n', 'das grün')).toBe('grün')
    expect(matchOf('^.$', '😀')).toBe('😀')
    expect(matchOf('[ä-ü]+', 'aäöüz')).toBe('äöü')
    expect(matchOf('[^a]+', 'aß😀a')).toBe('ß😀')
    expect(matchOf('STRÄNG', 'sträng', true)).toBe('sträng')
    expect(matchOf('\\p{Greek}+', 'abc λόγος')).toBe('λόγος')
    expect(matchOf('\\p{Lu}\\P{L}', 'aB1')).toBe('B1')
    expect(matchOf('\\x{1F600}|\\u00e4', 'ä')).toBe('ä')
    expect(matchOf('a\\sb', 'a\u2003b')).toBe('a\u2003b')
  })

  test('know the usual ways to write things', () => {
    expect(matchOf('(?i)todo', 'a ToDo')).toBe('ToDo')
    expect(matchOf('(?i:a)b', 'AB Ab')).toBe('Ab')
    expect(matchOf('a(?i)b|c', 'C')).toBe('C')
    expect(matchOf('(?P<name>x+)(?<other>y)', 'xxy')).toBe('xxy')
    expect(matchOf('[[:alpha:]_]+', '12ab_3')).toBe('ab_')
    expect(matchOf('[]a]+', ']a')).toBe(']a')
    expect(matchOf('[a-]+', 'a-')).toBe('a-')
    expect(matchOf('{x}', '{x}')).toBe('{x}')
    expect(matchOf('\\Afoo\\z', 'foo')).toBe('foo')
    expect(matchOf('a{2,3}?', 'aaa')).toBe('aa')
  })

  test('that mean nothing are refused with what is wrong and where', () => {
    expect(messageOf('a(b')).toBe('a group is not closed (at character 2)')
    expect(messageOf('a)')).toBe('a ) closes no group (at character 2)')
    expect(messageOf('[a')).toBe('a class is not closed (at character 1)')
    expect(messageOf('*a')).toBe('* repeats nothing (at character 1)')
    expect(messageOf('(?=a)')).toContain('looking ahead or behind is not supported')
    expect(messageOf('(?<!a)')).toContain('looking ahead or behind is not supported')
    expect(messageOf('(a)\\1')).toContain('backreferences are not supported')
    expect(messageOf('\\q')).toContain('\\q is no escape')
    expect(messageOf('a\\nb')).toContain('a line end cannot be matched')
    expect(messageOf('[z-a]')).toContain('a range counts down')
    expect(messageOf('a{3,2}')).toContain('a repetition counts down')
    expect(messageOf('a{2000}')).toContain('counts higher than 1000')
    expect(messageOf('(a{1000}){1000}')).toBe('the pattern is too large')
    expect(messageOf('\\p{Nonsense}')).toContain('is no property')
    expect(messageOf('('.repeat(1000))).toContain('nested deeper')
    expect(messageOf('')).toBe('the pattern is empty')
  })

  test('that take nothing are repeated at once, and those that take long are refused', () => {
    const startedAt = performance.now()
    expect(matchOf('a(?:){1000}{1000}{1000}{1000}b', 'xaby')).toBe('ab')
    const properties = ['L', 'M', 'N', 'P', 'S', 'Z', 'C'].flatMap((one) => [one, `^${one}`])
    const named = [...properties, 'Greek', 'Latin', 'Thai'].map((name) => `\\p{${name}}`).join('')
    expect(messageOf(named)).toContain('more than 16 different properties')
    expect(regex('[\\x{0}-\\x{fff}]'.repeat(100), true).program.code.length).toBeGreaterThan(100)
    expect(performance.now() - startedAt).toBeLessThan(5_000)
  })

  test('know every property as JavaScript does', () => {
    for (const name of ['Lu', 'Greek', 'Any', 'Emoji', 'Script=Cherokee']) {
      const { program } = regex(`^\\p{${name}}$`)
      const known = new RegExp(`^\\p{${name === 'Greek' ? 'Script=Greek' : name}}$`, 'u')
      for (let codePoint = 0; codePoint <= 0x10ffff; codePoint += 997) {
        if (codePoint >= 0xd800 && codePoint <= 0xdfff) continue
        const text = String.fromCodePoint(codePoint)
        if (text === '\n') continue
        if (new Matcher(program).test(text) !== known.test(text)) throw new Error(`${name} ${codePoint}`)
      }
    }
  })

  test('any text is either a pattern or refused as one', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (source) => void messageOf(source)),
      { numRuns: 2000 },
    )
  })

  test('a pattern made to explode is matched in linear time', () => {
    const text = new TextEncoder().encode('a'.repeat(5000))
    expect(new Matcher(regex('(a*)*(a|aa)+$b').program).find(text)).toBeNull()
  })
})

describe('texts', () => {
  test('are themselves, whatever characters they are of', () => {
    fc.assert(
      fc.property(fc.string({ minLength: 1 }), fc.string(), fc.string(), (text, before, after) => {
        fc.pre(!/[\n\0]/.test(text))
        const { program, literals, exact } = compileLinePattern(text, {
          syntax: 'literal',
          ignoreCase: false,
        })
        expect(exact).toBe(true)
        expect(literals.map(({ bytes }) => new TextDecoder().decode(bytes))).toEqual([text.toWellFormed()])
        expect(new Matcher(program).test(before + text.toWellFormed() + after)).toBe(true)
      }),
    )
  })

  test('of other letters than ASCII are found in either case', () => {
    const { program, exact } = compileLinePattern('ÄRGER', { syntax: 'literal', ignoreCase: true })
    expect(exact).toBe(false)
    expect(new Matcher(program).test('viel ärger')).toBe(true)
  })
})

describe('globs', () => {
  const fits = (glob: string, path: string) => {
    const program = compileGlobs([glob])
    return program !== null && new Matcher(program).test(path)
  }

  test('without a slash are about the last name, at any depth', () => {
    expect(fits('*.go', 'a/b/c.go')).toBe(true)
    expect(fits('*.go', 'c.go')).toBe(true)
    expect(fits('*.go', 'c.go/d')).toBe(false)
    expect(fits('node_modules', 'a/node_modules')).toBe(true)
    expect(fits('node_modules/', 'a/node_modules')).toBe(true)
    expect(fits('?.[jt]s', 'src/a.ts')).toBe(true)
    expect(fits('[!a]', 'b')).toBe(true)
    expect(fits('*', 'new\nline')).toBe(true)
  })

  test('with a slash are about the whole path', () => {
    expect(fits('src/*.ts', 'src/a.ts')).toBe(true)
    expect(fits('src/*.ts', 'src/a/b.ts')).toBe(false)
    expect(fits('/a.ts', 'b/a.ts')).toBe(false)
    expect(fits('src/**/*.ts', 'src/b.ts')).toBe(true)
    expect(fits('src/**/*.ts', 'src/a/b/c.ts')).toBe(true)
    expect(fits('src/**', 'src/a/b')).toBe(true)
    expect(fits('**/test', 'test')).toBe(true)
    expect(fits('a/{b,c*}/d', 'a/cc/d')).toBe(true)
  })

  test('that do not end are refused', () => {
    expect(() => fits('[a', 'a')).toThrow(PatternError)
    expect(() => fits('{a,b', 'a')).toThrow(PatternError)
    expect(() => fits('a\\', 'a')).toThrow(PatternError)
    expect(() => fits('', '')).toThrow(PatternError)
    expect(() => fits('a[/]b', 'a/b')).toThrow(PatternError)
  })

  test('any text is either a glob or refused as one', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (glob) => {
        try {
          compileGlobs([glob])
        } catch (error) {
          expect(error).toBeInstanceOf(PatternError)
        }
      }),
    )
  })

  test('what is ignored contains a text or fits a glob', () => {
    const program = compileIgnored(['/cache/', '*.log', '/a/*.tmp', 'b/*.txt'])
    const ignored = (path: string) => program !== null && new Matcher(program).test(path)
    expect(ignored('/a/cache/b')).toBe(true)
    expect(ignored('/a/b.log')).toBe(true)
    expect(ignored('/a/c.tmp')).toBe(true)
    expect(ignored('/b/a/c.tmp')).toBe(false)
    expect(ignored('/a/b/c.txt')).toBe(true)
    expect(ignored('/a/cached')).toBe(false)
  })
})
