/**
 * Where a text stops being JSON: the runtime's own parser does not say. Called only for texts that did not parse.
 * Iterative, so that depth cannot exhaust the stack. Answers the offset of the first character that cannot be.
 */
export function jsonErrorOffset(text: string): number {
  /** What may come next: a value, a key or '}', a key, ':', or ',' and the closing bracket. */
  let expects: 'value' | 'valueOrEnd' | 'keyOrEnd' | 'key' | 'colon' | 'commaOrEnd' | 'end' = 'value'
  const open: ('{' | '[')[] = []
  let at = 0
  const afterValue = () => (open.length === 0 ? 'end' : 'commaOrEnd')

  while (true) {
    while (at < text.length && ' \t\n\r'.includes(text[at]!)) at++
    if (at >= text.length) return at
    const character = text[at]!
    const innermost = open[open.length - 1]
    if (expects === 'end') return at
    if (expects === 'colon') {
      if (character !== ':') return at
      at++
      expects = 'value'
    } else if (expects === 'commaOrEnd') {
      if (character === (innermost === '{' ? '}' : ']')) {
        open.pop()
        at++
        expects = afterValue()
      } else if (character === ',') {
        at++
        expects = innermost === '{' ? 'key' : 'value'
      } else return at
    } else if (expects === 'key' || expects === 'keyOrEnd') {
      if (character === '}' && expects === 'keyOrEnd') {
        open.pop()
        at++
        expects = afterValue()
      } else if (character === '"') {
        const end = stringEnd(text, at)
        if (end.failed) return end.offset
        at = end.offset
        expects = 'colon'
      } else return at
    } else if (character === ']' && expects === 'valueOrEnd') {
      open.pop()
      at++
      expects = afterValue()
    } else if (character === '{' || character === '[') {
      open.push(character)
      at++
      expects = character === '{' ? 'keyOrEnd' : 'valueOrEnd'
    } else if (character === '"') {
      const end = stringEnd(text, at)
      if (end.failed) return end.offset
      at = end.offset
      expects = afterValue()
    } else {
      scalar.lastIndex = at
      const match = scalar.exec(text)
      if (match === null) return at + commonPrefix(text, at)
      at += match[0].length
      expects = afterValue()
    }
  }
}

/** 1-based line and column of an offset. */
export function linePosition(text: string, offset: number): { line: number; column: number } {
  let line = 1
  let lineStart = 0
  for (let at = text.indexOf('\n'); at !== -1 && at < offset; at = text.indexOf('\n', at + 1)) {
    line++
    lineStart = at + 1
  }
  return { line, column: offset - lineStart + 1 }
}

const scalar = /true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y
const words = ['true', 'false', 'null']

/** How far a misspelt word is right, so that the position is the first wrong character. */
function commonPrefix(text: string, start: number): number {
  let longest = 0
  for (const word of words) {
    let length = 0
    while (length < word.length && text[start + length] === word[length]) length++
    longest = Math.max(longest, length)
  }
  return longest
}

function stringEnd(text: string, start: number): { offset: number; failed: boolean } {
  for (let at = start + 1; at < text.length; at++) {
    const character = text[at]!
    if (character === '"') return { offset: at + 1, failed: false }
    if (character < ' ') return { offset: at, failed: true }
    if (character === '\\') {
      const escaped = text[at + 1]
      if (escaped === 'u') {
        if (!/^[0-9a-fA-F]{4}/.test(text.slice(at + 2, at + 6))) return { offset: at, failed: true }
        at += 5
      } else if (escaped === undefined || !'"\\/bfnrt'.includes(escaped)) {
        return { offset: at, failed: true }
      } else at++
    }
  }
  return { offset: text.length, failed: true }
}
