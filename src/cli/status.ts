import { Client, ClientError } from '../client/index.ts'
import { readCredentials, readRunningPlatform } from '../data-directory.ts'
import { command, sameTarget } from './command.ts'
import { type Connection, connectionFor, sourceOf } from './connection.ts'
import { age, note, paint, print, printJson } from './output.ts'
import { spelled } from './shell.ts'

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
    const sandboxes = health.alive && credentials ? await countSandboxes(client) : null
    const state = health.ready ? 'ready' : health.alive ? 'starting' : 'not answering'
    if (flags.json) {
      printJson({
        running: true,
        state,
        ...running,
        dataDir,
        workspace: credentials?.workspace ?? null,
        sandboxes,
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
    if (sandboxes) printCounts(sandboxes)
    return health.ready ? 0 : 1
  },
})

/** Of a platform that variables or a login name: what can be seen from here. */
async function elsewhere(connection: Connection, flags: { json?: boolean }): Promise<number> {
  const client = new Client(connection)
  const url = new URL(connection.apiUrl).origin
  const health = await client.health().catch(() => ({ alive: false, ready: false }))
  const sandboxes = health.alive ? await countSandboxes(client) : null
  const state = health.ready ? 'ready' : health.alive ? 'starting' : 'not answering'
  if (flags.json) printJson({ running: health.alive, state, url, workspace: connection.workspace, sandboxes })
  else {
    print(`${paint(health.ready ? 'green' : 'yellow', state)}  ${url}`)
    print(
      `workspace  ${connection.workspace}${health.alive && sandboxes === null ? ', which the key does not reach' : ''}`,
    )
    if (sandboxes) printCounts(sandboxes)
  }
  return health.ready ? 0 : 1
}

function printCounts(sandboxes: Record<string, number>): void {
  const parts = Object.entries(sandboxes).map(([name, count]) => `${count} ${name.toLowerCase()}`)
  print(`sandboxes  ${parts.join(', ') || 'none'}`)
}

/** How many sandboxes of each status the first workspace holds; null when its key is not accepted any more. */
async function countSandboxes(client: Client): Promise<Record<string, number> | null> {
  const counts: Record<string, number> = {}
  try {
    for await (const sandbox of client.sandboxes.list()) {
      const key = sandbox.status ?? 'UNKNOWN'
      counts[key] = (counts[key] ?? 0) + 1
    }
  } catch (error) {
    if (error instanceof ClientError) return null
    throw error
  }
  return counts
}
