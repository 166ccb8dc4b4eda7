/** What has to be known of a Dockerfile before a tool is given it: the images that it names. */
import { PlatformError } from '../../errors.ts'

export const dockerfileBytesMax = 1024 * 1024
const imagesMax = 50
/** Of a variable, and of what names an image: each may be made of others. */
const valueCharsMax = 4096

export interface DockerfileImage {
  /** With its variables filled in. */
  text: string
  /** As it stands there. */
  written: string
  line: number
}

interface Instruction {
  name: string
  /** All behind the name, on one line. */
  rest: string
  /** From 1. */
  line: number
}

/**
 * The images of `FROM`, `COPY --from` and `RUN --mount=from`, each once; not those that are stages of the file itself, and
 * not `scratch`. @throws unprocessable
 */
export function imagesOf(dockerfile: string, buildArgs: Readonly<Record<string, string>>): DockerfileImage[] {
  const stages = new Set<string>()
  let stageCount = 0
  /** `ARG`s before the first stage: the only ones that `FROM` knows. */
  const globals = new Map<string, string>()
  const found = new Map<string, DockerfileImage>()
  const note = (written: string, line: number) => {
    const text = filled(written, globals)
    if (text === '' || text === 'scratch' || stages.has(text.toLowerCase()) || found.has(written)) return
    if (found.size === imagesMax) {
      throw new PlatformError('unprocessable', `the Dockerfile names more than ${imagesMax} images`)
    }
    found.set(written, { text, written, line })
  }
  for (const { name, rest, line } of instructions(dockerfile)) {
    if (name === 'ARG' && stageCount === 0) {
      for (const [key, value] of argumentsOf(rest)) {
        const given = buildArgs[key] ?? (value === null ? undefined : filled(value, globals))
        if (given !== undefined) globals.set(key, given)
      }
    } else if (name === 'FROM') {
      const words = rest.split(/\s+/).filter((word) => !word.startsWith('--') && word !== '')
      const [image = '', as = '', stage = ''] = words
      if (filled(image, globals) === '') {
        throw new PlatformError(
          'unprocessable',
          `line ${line} of the Dockerfile: FROM ${JSON.stringify(image.slice(0, 200))} names no image${image.includes('$') ? ': its variable needs an ARG with a value before the first FROM' : ''}`,
        )
      }
      note(image, line)
      stageCount++
      if (as.toLowerCase() === 'as') stages.add(stage.toLowerCase())
    } else if (name === 'COPY' || name === 'ADD') {
      const from = /^(?:--\S+\s+)*?--from=(\S+)/.exec(rest)?.[1]
      if (from !== undefined && !isStageNumber(from, stageCount)) note(unquoted(from), line)
    } else if (name === 'RUN') {
      for (const [, options = ''] of leadingFlags(rest).matchAll(/--mount=(\S+)/g)) {
        const from = options.split(',').find((option) => option.startsWith('from='))
        const image = from === undefined ? '' : unquoted(from.slice('from='.length))
        if (!isStageNumber(image, stageCount)) note(image, line)
      }
    }
  }
  if (stageCount === 0)
    throw new PlatformError('unprocessable', 'the Dockerfile has no FROM: it says nothing to start from')
  return [...found.values()]
}

function isStageNumber(text: string, count: number): boolean {
  return /^\d+$/.test(text) && Number(text) < count
}

/** Lines put together, without comments and without what here-documents hold. */
function* instructions(dockerfile: string): Generator<Instruction> {
  const lines = dockerfile.replace(/^\uFEFF/, '').split(/\r?\n/)
  const continuation = escapeOf(lines)
  for (let at = 0; at < lines.length; at++) {
    const line = at + 1
    if (isBlank(lines[at]!)) continue
    const parts: string[] = []
    while (at < lines.length) {
      const part = lines[at]!.trimEnd()
      if (!part.endsWith(continuation)) {
        parts.push(lines[at]!)
        break
      }
      parts.push(part.slice(0, -1))
      // Comments and empty lines within an instruction count for nothing.
      do at++
      while (at < lines.length && isBlank(lines[at]!))
    }
    const text = parts.join('')
    const [, name = '', rest = ''] = /^\s*(\S+)\s*([\s\S]*)$/.exec(text) ?? []
    yield { name: name.toUpperCase(), rest: rest.trim(), line }
    if (!/^(RUN|COPY|ADD)$/i.test(name)) continue
    for (const [, dash, quoted] of rest.matchAll(/<<(-?)\s*(["']?[A-Za-z_][\w.-]*["']?)/g)) {
      const end = unquoted(quoted ?? '')
      do at++
      while (at < lines.length && (dash ? lines[at]!.replace(/^\t+/, '') : lines[at]) !== end)
    }
  }
}

/** `# escape=` counts among the first comments only. */
function escapeOf(lines: readonly string[]): string {
  for (const line of lines) {
    const [, key = '', value = ''] = /^#\s*([A-Za-z]+)\s*=\s*(\S+)\s*$/.exec(line) ?? []
    if (key === '') break
    if (key.toLowerCase() === 'escape' && value === '`') return '`'
  }
  return '\\'
}

function isBlank(line: string): boolean {
  return /^\s*(#|$)/.test(line)
}

function leadingFlags(rest: string): string {
  return /^(?:--\S+\s+)*/.exec(rest)?.[0] ?? ''
}

/** `A=1 B="two words" C` */
function argumentsOf(rest: string): [string, string | null][] {
  const found: [string, string | null][] = []
  for (const match of rest.matchAll(/([A-Za-z_]\w*)(?:=("[^"]*"|'[^']*'|[^\s]*))?(?=\s|$)/g)) {
    found.push([match[1]!, match[2] === undefined ? null : unquoted(match[2])])
  }
  return found
}

function unquoted(text: string): string {
  return /^(["']).*\1$/.test(text) ? text.slice(1, -1) : text
}

/** `$X`, `${X}`, `${X:-default}`, `${X:+instead}`; what has no value is empty. */
function filled(text: string, values: ReadonlyMap<string, string>): string {
  const one = (name: string, operator: string | undefined, other: string | undefined): string => {
    const value = values.get(name) ?? ''
    if (operator === ':-' || operator === '-') return value === '' ? filled(other ?? '', values) : value
    if (operator === ':+' || operator === '+') return value === '' ? '' : filled(other ?? '', values)
    return value
  }
  let chars = 0
  return unquoted(text).replace(
    /\$(?:\{([A-Za-z_]\w*)(?:(:?[-+])([^}]*))?\}|([A-Za-z_]\w*))/g,
    (_, braced, operator, other, plain) => {
      const value = one(braced ?? plain, operator, other)
      chars += value.length
      if (chars > valueCharsMax) {
        throw new PlatformError(
          'unprocessable',
          `an ARG or a FROM of the Dockerfile has more than ${valueCharsMax} characters once its variables are filled in`,
        )
      }
      return value
    },
  )
}
