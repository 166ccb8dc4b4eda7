import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { CommandError, UsageError } from './command.ts'
import type { Placeholders } from './environment.ts'

/** A document of a manifest: one resource as it is to be. */
export interface Manifest {
  kind: string
  metadata: Record<string, unknown> & { name: string }
  spec: Record<string, unknown>
  /** The file and, where it has several, the document; for messages. */
  from: string
}

const manifestBytesMax = 16 * 1024 * 1024
const manifestFile = /\.(ya?ml|json)$/i

/**
 * The manifests of a file, of all files of a directory (`recursive`: and of those below it), or of standard input for
 * `-`, in the order of their names, with their placeholders replaced.
 */
export async function readManifests(
  path: string,
  options: { recursive: boolean; placeholders: Placeholders },
): Promise<Manifest[]> {
  const texts =
    path === '-' ? [['standard input', await readInput()] as const] : readFiles(path, options.recursive)
  const manifests = texts.flatMap(([from, text]) => parseManifests(from, text, options.placeholders))
  if (manifests.length === 0)
    throw new CommandError(`${path === '-' ? 'standard input' : path} has no manifest`)
  return manifests
}

async function readInput(): Promise<string> {
  let text = ''
  for await (const chunk of process.stdin) {
    text += chunk
    if (text.length > manifestBytesMax) throw new CommandError('the manifest on standard input is too long')
  }
  return text
}

function readFiles(path: string, recursive: boolean): (readonly [from: string, text: string])[] {
  const found = statSync(path, { throwIfNoEntry: false })
  if (found === undefined) throw new CommandError(`${path} does not exist`)
  if (!found.isDirectory()) return [[path, readBounded(path)]]
  const files = readdirSync(path, { recursive, withFileTypes: true })
    .filter((entry) => !entry.isDirectory() && manifestFile.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
  return files.sort().map((file) => [file, readBounded(file)] as const)
}

function readBounded(path: string): string {
  if (statSync(path).size > manifestBytesMax) throw new CommandError(`${path} is too long for a manifest`)
  return readFileSync(path, 'utf8')
}

/** @throws CommandError naming the file and the document */
function parseManifests(from: string, text: string, placeholders: Placeholders): Manifest[] {
  let parsed: unknown
  try {
    parsed = Bun.YAML.parse(typedPlaceholders(text, placeholders))
  } catch (error) {
    throw new CommandError(
      `${from} is no YAML: ${(error as Error).message.replace(/^YAML Parse error: /, '')}`,
    )
  }
  const documents = (Array.isArray(parsed) ? parsed : [parsed]).flatMap(listed)
  const present = documents.filter((document) => document !== null && document !== undefined)
  return present.map((document, index) => {
    const where = present.length === 1 ? from : `${from}, document ${index + 1}`
    return checked(where, resolved(document, placeholders))
  })
}

/** What a `kind: List` holds, else the document itself. */
function listed(document: unknown): unknown[] {
  const { kind, items } = (document ?? {}) as { kind?: unknown; items?: unknown }
  return kind === 'List' && Array.isArray(items) ? items : [document]
}

function checked(from: string, document: unknown): Manifest {
  const { kind, metadata, spec } = (typeof document === 'object' ? (document ?? {}) : {}) as Record<
    string,
    unknown
  >
  if (typeof kind !== 'string') throw new CommandError(`${from}: kind is missing, e.g. kind: Agent`)
  const name = (metadata as { name?: unknown } | undefined)?.name
  if (typeof name !== 'string' && typeof name !== 'number')
    throw new CommandError(`${from}: metadata.name is missing`)
  if (spec !== undefined && spec !== null && (typeof spec !== 'object' || Array.isArray(spec)))
    throw new CommandError(`${from}: spec is to be a mapping`)
  return {
    kind,
    metadata: { ...(metadata as object), name: String(name) },
    spec: (spec ?? {}) as Record<string, unknown>,
    from,
  }
}

/**
 * A placeholder that is a whole plain value becomes a number, true or false where its value reads as one, else a quoted
 * string: no value can end as something else in the document.
 */
function typedPlaceholders(text: string, placeholders: Placeholders): string {
  const alone = /^(\s*(?:- )*(?:[\w.-]+:[ \t]+|- ))(\$\{[^}\n]*\}|\$[\w.]+(?::[^\n#]*)?)[ \t]*$/gm
  return text.replace(alone, (line: string, before: string, written: string) => {
    const value = placeholders.resolve(written)
    if (value === written) return line
    return before + (/^(true|false|-?(0|[1-9]\d{0,14}))$/.test(value) ? value : JSON.stringify(value))
  })
}

function resolved(value: unknown, placeholders: Placeholders): unknown {
  if (typeof value === 'string') return placeholders.resolve(value)
  if (Array.isArray(value)) return value.map((item) => resolved(item, placeholders))
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, placeholders)]))
}

/** @throws UsageError when a flag that several commands take is missing */
export function fileFlag(file: string | undefined, usage: string): string {
  if (file === undefined) throw new UsageError(`--filename is missing; usage: ${usage}`)
  return file
}
