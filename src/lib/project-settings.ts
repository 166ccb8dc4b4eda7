/** `blaxel.toml`: what a project says about how it is built and run. Read by the builder and by the command line alike. */
import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import { parseDuration } from './duration.ts'

/** Of files that say how an image is built. */
export const dockerfileName = /^(?:[\w.-]+\.)?[Dd]ockerfile(?:\.[\w-]+)*$/
const tomlBytesMax = 1024 * 1024
const shownCharsMax = 80
const timeoutMsMax = 365 * 24 * 60 * 60 * 1000

/** In the words of the platform; the file also has others for some. */
const projectTypes = ['agent', 'function', 'job', 'sandbox', 'application', 'volume-template'] as const
export type ProjectType = (typeof projectTypes)[number]
const typeAliases: Record<string, ProjectType> = {
  volumetemplate: 'volume-template',
  vt: 'volume-template',
  'mcp-server': 'function',
  mcp: 'function',
  app: 'application',
}
const transports = ['http-stream', 'websocket', 'stdio'] as const

/** Keys whose texts may hold `$NAME`, `${NAME:default}` and `$secrets.NAME`. */
const interpolatedKeys = ['name', 'workspace', 'type', 'protocol', 'region', 'directory', 'image'] as const

const wanted = (text: string): { error: () => string } => ({ error: () => text })
const textValue = z.string(wanted('a text in quotes'))
const flag = z.boolean(wanted('true or false'))
const texts = z.array(textValue, wanted('a list of texts, such as ["one", "two"]'))
const whole = (min: number, max: number) =>
  z
    .int(wanted(`a whole number from ${min} to ${max}`))
    .min(min, wanted(`a whole number from ${min} to ${max}`))
    .max(max, wanted(`a whole number from ${min} to ${max}`))
const memoryMb = whole(1, 1024 * 1024)
const portNumber = whole(1, 65_535)
/** Numbers and flags are what people write where a variable's text is meant. */
const variables = z.record(
  z.string(),
  z.union([z.string(), z.number(), z.boolean()], wanted('a text in quotes')).transform(String),
  wanted('a table of texts'),
)
/** Seconds, or a duration with its unit. */
const timeoutSeconds = z
  .union(
    [z.number(), z.string()],
    wanted('seconds as a whole number, or a duration such as 30s, 5m, 1h, 2d or 1w'),
  )
  .transform((value, context) => {
    const seconds = typeof value === 'number' ? value : durationSeconds(value)
    if (seconds !== null && Number.isInteger(seconds) && seconds >= 0 && seconds * 1000 <= timeoutMsMax)
      return seconds
    context.addIssue({
      code: 'custom',
      message: 'seconds as a whole number, or a duration such as 30s, 5m, 1h, 2d or 1w, at most a year',
    })
    return z.NEVER
  })

const table = z.looseObject({}, wanted('a table'))
export const dockerfileDefault = 'Dockerfile'
/** Within the project: of a name by which it is known to be one. */
const dockerfilePath = z
  .string(wanted('a path in quotes'))
  .transform((path) => path.replace(/^\.\//, ''))
  .refine(
    (path) =>
      !/^\/|(?:^|\/)\.\.(?:\/|$)/.test(path) && dockerfileName.test(path.slice(path.lastIndexOf('/') + 1)),
    wanted('a path in the project to a file named Dockerfile, Dockerfile.NAME or NAME.Dockerfile'),
  )
const tables = (item: z.ZodType) => z.array(item, wanted('a list of tables, each written [[...]]'))

const packageEntry = z.looseObject(
  { path: textValue.optional(), port: portNumber.optional(), type: textValue.optional() },
  wanted('a table'),
)
const packages = z.record(z.string(), packageEntry, wanted('a table of tables'))

const runtime = z.looseObject(
  {
    memory: memoryMb.optional(),
    storageMb: whole(1, 16 * 1024 * 1024).optional(),
    timeout: timeoutSeconds.optional(),
    generation: textValue.optional(),
    transport: z.enum(transports, wanted(`one of ${transports.join(', ')}`)).optional(),
    minScale: whole(0, 1000).optional(),
    maxScale: whole(0, 1000).optional(),
    maxConcurrentTasks: whole(1, 100_000).optional(),
    maxRetries: whole(0, 1000).optional(),
    ports: tables(
      z.looseObject(
        { name: textValue.optional(), target: portNumber, protocol: textValue.optional() },
        wanted('a table with target'),
      ),
    ).optional(),
  },
  wanted('a table'),
)

const triggerConfiguration = z.looseObject({ timeout: timeoutSeconds.optional() }, wanted('a table'))
const trigger = z.looseObject(
  {
    id: textValue.optional(),
    type: textValue.optional(),
    timeout: timeoutSeconds.optional(),
    // Written as [triggers.configuration] and as [[triggers.configuration]].
    configuration: z
      .union([triggerConfiguration, z.array(triggerConfiguration)], wanted('a table'))
      .transform((value) => (Array.isArray(value) ? (value[0] ?? {}) : value))
      .optional(),
  },
  wanted('a table'),
)

const volume = z.looseObject(
  {
    name: textValue.optional(),
    mountPath: textValue.optional(),
    type: textValue.optional(),
    sizeMb: whole(1, 16 * 1024 * 1024).optional(),
    readOnly: flag.optional(),
  },
  wanted('a table'),
)

const schema = z.object({
  name: textValue.optional(),
  description: textValue.optional(),
  workspace: textValue.optional(),
  region: textValue.optional(),
  image: textValue.optional(),
  protocol: textValue.optional(),
  type: textValue
    .transform((value, context): ProjectType => {
      const type = typeAliases[value] ?? projectTypes.find((known) => known === value)
      if (type !== undefined) return type
      context.addIssue({ code: 'custom', message: `one of ${projectTypes.join(', ')}` })
      return z.NEVER
    })
    .optional(),
  functions: texts.optional(),
  models: texts.optional(),
  agents: texts.optional(),
  policies: texts.optional(),
  skipRoot: flag.optional(),
  public: flag.optional(),
  transport: z.enum(transports, wanted(`one of ${transports.join(', ')}`)).optional(),
  entrypoint: z
    .object({ prod: textValue.optional(), dev: textValue.optional() }, wanted('a table'))
    .prefault({}),
  env: variables.prefault({}),
  build: z
    .object(
      {
        slim: flag.default(true),
        dockerfile: dockerfilePath.default(dockerfileDefault),
        args: variables.prefault({}),
      },
      wanted('a table'),
    )
    .prefault({}),
  labels: variables.prefault({}),
  function: packages.prefault({}),
  agent: packages.prefault({}),
  job: packages.prefault({}),
  runtime: runtime.prefault({}),
  triggers: tables(trigger).prefault([]),
  volumes: tables(volume).prefault([]),
  githubRunner: table.optional(),
  deploy: z
    .looseObject({ region: textValue.optional(), memory: memoryMb.optional() }, wanted('a table'))
    .optional(),
  memory: memoryMb.optional(),
  port: portNumber.optional(),
  directory: textValue.optional(),
  defaultSize: whole(1, 16 * 1024 * 1024).optional(),
})

/** Times are in seconds, memory and sizes in MiB. Keys that nobody knows are left out, within free tables kept. */
export type ProjectSettings = z.output<typeof schema>

/** Of a project without the file. */
export function emptyProjectSettings(): ProjectSettings {
  return schema.parse({})
}

/**
 * @param interpolate of texts that may name variables; without it they are taken as written
 * @throws bad_request, naming the key, its value and what would be right
 */
export function parseProjectSettings(text: string, interpolate?: (text: string) => string): ProjectSettings {
  if (text.length > tomlBytesMax) throw refused(`has more than ${tomlBytesMax} characters`)
  const values = plain(readToml(text)) as Record<string, unknown>
  if (interpolate) {
    for (const key of interpolatedKeys) {
      const value = values[key]
      if (typeof value === 'string') values[key] = interpolate(value)
    }
  }
  // What it will be is known only where the variable is.
  if (typeof values.type === 'string' && values.type.includes('$')) delete values.type
  const parsed = schema.safeParse(values)
  if (parsed.success) return parsed.data
  throw refused(problemText(values, parsed.error.issues[0]))
}

function problemText(values: unknown, issue: z.core.$ZodIssue | undefined): string {
  const path = issue?.path ?? []
  let value = values
  for (const key of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[key]
  const name = path.reduce<string>(
    (before, key) =>
      typeof key === 'number'
        ? `${before}[${key}]`
        : before === ''
          ? String(key)
          : `${before}.${String(key)}`,
    '',
  )
  const shown = JSON.stringify(value) ?? 'nothing'
  const cut = shown.length > shownCharsMax ? `${shown.slice(0, shownCharsMax)}...` : shown
  return `${name} is ${cut}, which is not ${issue?.message ?? 'right'}`
}

function readToml(text: string): unknown {
  // Loaded only here: most commands read no such file, and this parser costs 30 ms.
  const toml = require('@iarna/toml') as typeof import('@iarna/toml')
  try {
    return toml.parse(text)
  } catch (cause) {
    const { line, col, message } = cause as { line?: number; col?: number; message: string }
    const reason = message.split('\n')[0]?.replace(/ at row .*$/, '') ?? 'not TOML'
    const at = line === undefined ? '' : `line ${line + 1} column ${(col ?? 0) + 1}: `
    throw refused(`cannot be read: ${at}${reason}`, cause)
  }
}

/** Plain JSON: dates are the texts they were, large numbers numbers. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value)
  if (value instanceof Date) return value.toISOString()
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]))
}

function durationSeconds(text: string): number | null {
  try {
    return parseDuration('timeout', text, timeoutMsMax) / 1000
  } catch {
    return null
  }
}

function refused(what: string, cause?: unknown): PlatformError {
  return new PlatformError('bad_request', `blaxel.toml: ${what}`, cause === undefined ? {} : { cause })
}
