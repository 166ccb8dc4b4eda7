import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseDotenv } from '../lib/dotenv.ts'
import { interpolate } from '../lib/interpolation.ts'
import { CommandError } from './command.ts'
import { warn } from './output.ts'
import { pairs } from './pairs.ts'

const fileDefault = '.env'

/** Flags of commands that read variables from files and from the command line. */
export const environmentFlags = {
  'env-file': {
    kind: 'list',
    value: 'FILE',
    short: 'e',
    about: 'file with secret variables (.env), or NAME=VALUE of one that is no secret',
  },
  secrets: {
    kind: 'list',
    value: 'NAME=VALUE',
    short: 's',
    about: 'secret variable, over what the files say',
  },
} as const

export interface EnvironmentInput {
  'env-file'?: string[] | undefined
  secrets?: string[] | undefined
}

/**
 * Variables of --secrets over those of the files, the first file over the next. Without a file in --env-file it is `.env`,
 * in each of `directories`, the first one over the next; it may be missing.
 */
export function readEnvironment(
  flags: EnvironmentInput,
  directories: string[] = ['.'],
): Record<string, string> {
  const named = (flags['env-file'] ?? []).filter((file) => !isPair(file))
  const files = named.length > 0 ? named : [fileDefault]
  const found: Record<string, string>[] = [pairs('secrets', flags.secrets)]
  for (const file of files) {
    const texts = directories
      .map((directory) => readText(join(directory, file)))
      .filter((text) => text !== null)
    if (texts.length === 0 && named.length > 0) throw new CommandError(`${file} does not exist`)
    found.push(...texts.map(parseDotenv))
  }
  return Object.assign({}, ...found.reverse()) as Record<string, string>
}

/** Reads placeholders; each variable that nothing sets is told of once, as a warning. */
export class Placeholders {
  private readonly told = new Set<string>()

  constructor(private readonly variables: Record<string, string>) {}

  resolve(text: string): string {
    return interpolate(text, this.lookup, (name) => this.tell(name))
  }

  readonly lookup = (name: string): string | undefined => process.env[name] ?? this.variables[name]

  private tell(name: string): void {
    if (this.told.has(name)) return
    this.told.add(name)
    warn(
      `${name} is not set: it stays as it is written; set it in ${fileDefault}, by -s ${name}=VALUE or here`,
    )
  }
}

/** Variables that --env-file names itself, as NAME=VALUE. */
export function plainVariables(flags: EnvironmentInput): Record<string, string> {
  return pairs('env-file', (flags['env-file'] ?? []).filter(isPair))
}

function isPair(text: string): boolean {
  return /^[A-Za-z_]\w*=/.test(text) && !existsSync(text)
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as { code?: string }).code ?? '')) return null
    throw error
  }
}
