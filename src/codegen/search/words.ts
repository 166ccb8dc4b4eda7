/**
 * Words of code and of questions about it. Identifiers are taken apart (`parseHTTPHeader`, `parse_http_header`), and
 * every word is reduced to a stem, so that "validation", "validator" and "validate" meet.
 */

const wordCharsMax = 40
/** Keys, hashes and encoded data are longer than words and say nothing. */
const identifierCharsMax = 80

const identifiers = /[\p{L}_$][\p{L}\p{N}_$]*/gu
const parts = /\p{Lu}+(?=\p{Lu}\p{Ll})|\p{Lu}?\p{Ll}+|\p{Lu}+|\p{Lo}+|\p{N}{2,}/gu

/** Calls `take` with each stem in a text; an identifier of several words also counts as one, in lower case. */
export function eachWord(text: string, take: (word: string) => void): void {
  for (const [identifier] of text.matchAll(identifiers)) {
    if (identifier.length > identifierCharsMax) continue
    const words = identifier.match(parts)
    if (!words) continue
    for (const word of words) {
      if (word.length < 2 || word.length > wordCharsMax) continue
      const lower = word.toLowerCase()
      if (!noise.has(lower)) take(stem(lower))
    }
    const whole = identifier.replace(/[_$]/g, '').toLowerCase()
    if (whole !== words[0]!.toLowerCase() && whole.length <= wordCharsMax) take(wholePrefix + whole)
  }
}

/** Whole identifiers are words of another kind, so that they never meet a stem by chance. */
export const wholePrefix = '='

const known = new Map<string, string>()
const knownMax = 20_000

export function stem(word: string): string {
  const before = known.get(word)
  if (before !== undefined) return before
  const stemmed = reduced(word)
  if (known.size >= knownMax) known.clear()
  known.set(ownText(word), ownText(stemmed))
  return stemmed
}

/** A part of a text keeps all of that text in memory; this one is by itself. */
export function ownText(part: string): string {
  return Buffer.from(part).toString()
}

/** Longest first: only one is taken off, after a plural. */
const suffixes = [
  ...['ization', 'isation', 'ations', 'ation', 'ators', 'ator', 'ating', 'ated', 'ates', 'ate'],
  ...['ments', 'ment', 'ness', 'able', 'ible', 'ity', 'ive', 'izer', 'ized', 'izing', 'ize', 'ise'],
  ...['ions', 'ion', 'ings', 'ing', 'edly', 'ed', 'ers', 'er', 'or', 'ly', 'al'],
]

function reduced(word: string): string {
  if (word.length < 4 || !/^[a-z]+$/.test(word)) return word
  let base = singular(word)
  for (const suffix of suffixes) {
    if (!base.endsWith(suffix)) continue
    const rest = base.slice(0, -suffix.length)
    if (rest.length < 3 || !/[aeiouy]/.test(rest)) continue
    base = undoubled(rest)
    break
  }
  if (base.length > 3 && base.endsWith('e')) base = base.slice(0, -1)
  return base.length > 2 && base.endsWith('y') ? `${base.slice(0, -1)}i` : base
}

function singular(word: string): string {
  if (word.endsWith('ies') && word.length > 4) return `${word.slice(0, -3)}y`
  if (/(?:sses|xes|ches|shes|zes)$/.test(word)) return word.slice(0, -2)
  if (word.endsWith('s') && !/(?:ss|us|is)$/.test(word)) return word.slice(0, -1)
  return word
}

/** `running` is of `run`, `calling` of `call`. */
function undoubled(word: string): string {
  return /([bdfgmnprt])\1$/.test(word) ? word.slice(0, -1) : word
}

/** Words of languages, spoken and programmed, that are everywhere. */
const noise = new Set(
  (
    'the a an of to in on at by for with from into and or not is are was were be been being it its this that these those ' +
    'as if else then than when while do does did done has have had can could should would will may might must so such no ' +
    'yes we you they he she our your their there here which who whom whose what why how where i me my us ' +
    'const let var function return new class import export default async await void null undefined true false none self ' +
    'def fn func pub mut struct impl trait enum interface type extends implements public private protected static final ' +
    'readonly override typeof instanceof throw throws try catch finally switch case break continue package using namespace ' +
    'int float double bool boolean char str string number any unknown object array elif except lambda pass yield end begin'
  ).split(' '),
)
