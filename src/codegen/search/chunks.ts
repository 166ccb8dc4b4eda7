/** A piece of a file that is found as one: a definition with what belongs to it, a section of prose, or some lines. */
export interface Chunk {
  /** From 1, both included. */
  startLine: number
  endLine: number
  /** What it defines, outermost first; headings of prose. */
  symbols: string[]
}

const chunkLinesMax = 80
/** A smaller piece goes with its neighbour. */
const chunkLinesMin = 6
/** Where nothing tells where one thing ends. */
const windowLines = 40
const symbolsMax = 12
const lineCharsLookedAt = 300

interface Definition {
  line: number
  indent: number
  name: string
}

const heading = /^(#{1,4})\s+(.{1,120})$/
const name = '([\\p{L}_$][\\p{L}\\p{N}_$]*)'
const modifiers =
  '(?:(?:export|default|declare|abstract|async|public|private|protected|internal|static|final|override|open|sealed|data|pub(?:\\([a-z]+\\))?|unsafe|extern|inline|virtual|const|readonly|suspend|local)\\s+)*'

/** Definitions as most languages write them: a word that says so, then the name. */
const defined = new RegExp(
  `^${modifiers}(?:function\\*?|class|interface|type|enum|struct|trait|impl(?:<[^>]*>)?|mod|module|namespace|fn|func(?:\\s*\\([^)]*\\))?|fun|def|sub|record|object|protocol|extension|macro_rules!|macro|contract|event|create\\s+(?:or\\s+replace\\s+)?(?:table|view|function|procedure|index|trigger))\\s+(?:self\\.)?${name}`,
  'iu',
)
/** A function or class that is given a name by assignment; at the margin only. */
const assigned = new RegExp(
  `^${modifiers}(?:const|let|var|val)?\\s*(?:exports\\.|module\\.exports\\.|this\\.)?${name}\\s*(?::[^=]{1,120})?=\\s*(?:async\\b|function\\b|class\\b|\\(|[\\p{L}_$][\\p{L}\\p{N}_$.]*\\s*(?:=>|\\()|\\{|\\[)`,
  'u',
)
/** A method, or a function of C: a name, parameters, and a body that opens on the same line. */
const method = new RegExp(
  `^${modifiers}(?:[\\p{L}_$][\\p{L}\\p{N}_$<>\\[\\],.*&:?]*\\s+[*&]*)*?[#*]?${name}\\s*(?:<[^>]*>)?\\([^;]*$`,
  'u',
)
const notMethods = new Set(
  'if for while switch catch return else do try with function foreach match when until unless elif await yield new throw case and or not in using lock synchronized super assert expect test it describe print'.split(
    ' ',
  ),
)

/** Cuts a file where its definitions (or headings) begin. */
export function chunksOf(path: string, lines: readonly string[]): Chunk[] {
  const prose = /\.(?:md|mdx|markdown|rst|txt|adoc)$/i.test(path)
  const definitions = prose ? headingsOf(lines) : definitionsOf(lines)
  const starts = startsOf(definitions, lines, prose)
  const pieces: Chunk[] = []
  for (const [index, start] of starts.entries()) {
    const end = (starts[index + 1] ?? lines.length + 1) - 1
    for (const [first, last] of cut(start, end, lines))
      pieces.push({ startLine: first, endLine: last, symbols: [] })
  }
  const chunks = joined(pieces, lines)
  nameSymbols(chunks, definitions)
  return chunks
}

function headingsOf(lines: readonly string[]): Definition[] {
  const found: Definition[] = []
  let fenced = false
  for (const [index, line] of lines.entries()) {
    if (/^\s*(?:```|~~~)/.test(line)) fenced = !fenced
    const match = fenced ? null : heading.exec(line.slice(0, lineCharsLookedAt))
    if (match) found.push({ line: index + 1, indent: match[1]!.length - 1, name: match[2]!.trim() })
  }
  return found
}

function definitionsOf(lines: readonly string[]): Definition[] {
  const found: Definition[] = []
  for (const [index, whole] of lines.entries()) {
    const line = whole.slice(0, lineCharsLookedAt)
    const text = line.trimStart()
    if (text === '' || isComment(text)) continue
    const indent = indentOf(line)
    // Deeper than a method of a nested class is a body.
    if (indent > 8) continue
    const match = defined.exec(text) ?? (indent === 0 ? assigned.exec(text) : null) ?? methodAt(text)
    if (match) found.push({ line: index + 1, indent, name: match[1]! })
  }
  return found
}

function methodAt(text: string): RegExpExecArray | null {
  // Calls end their line with more than an opening brace, colon or parameter.
  if (!/(?:\{|:|=>|\(|,|\))\s*$/.test(text) || !text.includes('(') || /^[\])}.]/.test(text)) return null
  const [before = ''] = text.split('(', 1)
  if (/[=.?!"'`]|=>/.test(before) || text.length > 200) return null
  const match = method.exec(text)
  return match && !notMethods.has(match[1]!) && /(?:\{|:|\()\s*$/.test(text) ? match : null
}

function indentOf(line: string): number {
  let columns = 0
  for (const character of line) {
    if (character === ' ') columns++
    else if (character === '\t') columns += 4
    else break
  }
  return columns
}

export function isComment(text: string): boolean {
  return /^(?:\/\/|\/\*|\*|#(?!include|define|if|endif|else|!)|--\s|;;|"""|'''|<!--|%)/.test(text)
}

/** First lines of pieces: 1, and every definition with the comments and decorators right above it. */
function startsOf(definitions: Definition[], lines: readonly string[], prose: boolean): number[] {
  const starts = new Set([1])
  for (const { line } of definitions) {
    let start = line
    while (!prose && start > 1 && belongsBelow(lines[start - 2]!)) start--
    starts.add(start)
  }
  return [...starts].sort((a, b) => a - b)
}

function belongsBelow(line: string): boolean {
  const text = line.trim()
  return text !== '' && (isComment(text) || /^[@[]/.test(text) || text.endsWith('*/'))
}

/** A long piece in parts, broken at an empty line where there is one. */
function* cut(start: number, end: number, lines: readonly string[]): Generator<[number, number]> {
  let first = start
  while (end - first + 1 > chunkLinesMax) {
    let last = first + windowLines - 1
    for (let line = first + chunkLinesMax - 1; line > first + windowLines / 2; line--) {
      if (lines[line - 1]!.trim() !== '') continue
      last = line
      break
    }
    yield [first, last]
    first = last + 1
  }
  if (first <= end) yield [first, end]
}

/** Small pieces together with what follows them, empty ones with what stands before. */
function joined(pieces: Chunk[], lines: readonly string[]): Chunk[] {
  const chunks: Chunk[] = []
  let open: Chunk | null = null
  for (const piece of pieces) {
    if (
      open &&
      (size(open) < chunkLinesMin || isEmpty(piece, lines)) &&
      piece.endLine - open.startLine < chunkLinesMax
    ) {
      open.endLine = piece.endLine
      continue
    }
    open = piece
    chunks.push(piece)
  }
  return chunks.filter((chunk) => !isEmpty(chunk, lines))
}

function size({ startLine, endLine }: Chunk): number {
  return endLine - startLine + 1
}

function isEmpty({ startLine, endLine }: Chunk, lines: readonly string[]): boolean {
  for (let line = startLine; line <= endLine; line++) if (/[\p{L}\p{N}]/u.test(lines[line - 1]!)) return false
  return true
}

/** What each chunk defines, after what encloses it where it begins. */
function nameSymbols(chunks: Chunk[], definitions: Definition[]): void {
  const enclosing: Definition[] = []
  let next = 0
  for (const chunk of chunks) {
    for (; next < definitions.length && definitions[next]!.line < chunk.startLine; next++) {
      enter(enclosing, definitions[next]!)
    }
    const first = definitions[next]
    const inside = first && first.line <= chunk.endLine ? first.indent : Number.POSITIVE_INFINITY
    const names = new Set(enclosing.filter(({ indent }) => indent < inside).map((outer) => outer.name))
    for (; next < definitions.length && definitions[next]!.line <= chunk.endLine; next++) {
      enter(enclosing, definitions[next]!)
      if (names.size < symbolsMax) names.add(definitions[next]!.name)
    }
    chunk.symbols = [...names]
  }
}

function enter(enclosing: Definition[], definition: Definition): void {
  while (enclosing.length > 0 && enclosing.at(-1)!.indent >= definition.indent) enclosing.pop()
  enclosing.push(definition)
}
