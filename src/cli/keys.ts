import { clientFor, withHints } from './client.ts'
import { command, connectionFlags, sameTarget } from './command.ts'
import { age, note, print, printJson, table } from './output.ts'
import { spelled } from './shell.ts'

export const create = command({
  name: 'keys create',
  summary: 'Creates an API key of yours and prints it; it is never shown again.',
  usage: 'NAME',
  flags: { ...connectionFlags, expires: { kind: 'text', value: 'TIME', about: 'e.g. 24h, 30d (never)' } },
  notes: [
    'The key is you: it reaches every workspace of yours, whatever --workspace says.',
    'For a key of one workspace make a service account: POST /v0/service_accounts with {"name": NAME}.',
  ],
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const key = await withHints(
      flags,
      () =>
        clientFor(flags).keys.create({
          name: positionals[0]!,
          ...(flags.expires === undefined ? {} : { expiresIn: flags.expires }),
        }),
      {},
      { name: 'NAME', expires_in: '--expires' },
    )
    if (flags.json) printJson(key)
    else {
      print(key.apiKey ?? '')
      if (flags.workspace !== undefined) note('it reaches every workspace of yours, not only this one')
      note(`to revoke it: ${spelled(sameTarget(`hutch keys revoke ${key.id}`, flags))}`)
    }
    return 0
  },
})

export const list = command({
  name: 'keys list',
  summary: 'Lists API keys; never the keys themselves.',
  flags: connectionFlags,
  async run({ flags }) {
    const keys = await withHints(flags, () => Array.fromAsync(clientFor(flags).keys.list()))
    if (flags.json) printJson(keys)
    else {
      const rows = keys.map((key) => [
        key.id,
        key.name,
        key.sub_type ?? '-',
        age(key.createdAt),
        expiry(key.expiresAt ?? key.expires_in),
      ])
      print(table(['ID', 'NAME', 'OF', 'AGE', 'EXPIRES'], rows))
    }
    return 0
  },
})

function expiry(expiresAt: string | undefined): string {
  if (expiresAt === undefined) return 'never'
  return Date.parse(expiresAt) <= Date.now() ? `${expiresAt} (expired)` : expiresAt
}

export const revoke = command({
  name: 'keys revoke',
  summary: 'Revokes an API key at once.',
  usage: 'ID',
  flags: connectionFlags,
  positionals: [1, 1],
  async run({ flags, positionals }) {
    await withHints(flags, () => clientFor(flags).keys.revoke(positionals[0]!), { 404: 'hutch keys list' })
    if (flags.json) printJson({ revoked: positionals[0] })
    else print(positionals[0]!)
    return 0
  },
})
