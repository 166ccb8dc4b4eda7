import { Client, ClientError } from '../client/index.ts'
import { readCredentials, readRunningPlatform } from '../data-directory.ts'
import { command, sameTarget } from './command.ts'
import { type Connection, connectionFor, sourceOf } from './connection.ts'
import { age, note, paint, print, printJson } from './output.ts'
import { spelled } from './shell.ts'

const collections = ['sandboxes', 'agents', 'functions', 'applications', 'jobs']
const labelChars = 10

export const status = command({
  name: 'status',
  summary:
    'Says whether the platform that commands speak to runs, and what it holds. Exits 1 when it does not.',
  flags: { 'data-dir': { kind: 'text', value: 'DIR', about: 'data directory to look at' } },
  async run({ flags }) {
    const source = sourceOf(flags)
    if (source.kind !== 'data-dir') return await elsewhere(connectionFor(flags), flags)
    const { dataDir } = source
    const running = readRunningPlatform(dataDir)
    if (!running) {
      if (flags.json) printJson({ running: false, dataDir })
      else {
        print(`${paint('red', 'stopped')}  ${dataDir}`)
        note(`try:   ${spelled(sameTarget('hutch up', flags))}`)
      }
      return 1
    }
    const credentials = readCredentials(dataDir)
    const client = new Client({
      apiUrl: `${running.url}/v0`,
      workspace: credentials?.workspace ?? '',
      apiKey: credentials?.apiKey ?? '',
    })
    const health = await client.health().catch(() => ({ alive: false, ready: false }))
    const counts = health.alive && credentials ? await countAll(client) : null
    const state = health.ready ? 'ready' : health.alive ? 'starting' : 'not answering'
    if (flags.json) {
      printJson({
        running: true,
        state,
        ...running,
        dataDir,
        workspace: credentials?.workspace ?? null,
        ...asJson(counts),
      })
      return health.ready ? 0 : 1
    }
    print(`${paint(health.ready ? 'green' : 'yellow', state)}  ${running.url}`)
    print(`process    ${running.pid}, up ${age(running.startedAt)}`)
    if (running.runtime) {
      const isolated = running.isolation !== 'none'
      print(`runtime    ${running.runtime}${isolated ? '' : paint('red', ', no isolation whatever')}`)
    }
    print(`data       ${dataDir}`)
    if (credentials) print(`workspace  ${credentials.workspace}`)
    printCounts(counts)
    return health.ready ? 0 : 1
  },
})

/** Of a platform that variables or a login name: what can be seen from here. */
async function elsewhere(connection: Connection, flags: { json?: boolean }): Promise<number> {
  const client = new Client(connection)
  const url = new URL(connection.apiUrl).origin
  const health = await client.health().catch(() => ({ alive: false, ready: false }))
  const counts = health.alive ? await countAll(client) : null
  const state = health.ready ? 'ready' : health.alive ? 'starting' : 'not answering'
  if (flags.json)
    printJson({ running: health.alive, state, url, workspace: connection.workspace, ...asJson(counts) })
  else {
    print(`${paint(health.ready ? 'green' : 'yellow', state)}  ${url}`)
    print(
      `workspace  ${connection.workspace}${health.alive && counts === null ? ', which the key does not reach' : ''}`,
    )
    printCounts(counts)
  }
  return health.ready ? 0 : 1
}

/** How many of a kind have each status. */
type Counts = Record<string, Record<string, number>>

function asJson(counts: Counts | null): Record<string, Record<string, number> | null> {
  return counts ?? Object.fromEntries(collections.map((name) => [name, null]))
}

/** Of what is deployed only the kinds that there are. */
function printCounts(counts: Counts | null): void {
  for (const [name, statuses] of Object.entries(counts ?? {})) {
    const parts = Object.entries(statuses).map(([status, count]) => `${count} ${status.toLowerCase()}`)
    if (parts.length > 0 || name === 'sandboxes')
      print(`${name.padEnd(labelChars)} ${parts.join(', ') || 'none'}`)
  }
}

/** What the workspace holds; null when its key is not accepted any more. */
async function countAll(client: Client): Promise<Counts | null> {
  const counts: Counts = {}
  try {
    for (const name of collections) {
      const statuses: Record<string, number> = {}
      for await (const { status = 'UNKNOWN' } of client.resources.list(`/${name}`))
        statuses[status] = (statuses[status] ?? 0) + 1
      counts[name] = statuses
    }
  } catch (error) {
    if (error instanceof ClientError) return null
    throw error
  }
  return counts
}
