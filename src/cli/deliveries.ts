import type { Resource } from '../client/index.ts'
import { clientFor, withHints } from './client.ts'
import { command, connectionFlags } from './command.ts'
import { age, note, print, printable, printJson, table } from './output.ts'

const listing = 'hutch deliveries ls'
const shownMax = 50

interface Attempt {
  at: string
  status: number | null
  latencyMs: number
  bodyExcerpt: string
  error: string | null
}

export const list = command({
  name: 'deliveries ls',
  summary: 'Lists callbacks, newest first: of one execution, or all.',
  usage: '[EXECUTION]',
  flags: { ...connectionFlags, limit: { kind: 'number', about: `how many (${shownMax})` } },
  positionals: [0, 1],
  async run({ flags, positionals }) {
    const query = positionals[0] === undefined ? '' : `?execution=${encodeURIComponent(positionals[0])}`
    const { items } = await withHints(
      flags,
      () => clientFor(flags).resources.page(`/deliveries${query}`, { limit: flags.limit ?? shownMax }),
      {},
      { limit: '--limit' },
    )
    if (flags.json) printJson(items)
    else if (items.length === 0) note('no callbacks')
    else print(table(['DELIVERY', 'EXECUTION', 'STATUS', 'ATTEMPTS', 'AGE', 'TO'], items.map(row)))
    return 0
  },
})

export const get = command({
  name: 'deliveries get',
  summary: 'Shows a callback, and how each attempt to send it went.',
  usage: 'DELIVERY',
  flags: connectionFlags,
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const delivery = await withHints(flags, () => clientFor(flags).resources.get(pathOf(positionals[0])), {
      404: listing,
    })
    if (flags.json) printJson(delivery)
    else {
      const { id, executionId, status, url } = delivery
      const next = delivery.nextAttemptAt
      const rows = { delivery: id, execution: executionId, status, to: url, ...(next ? { next } : {}) }
      for (const [name, value] of Object.entries(rows)) print(`${name.padEnd(11)}${printable(String(value))}`)
      print(table(['AT', 'STATUS', 'MS', 'WHY, OR WHAT IT SAID'], attemptsOf(delivery).map(attemptRow)))
    }
    return 0
  },
})

export const redeliver = command({
  name: 'deliveries redeliver',
  summary: 'Sends callbacks once more, now, each with the same id and body.',
  usage: 'DELIVERY...',
  flags: connectionFlags,
  positionals: [1, 1000],
  async run({ flags, positionals }) {
    const sent: Resource[] = []
    for (const id of positionals) {
      const path = `${pathOf(id)}/redeliver`
      const { resource } = await withHints(flags, () => clientFor(flags).resources.create(path, {}), {
        404: listing,
      })
      sent.push(resource)
      if (!flags.json) print(`${id} ${String(resource.status)}`)
    }
    if (flags.json) printJson(sent)
    return 0
  },
})

function pathOf(id = ''): string {
  return `/deliveries/${encodeURIComponent(id)}`
}

function attemptsOf({ attempts }: Resource): Attempt[] {
  return (attempts ?? []) as Attempt[]
}

function row(delivery: Resource): string[] {
  const { id, executionId, status, createdAt, url } = delivery
  const count = String(attemptsOf(delivery).length)
  return [
    String(id),
    String(executionId),
    String(status),
    count,
    age(createdAt as string),
    printable(String(url)),
  ]
}

function attemptRow({ at, status, latencyMs, bodyExcerpt, error }: Attempt): string[] {
  const said = printable([error, bodyExcerpt.split('\n', 1)[0]].filter(Boolean).join(': '))
  return [at, status === null ? '-' : String(status), String(latencyMs), said.slice(0, 200) || '-']
}
