import type { Resource } from '../client/index.ts'
import { clientFor, openSandbox, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { type ExecutionsAsked, executionFlags, getExecutions, isExecutions } from './executions.ts'
import { imageReference } from './image-references.ts'
import { describeExecution, describeTask, jobExecutions, jobTasks } from './job-executions.ts'
import { type Catalogue, catalogues, type Kind, kindNamed, kinds, unknownKind } from './kinds.ts'
import { age, note, paint, print, printJson } from './output.ts'
import { processTable } from './processes.ts'
import { describe, type Format, formatOf, outputFlag, printResources } from './resource-output.ts'
import { spelled } from './shell.ts'

const watchMs = 1_000

export const get = command({
  name: 'get',
  summary: 'Lists resources of a kind, or shows one.',
  usage: 'KIND [NAME]',
  flags: {
    ...connectionFlags,
    ...outputFlag,
    limit: { kind: 'number', value: 'N', about: 'one page of at most so many' },
    cursor: { kind: 'text', value: 'CURSOR', about: 'the page that the last one named' },
    all: { kind: 'boolean', about: 'every page (which is also so without --limit)' },
    watch: { kind: 'boolean', about: 'go on, and print what changed' },
    ...executionFlags,
    latest: { kind: 'boolean', about: 'of an image: print the reference of its newest tag' },
  },
  positionals: [1, 6],
  notes: [
    `KIND: ${kinds.map(({ plural }) => plural).join(', ')};`,
    `${catalogues.map(({ plural }) => plural).join(', ')}; executions.`,
    'In the singular and short (sbx, img, pv) too. What belongs to another is reached by it:',
    '  hutch get sandbox NAME process|previews|snapshots|schedules',
    '  hutch get sandbox NAME preview PREVIEW tokens',
    '  hutch get agent|function|application|job NAME revisions',
    '  hutch get job NAME executions, hutch get job NAME execution ID [task [N]]',
    '  hutch get executions [agent|job|node NAME], hutch get execution ID',
  ],
  async run({ flags, positionals }) {
    const [word = '', ...rest] = positionals
    if (isExecutions(word)) return await printExecutions(flags, rest)
    const target = targetOf(positionals)
    const format = formatOf(flags)
    if (flags.latest) {
      if (target.kind.kind !== 'Image' || target.name === null)
        throw new UsageError('--latest is for an image: hutch get image TYPE/NAME --latest')
      return await printLatest(flags, target.name)
    }
    if (target.processes) return await printProcesses(flags, target, format)
    if (!flags.watch) {
      const { resources, nextCursor } = await read(flags, target)
      show(target, resources, format, flags)
      if (nextCursor !== '') {
        const line = `hutch get ${positionals.join(' ')} --limit ${flags.limit} --cursor ${nextCursor}`
        note(paint('dim', `more: ${spelled(sameTarget(line, flags))}`, process.stderr))
      }
      return 0
    }
    for (let last = ''; ; await Bun.sleep(watchMs)) {
      const { resources } = await read(flags, target)
      const now = JSON.stringify(resources)
      const redraw = process.stdout.isTTY && format !== 'json'
      // On a terminal ages go on, too.
      if (redraw) process.stdout.write('\x1b[H\x1b[2J')
      if (redraw || now !== last) show(target, resources, format, flags)
      last = now
    }
  },
})

async function printExecutions(
  flags: ExecutionsAsked & { watch?: boolean | undefined; output?: string | undefined },
  words: string[],
): Promise<number> {
  const format = formatOf(flags)
  for (let last = ''; ; await Bun.sleep(watchMs)) {
    const { read: found, show: print, more } = await getExecutions(flags, words, format)
    const now = JSON.stringify(found)
    const redraw = flags.watch && process.stdout.isTTY && format !== 'json'
    if (redraw) process.stdout.write('\x1b[H\x1b[2J')
    if (redraw || now !== last) print()
    if (!flags.watch) {
      if (more !== null) note(paint('dim', `more: ${spelled(more)}`, process.stderr))
      return 0
    }
    last = now
  }
}

interface Looked {
  kind: Pick<Kind, 'kind' | 'plural' | 'columns'>
  collection: string
  name: string | null
  /** The command that lists what there is, where it is none of the kind's own. */
  listing?: string
  read?: Catalogue['read']
  /** Of a sandbox, instead of resources. */
  processes?: { sandbox: string; id: string | null }
}

/** What `KIND [NAME [WITHIN ...]]` means. @throws UsageError */
function targetOf(words: string[]): Looked {
  const [word = '', ...rest] = words
  const catalogue = kindNamed(word, catalogues)
  if (catalogue !== null) {
    const [name = null, ...more] = rest
    if (more.length > 0) throw new UsageError(`unexpected argument ${JSON.stringify(more[0])}`)
    return { kind: catalogue, collection: catalogue.collection([]), name, read: catalogue.read }
  }
  const kind = kindNamed(word, kinds)
  if (kind === null) throw unknownKind(word, [...kinds, ...catalogues])
  const parents = rest.slice(0, kind.parents.length)
  if (parents.length < kind.parents.length) {
    const missing = kind.parents.length === 1 ? 'SANDBOX' : 'SANDBOX PREVIEW'
    throw new UsageError(`${kind.plural} belong to a sandbox: hutch get ${kind.plural} ${missing}`)
  }
  const [name = null, within, ...more] = rest.slice(parents.length)
  const collection = kind.collection(parents)
  if (name === null || within === undefined) return { kind, collection, name }
  return inside(kind, name, within, more)
}

type Listed = Pick<Kind, 'kind' | 'plural' | 'columns'>

const revisions: Listed = {
  kind: 'Revision',
  plural: 'revisions',
  columns: [
    ['REVISION', (resource) => String(resource.id)],
    ['STATUS', (resource) => String(resource.status ?? '-')],
    ['TRAFFIC', (resource) => (resource.trafficPercent === undefined ? '-' : `${resource.trafficPercent}%`)],
    ['AGE', (resource) => age(resource.createdAt as string | undefined)],
    ['BY', (resource) => String(resource.createdBy ?? '-')],
  ],
}

/** `executions`, `execution ID` and `execution ID task [N]`; null for other words. */
function ofExecutions(kind: Kind, name: string, within: string, more: string[]): Looked | null {
  if (kind.kind !== 'Job' || !['executions', 'execution'].includes(within)) return null
  const collection = `${kind.collection([])}/${encodeURIComponent(name)}/executions`
  const [id = null, word, number = null, ...others] = more
  if (id === null || word === undefined)
    return { kind: jobExecutions, collection, name: id, listing: `hutch get job ${name} executions` }
  if (!['task', 'tasks'].includes(word) || others.length > 0) return null
  const tasks = `${collection}/${encodeURIComponent(id)}/tasks`
  return { kind: jobTasks, collection: tasks, name: number, listing: `hutch get job ${name} execution ${id}` }
}

const nested: Record<string, Listed> = {
  snapshots: byPlural('snapshots'),
  schedules: {
    kind: 'Schedule',
    plural: 'schedules',
    columns: [
      ['ID', (resource) => String(resource.id)],
      ['TYPE', (resource) => String(resource.type)],
      ['VALUE', (resource) => String(resource.value)],
      ['COMMAND', (resource) => String((resource.input as { command?: string } | undefined)?.command ?? '-')],
    ],
  },
}

function inside(kind: Kind, name: string, within: string, more: string[]): Looked {
  if (kind.kind === 'Sandbox' && ['process', 'processes', 'ps'].includes(within)) {
    return { kind, collection: '', name, processes: { sandbox: name, id: more[0] ?? null } }
  }
  const ofJob = ofExecutions(kind, name, within, more)
  if (ofJob !== null) return ofJob
  const child = kindNamed(within, kinds)
  // Its own kind with the parents before it: `sandbox NAME preview P tokens` is `previewtokens NAME P`.
  if (kind.kind === 'Sandbox' && child?.parents.length === 1) {
    const [preview, tokens, ...token] = more
    if (preview === undefined || tokens === undefined) return targetOf([child.plural, name, ...more])
    return targetOf([tokens, name, preview, ...token])
  }
  const listed = Object.hasOwn(nested, within) ? nested[within] : undefined
  if (listed !== undefined && kind.kind === 'Sandbox' && more.length <= 1) {
    const collection = `${kind.collection([])}/${encodeURIComponent(name)}/${within}`
    return { kind: listed, collection, name: more[0] ?? null }
  }
  if (kind.revisions && ['revisions', 'revision'].includes(within) && more.length === 0)
    return {
      kind: revisions,
      collection: `${kind.collection([])}/${encodeURIComponent(name)}/revisions`,
      name: null,
    }
  throw new UsageError(`${kind.singular} ${name} has no ${JSON.stringify(within)} to get`)
}

function byPlural(plural: string): Kind {
  const found = kindNamed(plural, kinds)
  if (found === null) throw new Error(`no kind ${plural}`)
  return found
}

type GetFlags = Target & { limit?: number | undefined; cursor?: string | undefined }

async function read(
  flags: GetFlags,
  { kind, collection, name, listing = `hutch get ${kind.plural}`, read }: Looked,
): Promise<{ resources: Resource[]; nextCursor: string }> {
  const client = clientFor(flags)
  const { resources } = client
  return await withHints(
    flags,
    async () => {
      if (read !== undefined) return { resources: await read(client, name), nextCursor: '' }
      if (name !== null)
        return { resources: [await resources.get(itemPath(kind, collection, name))], nextCursor: '' }
      const { limit, cursor } = flags
      if (limit === undefined && cursor === undefined)
        return { resources: await Array.fromAsync(resources.list(collection)), nextCursor: '' }
      const page = await resources.page(collection, {
        ...(limit === undefined ? {} : { limit }),
        ...(cursor === undefined ? {} : { cursor }),
      })
      return { resources: page.items, nextCursor: page.nextCursor }
    },
    name === null ? {} : { 404: listing },
    { limit: '--limit', cursor: '--cursor' },
  )
}

function itemPath(kind: { kind: string }, collection: string, name: string): string {
  if (kind.kind !== 'Image') return `${collection}/${encodeURIComponent(name)}`
  const image = imageReference(name)
  return `${collection}/${encodeURIComponent(image.type)}/${encodeURIComponent(image.name)}`
}

function show(target: Looked, resources: Resource[], format: Format | null, flags: Target): void {
  const { kind, name } = target
  const [only] = resources
  if (format === null && name !== null && only !== undefined) {
    if (kind === jobExecutions) describeExecution(only)
    else if (kind === jobTasks) describeTask(only)
    else describe(only)
  } else if (resources.length === 0 && (format === null || format === 'table')) {
    note(
      `no ${kind.plural} ${target.collection.split('/').length > 2 ? 'there' : `in ${flags.workspace ?? 'this workspace'}`}`,
    )
  } else printResources(kind, resources, format ?? 'table')
}

async function printProcesses(flags: Target, target: Looked, format: Format | null): Promise<number> {
  const { sandbox, id } = target.processes ?? { sandbox: '', id: null }
  const { processes } = await openSandbox(flags, sandbox)
  const listing = `hutch get sandbox ${sandbox} process`
  const found = await withHints(
    flags,
    async () => (id === null ? await processes.list() : [await processes.get(id)]),
    { 404: listing },
  )
  if (format === 'json') printJson(found)
  else if (format === 'yaml' || format === 'pretty') print(Bun.YAML.stringify(found, null, 2))
  else processTable(found)
  return 0
}

async function printLatest(
  flags: Target & { json?: boolean | undefined; output?: string | undefined },
  reference: string,
): Promise<number> {
  const { type, name } = imageReference(reference)
  const image = await withHints(flags, () => clientFor(flags).images.get(type, name), {
    404: 'hutch get images',
  })
  const newest = image.spec.tags.toSorted((one, other) => one.updatedAt.localeCompare(other.updatedAt)).at(-1)
  if (newest === undefined)
    throw new CommandError(
      `${type}/${name} has no tag yet`,
      sameTarget(`hutch get image ${type}/${name}`, flags),
    )
  if (formatOf(flags) === 'json') printJson(`${type}/${name}:${newest.name}`)
  else print(`${type}/${name}:${newest.name}`)
  return 0
}
