import { chunksOf, isComment } from './chunks.ts'
import { relatedTo } from './concepts.ts'
import { eachWord, ownText, stem, wholePrefix } from './words.ts'

/** A place in a file that answers a question, better ones first. */
export interface Found {
  path: string
  startLine: number
  endLine: number
  symbols: string[]
  score: number
}

export interface Question {
  query: string
  /** Only files below one of these, each '' or ending in a slash. */
  directories: string[]
  resultsMax: number
  /** Of one file. */
  perFileMax: number
}

interface IndexedChunk {
  file: IndexedFile
  startLine: number
  endLine: number
  symbols: string[]
  /** Words, weighted. */
  length: number
}

interface IndexedFile {
  path: string
  /** Of its chunks. */
  first: number
  count: number
  bytes: number
  kind: FileKind
}

type FileKind = 'code' | 'test' | 'prose' | 'data'

/** How much more a word says where it stands. */
const weights = { body: 1, comment: 1.5, symbol: 4, name: 4, directory: 2 }
/** What a match in such a file counts, unless the question asks for the kind. */
const kindWeights: Record<FileKind, number> = { code: 1, test: 0.6, prose: 0.75, data: 0.5 }
const wantsTests = /\b(?:tests?|specs?|fixtures?|mocks?)\b/i
const wantsProse = /\b(?:docs?|documentation|readme|changelog|guide)\b/i

const saturation = 1.2
const lengthPart = 0.45
/** Of a word that stands in for the one asked for. */
const relatedWeight = 0.35
const prefixWeight = 0.5
const spellingWeight = 0.4
const wholeWeight = 1.6
/** What the best other chunk of the same file adds. */
const neighbourPart = 0.5
/** What is left of a chunk's score when it has hardly any of the question's words. */
const coverageFloor = 0.4
const alternativesMax = 12
const queryCharsMax = 2000
const queryWordsMax = 48
/** Chunks of removed files are dropped when they are this part of all. */
const deadPartMax = 0.3
/** A posting is 24 bits of chunk and 8 of weight. */
const chunksMax = 2 ** 24 - 1
const weightScale = 4

/**
 * An inverted index over chunks of code, ranked by BM25 over weighted fields, with related words, prefixes and near
 * spellings for words that are not there. It knows words, not meaning: what shares no word and no concept with a question
 * is not found by it.
 */
export class CodeIndex {
  #chunks: (IndexedChunk | null)[] = []
  #files = new Map<string, IndexedFile>()
  /** Most words are in one chunk only: those need no list. */
  #postings = new Map<string, Postings | number>()
  #dead = 0
  #lengthSum = 0
  #bytes = 0

  get files(): number {
    return this.#files.size
  }

  /** Of the indexed texts. */
  get bytes(): number {
    return this.#bytes
  }

  /** Replaces what was known of the file. False when the index is full. */
  add(path: string, text: string): boolean {
    this.remove(path)
    const lines = text.split('\n')
    const pieces = chunksOf(path, lines)
    if (this.#chunks.length + pieces.length > chunksMax) return false
    const file: IndexedFile = {
      path,
      first: this.#chunks.length,
      count: pieces.length,
      bytes: text.length,
      kind: kindOf(path),
    }
    const pathWords = wordsOfPath(path)
    for (const piece of pieces) {
      const words = new Map(pathWords)
      const add = (weight: number) => (word: string) => words.set(word, (words.get(word) ?? 0) + weight)
      for (const symbol of piece.symbols) eachWord(symbol, add(weights.symbol))
      for (let line = piece.startLine; line <= piece.endLine; line++) {
        const content = lines[line - 1]!
        eachWord(content, add(isComment(content.trimStart()) ? weights.comment : weights.body))
      }
      const id = this.#chunks.length
      let length = 0
      for (const [word, weight] of words) {
        length += weight
        const posting = packed(id, weight)
        const postings = this.#postings.get(word)
        if (postings === undefined) this.#postings.set(ownText(word), posting)
        else if (typeof postings === 'number') this.#postings.set(word, new Postings(postings, posting))
        else postings.push(posting)
      }
      this.#lengthSum += length
      const symbols = piece.symbols.map(ownText)
      this.#chunks.push({
        file,
        startLine: piece.startLine,
        endLine: piece.endLine,
        symbols,
        length,
      })
    }
    this.#files.set(path, file)
    this.#bytes += file.bytes
    return true
  }

  remove(path: string): void {
    const file = this.#files.get(path)
    if (!file) return
    this.#files.delete(path)
    this.#bytes -= file.bytes
    for (let id = file.first; id < file.first + file.count; id++) {
      this.#lengthSum -= this.#chunks[id]!.length
      this.#chunks[id] = null
    }
    this.#dead += file.count
    if (this.#dead > 1000 && this.#dead > this.#chunks.length * deadPartMax) this.#compact()
  }

  search({ query, directories, resultsMax, perFileMax }: Question): Found[] {
    const text = query.slice(0, queryCharsMax)
    const asked = questionWords(text)
    const live = this.#chunks.length - this.#dead
    if (live === 0 || asked.size === 0) return []
    const lengthMean = this.#lengthSum / live
    const scores = new Float32Array(this.#chunks.length)
    const covered = new Float32Array(this.#chunks.length)
    const ofWord = new Float32Array(this.#chunks.length)
    let importance = 0
    for (const [word, askedWeight] of asked) {
      const alternatives = this.#alternatives(word)
      if (alternatives.length === 0) {
        // A word that is nowhere cannot tell chunks apart.
        continue
      }
      const touched: number[] = []
      let best = 0
      for (const { postings, weight } of alternatives) {
        const idf = inverseFrequency(postings.count, live)
        const worth = Math.max(0.05, idf) * weight * askedWeight
        best = Math.max(best, worth)
        for (let at = 0; at < postings.count; at++) {
          const posting = postings.at(at)
          const id = posting >>> 8
          const frequency = (posting & 255) / weightScale
          const chunk = this.#chunks[id]
          if (!chunk) continue
          const length = 1 - lengthPart + lengthPart * (chunk.length / lengthMean)
          const score = (worth * frequency * (saturation + 1)) / (frequency + saturation * length)
          const before = ofWord[id]!
          if (before === 0) touched.push(id)
          if (score > before) ofWord[id] = score
        }
      }
      importance += best
      for (const id of touched) {
        scores[id]! += ofWord[id]!
        covered[id]! += Math.min(best, ofWord[id]!)
        ofWord[id] = 0
      }
    }
    return this.#ranked(text, { scores, covered, importance }, { directories, resultsMax, perFileMax })
  }

  #ranked(
    query: string,
    { scores, covered, importance }: { scores: Float32Array; covered: Float32Array; importance: number },
    { directories, resultsMax, perFileMax }: Omit<Question, 'query'>,
  ): Found[] {
    const kinds = { ...kindWeights }
    if (wantsTests.test(query)) kinds.test = 1
    if (wantsProse.test(query)) kinds.prose = 1.2
    const byFile = new Map<IndexedFile, { chunk: IndexedChunk; score: number }[]>()
    for (let id = 0; id < scores.length; id++) {
      const chunk = this.#chunks[id]
      if (!chunk || scores[id] === 0) continue
      const { file } = chunk
      if (directories.length > 0 && !directories.some((directory) => file.path.startsWith(directory)))
        continue
      const coverage = coverageFloor + (1 - coverageFloor) * Math.min(1, covered[id]! / importance)
      const entry = { chunk, score: scores[id]! * coverage * kinds[file.kind] }
      const others = byFile.get(file)
      if (others) others.push(entry)
      else byFile.set(file, [entry])
    }
    const ranked: { chunk: IndexedChunk; score: number }[] = []
    for (const entries of byFile.values()) {
      entries.sort((a, b) => b.score - a.score)
      const second = entries[1]?.score ?? 0
      for (const [index, entry] of entries.slice(0, perFileMax).entries()) {
        ranked.push({ chunk: entry.chunk, score: entry.score + neighbourPart * (index === 0 ? second : 0) })
      }
    }
    ranked.sort((a, b) => b.score - a.score || (a.chunk.file.path < b.chunk.file.path ? -1 : 1))
    const top = ranked[0]?.score ?? 1
    return ranked.slice(0, resultsMax).map(({ chunk, score }) => ({
      path: chunk.file.path,
      startLine: chunk.startLine,
      endLine: chunk.endLine,
      symbols: chunk.symbols,
      score: Math.round((score / top) * 1000) / 1000,
    }))
  }

  /** The word itself and what may stand in for it, with how much each counts. */
  #alternatives(word: string): { postings: Postings; weight: number }[] {
    const exact = this.#postingsOf(word)
    const found: { postings: Postings; weight: number }[] = []
    if (exact) found.push({ postings: exact, weight: 1 })
    if (word.startsWith(wholePrefix)) return found
    for (const related of relatedTo(word)) {
      const postings = this.#postingsOf(related)
      if (postings) found.push({ postings, weight: relatedWeight })
    }
    const near: { postings: Postings; weight: number }[] = []
    for (const other of this.#postings.keys()) {
      if (other === word || other.startsWith(wholePrefix)) continue
      const weight = prefixLikeness(word, other) * prefixWeight
      if (weight > 0) near.push({ postings: this.#postingsOf(other)!, weight })
      else if (!exact && isMisspelling(word, other)) {
        near.push({ postings: this.#postingsOf(other)!, weight: spellingWeight })
      }
    }
    near.sort((a, b) => b.weight * Math.log1p(b.postings.count) - a.weight * Math.log1p(a.postings.count))
    return [...found, ...near.slice(0, alternativesMax)]
  }

  #postingsOf(word: string): Postings | undefined {
    const postings = this.#postings.get(word)
    return typeof postings === 'number' ? new Postings(postings) : postings
  }

  #compact(): void {
    const moved = new Map<number, number>()
    const kept: IndexedChunk[] = []
    for (const [id, chunk] of this.#chunks.entries()) {
      if (!chunk) continue
      if (chunk.file.first === id) chunk.file.first = kept.length
      moved.set(id, kept.length)
      kept.push(chunk)
    }
    for (const [word, postings] of this.#postings) {
      if (typeof postings !== 'number') {
        postings.rename(moved)
        if (postings.count === 0) this.#postings.delete(word)
        continue
      }
      const chunk = moved.get(postings >>> 8)
      if (chunk === undefined) this.#postings.delete(word)
      else this.#postings.set(word, renamed(postings, chunk))
    }
    this.#chunks = kept
    this.#dead = 0
  }
}

function packed(chunk: number, weight: number): number {
  return ((chunk << 8) | Math.min(255, Math.max(1, Math.round(weight * weightScale)))) >>> 0
}

function renamed(posting: number, chunk: number): number {
  return ((chunk << 8) | (posting & 255)) >>> 0
}

function inverseFrequency(count: number, chunks: number): number {
  return Math.log(1 + (Math.max(0, chunks - count) + 0.5) / (count + 0.5))
}

/** Chunks that have a word, in order, each packed with the weight it has there. */
class Postings {
  count: number
  #packed: Uint32Array

  constructor(...postings: number[]) {
    this.count = postings.length
    this.#packed = Uint32Array.from(postings)
  }

  push(posting: number): void {
    if (this.count === this.#packed.length) {
      const larger = new Uint32Array(Math.ceil(this.count * 1.5) + 1)
      larger.set(this.#packed)
      this.#packed = larger
    }
    this.#packed[this.count++] = posting
  }

  at(index: number): number {
    return this.#packed[index]!
  }

  /** Keeps the chunks that have a new number. */
  rename(numbers: ReadonlyMap<number, number>): void {
    let kept = 0
    for (let index = 0; index < this.count; index++) {
      const chunk = numbers.get(this.#packed[index]! >>> 8)
      if (chunk !== undefined) this.#packed[kept++] = renamed(this.#packed[index]!, chunk)
    }
    this.count = kept
    if (kept < this.#packed.length / 4) this.#packed = this.#packed.slice(0, Math.max(2, kept))
  }
}

/** Words of a question, with what each counts: an identifier as such counts more than its parts. */
function questionWords(query: string): Map<string, number> {
  const words = new Map<string, number>()
  eachWord(query, (word) => {
    if (words.size < queryWordsMax)
      words.set(word, word.startsWith(wholePrefix) ? wholeWeight : weightOf(word))
  })
  return words
}

/** Words with which people ask for code, whatever it does. */
const filler = new Set(
  [
    ...[
      'code',
      'function',
      'method',
      'class',
      'file',
      'module',
      'implement',
      'implementation',
      'logic',
      'handle',
    ],
    ...[
      'define',
      'definition',
      'place',
      'part',
      'thing',
      'work',
      'happen',
      'use',
      'used',
      'make',
      'way',
      'show',
      'find',
    ],
    ...[
      'look',
      'want',
      'need',
      'please',
      'codebase',
      'project',
      'repository',
      'snippet',
      'value',
      'call',
      'given',
    ],
  ].map(stem),
)

function weightOf(word: string): number {
  return filler.has(word) ? 0.25 : 1
}

function wordsOfPath(path: string): Map<string, number> {
  const words = new Map<string, number>()
  const parts = path.split('/')
  for (const [index, part] of parts.entries()) {
    const weight = index === parts.length - 1 ? weights.name : weights.directory
    eachWord(part.replace(/\.[^.]*$/, ''), (word) => words.set(word, Math.max(weight, words.get(word) ?? 0)))
  }
  return words
}

/** `auth` and `authent`, `config` and `configur`: how much of the longer the shorter is. 0 for what only begins alike. */
function prefixLikeness(a: string, b: string): number {
  const [short, long] = a.length < b.length ? [a, b] : [b, a]
  if (short.length < 4 || !long.startsWith(short)) return 0
  const likeness = short.length / long.length
  return likeness < 0.45 ? 0 : likeness
}

/** One letter too many, too few, wrong or swapped, in a word long enough for that to be chance. */
function isMisspelling(a: string, b: string): boolean {
  if (a.length < 5 || Math.abs(a.length - b.length) > 1 || a[0] !== b[0]) return false
  let start = 0
  while (start < a.length && a[start] === b[start]) start++
  let end = 0
  while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++
  const [left, right] = [a.length - start - end, b.length - start - end]
  if (left <= 1 && right <= 1) return true
  return left === 2 && right === 2 && a[start] === b[start + 1] && a[start + 1] === b[start]
}

function kindOf(path: string): FileKind {
  if (
    /(?:^|\/)(?:tests?|__tests__|specs?|e2e|fixtures?|testdata)\/|[._-](?:test|spec)\.[^/]+$|(?:^|\/)test_[^/]+$|_test\.[^/]+$/i.test(
      path,
    )
  )
    return 'test'
  if (/\.(?:md|mdx|markdown|rst|txt|adoc)$/i.test(path)) return 'prose'
  if (
    /\.(?:json|jsonc|ya?ml|toml|lock|csv|tsv|xml|svg|html?|css|scss|less|ini|env|properties|d\.ts|d\.mts|d\.cts)$/i.test(
      path,
    )
  )
    return 'data'
  return 'code'
}
