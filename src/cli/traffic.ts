import type { Client, Resource } from '../client/index.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget, UsageError } from './command.ts'
import { timeoutOf } from './deploy-plan.ts'
import { at, kindNamed, kinds, unknownKind } from './kinds.ts'
import { print, printJson } from './output.ts'

const pollMs = 200

export const traffic = command({
  name: 'traffic',
  summary: 'Leads requests to a revision: all of them, such as back to an earlier one, or a part as a trial.',
  usage: 'KIND NAME REVISION [PERCENT]',
  flags: {
    ...connectionFlags,
    timeout: { kind: 'text', value: 'TIME', about: 'how long to wait until it is so, e.g. 10m (1h)' },
  },
  positionals: [3, 4],
  notes: [
    'Which there are: hutch get KIND NAME revisions. The last five are kept.',
    'With PERCENT the revision that serves now keeps the rest; 0 ends the trial.',
  ],
  async run({ flags, positionals }) {
    const [word = '', name = '', revision = '', percentText] = positionals
    const deployed = kinds.filter(({ revisions }) => revisions)
    const kind = kindNamed(word, deployed)
    if (kind === null) throw unknownKind(word, deployed)
    const percent = percentOf(percentText)
    const path = `${kind.collection([])}/${encodeURIComponent(name)}`
    const listing = `hutch get ${kind.singular} ${name} revisions`
    const timeoutMs = timeoutOf(flags)
    await withHints(
      flags,
      async () => {
        const client = clientFor(flags)
        const before = await client.resources.get(path)
        const { metadata, spec } = before
        const wanted = routing(at(before, 'spec.revision.active'), revision, percent)
        await client.resources.replace(path, { metadata, spec: { ...spec, revision: wanted } })
        await settled(client, path, eventsOf(before), wanted, performance.now() + timeoutMs)
      },
      { 400: listing, 404: `hutch get ${kind.plural}` },
      {
        'spec.revision.active': 'REVISION',
        'spec.revision.canary': 'REVISION',
        'spec.revision.canaryPercent': 'PERCENT',
      },
    ).catch((error: unknown) => {
      // What is mistyped is a revision; which there are is no question of flags.
      if (error instanceof UsageError) throw new CommandError(error.message, sameTarget(listing, flags))
      throw error
    })
    if (flags.json) printJson({ kind: kind.singular, name, revision, percent })
    else print(`${percent}% of the requests to ${name} go to ${revision}`)
    return 0
  },
})

function percentOf(text: string | undefined): number {
  if (text === undefined) return 100
  const percent = Number(text.replace(/%$/, ''))
  if (!Number.isInteger(percent) || percent < 0 || percent > 100)
    throw new UsageError(`PERCENT ${JSON.stringify(text)} is no whole number from 0 to 100`)
  return percent
}

interface Routing {
  active: string
  canary?: string | null
  canaryPercent?: number
}

function routing(active: unknown, revision: string, percent: number): Routing {
  if (percent === 100) return { active: revision, canary: null }
  if (typeof active !== 'string' || active === '')
    throw new CommandError('nothing serves yet that could keep the rest of the requests')
  if (percent === 0) return { active, canary: null }
  return { active, canary: revision, canaryPercent: percent }
}

/** Resolves once requests go where they are to go. @throws CommandError when they cannot */
async function settled(
  client: Client,
  path: string,
  seen: number,
  wanted: Routing,
  deadline: number,
): Promise<void> {
  for (;;) {
    const resource = await client.resources.get(path)
    const failed = (resource.events ?? [])
      .slice(seen)
      .find(({ type, status }) => type === 'traffic' && status === 'FAILED')
    if (failed !== undefined) throw new CommandError(failed.message ?? 'the revision could not be brought up')
    const rows = await Array.fromAsync(client.resources.list(`${path}/revisions`))
    if (rows.every((row) => isAsWanted(row, wanted))) return
    if (performance.now() > deadline) throw new CommandError('the revision was not up in time; it goes on')
    await Bun.sleep(pollMs)
  }
}

function isAsWanted(
  { id, trafficPercent }: Resource,
  { active, canary, canaryPercent = 0 }: Routing,
): boolean {
  // Of applications it is not told.
  if (trafficPercent === undefined) return true
  const share = canary ? canaryPercent : 0
  return trafficPercent === (id === active ? 100 - share : id === canary ? share : 0)
}

function eventsOf(resource: Resource): number {
  return (resource.events ?? []).length
}
