import type { Client, Resource } from '../client/index.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { timeoutOf } from './deploy-plan.ts'
import { at, type Kind, kinds, knownKind } from './kinds.ts'
import { print, printJson } from './output.ts'

const pollMs = 200

const trafficFlags = {
  ...connectionFlags,
  timeout: { kind: 'text', value: 'TIME', about: 'how long to wait until it is so, e.g. 10m (1h)' },
} as const

export const traffic = command({
  name: 'traffic',
  summary: 'Leads requests to a revision: all of them, such as back to an earlier one, or a part as a trial.',
  usage: 'KIND NAME REVISION [PERCENT]',
  flags: trafficFlags,
  positionals: [3, 4],
  notes: [
    'Which there are: hutch get KIND NAME revisions. The last five are kept.',
    'With PERCENT the revision that serves now keeps the rest; 0 ends the trial.',
  ],
  async run({ flags, positionals }) {
    const [word = '', name = '', revision = '', percentText] = positionals
    const percent = percentOf(percentText)
    await lead(flags, deployedKind(word), name, ({ active }) => routing(active, revision, percent))
    if (flags.json) printJson({ kind: deployedKind(word).singular, name, revision, percent })
    else print(`${percent}% of the requests to ${name} go to ${revision}`)
    return 0
  },
})

export const rollback = command({
  name: 'rollback',
  summary: 'Leads all requests back to an earlier revision.',
  usage: 'KIND NAME [REVISION]',
  flags: trafficFlags,
  positionals: [2, 3],
  notes: [
    'Without REVISION it is the one before the one that serves. What is deployed later gets no requests by itself.',
  ],
  async run({ flags, positionals }) {
    const [word = '', name = '', asked] = positionals
    const kind = deployedKind(word)
    const { active } = await lead(flags, kind, name, ({ active: now, revisions }) => ({
      active: asked ?? earlier(now, revisions),
      canary: null,
    }))
    if (flags.json) printJson({ kind: kind.singular, name, revision: active, percent: 100 })
    else print(`all requests to ${name} go to ${active}`)
    return 0
  },
})

/** The newest of those that were made before the one that serves. @throws CommandError when there is none */
function earlier(active: unknown, revisions: Resource[]): string {
  const ordered = revisions.toSorted((one, other) =>
    String(other.createdAt).localeCompare(String(one.createdAt)),
  )
  const at = ordered.findIndex(({ id }) => id === active)
  const found = ordered.slice(at + 1).find(({ status = 'DEPLOYED' }) => status === 'DEPLOYED')
  if (at === -1) throw new CommandError('nothing serves yet that it could be rolled back from')
  if (found === undefined) throw new CommandError(`there is no revision before ${String(active)}`)
  return String(found.id)
}

/** @throws UsageError */
function deployedKind(word: string): Kind {
  return knownKind(
    word,
    kinds.filter(({ revisions }) => revisions),
  )
}

/** Leads requests where `choose` says, and waits until they go there. @throws CommandError */
async function lead(
  flags: Target & { timeout?: string | undefined },
  kind: Kind,
  name: string,
  choose: (now: { active: unknown; revisions: Resource[] }) => Routing,
): Promise<Routing> {
  const path = `${kind.collection([])}/${encodeURIComponent(name)}`
  const listing = `hutch get ${kind.singular} ${name} revisions`
  const timeoutMs = timeoutOf(flags)
  const typed = {
    'spec.revision.active': 'REVISION',
    'spec.revision.canary': 'REVISION',
    'spec.revision.canaryPercent': 'PERCENT',
  }
  try {
    return await withHints(
      flags,
      async () => {
        const client = clientFor(flags)
        const before = await client.resources.get(path)
        const revisions = await Array.fromAsync(client.resources.list(`${path}/revisions`))
        const wanted = choose({ active: at(before, 'spec.revision.active'), revisions })
        const { metadata, spec } = before
        await client.resources.replace(path, { metadata, spec: { ...spec, revision: wanted } })
        await settled(client, path, eventsOf(before), wanted, performance.now() + timeoutMs)
        return wanted
      },
      { 400: listing, 404: `hutch get ${kind.plural}` },
      typed,
    )
  } catch (error) {
    // What is mistyped is a revision; which there are is no question of flags.
    if (error instanceof UsageError) throw new CommandError(error.message, sameTarget(listing, flags))
    throw error
  }
}

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
