import { clientFor, withHints } from './client.ts'
import { command, connectionFlags, UsageError } from './command.ts'
import { kindNamed, kinds } from './kinds.ts'
import { noteNext } from './next.ts'
import { print, printJson } from './output.ts'

export const fork = command({
  name: 'fork',
  summary: 'Makes a sandbox, or a revision of an application, of a sandbox as it is now.',
  usage: 'SANDBOX NEW',
  flags: {
    ...connectionFlags,
    type: {
      kind: 'text',
      value: 'TYPE',
      short: 't',
      about: 'what is made: sandbox or application (sandbox)',
    },
    traffic: { kind: 'number', value: 'PERCENT', about: "of an application's requests that it gets" },
    port: { kind: 'number', value: 'PORT', about: 'of an application where it listens; else one more port' },
    memory: { kind: 'number', value: 'MB', about: "memory (the sandbox's)" },
  },
  positionals: [2, 2],
  notes: ['For example: hutch fork box copy; hutch fork sbx/box app/web --port 3000'],
  async run({ flags, positionals }) {
    const from = typed(positionals[0] ?? '')
    const to = typed(positionals[1] ?? '')
    const type = to.type ?? flags.type ?? 'sandbox'
    if (from.type !== null && from.type !== 'sandbox')
      throw new UsageError('what is forked is a sandbox: sbx/NAME')
    if (type !== 'sandbox' && type !== 'application')
      throw new UsageError(`--type ${JSON.stringify(type)} is neither sandbox nor application`)
    const body = {
      targetName: to.name,
      targetType: type,
      ...(flags.traffic === undefined ? {} : { traffic: flags.traffic }),
      ...(flags.port === undefined ? {} : { port: flags.port }),
      ...(flags.memory === undefined ? {} : { memory: flags.memory }),
    }
    const { resource } = await withHints(
      flags,
      () => clientFor(flags).resources.create(`/sandboxes/${encodeURIComponent(from.name)}/fork`, body),
      { 404: 'hutch get sandboxes', 409: `hutch get ${type} ${to.name}` },
      { targetName: 'NEW', targetType: '--type', port: '--port', traffic: '--traffic', memory: '--memory' },
    )
    if (flags.json) printJson(resource)
    else {
      print(`${type}/${to.name}`)
      noteNext(`hutch get ${type} ${to.name}`, flags)
    }
    return 0
  },
})

/** `sbx/NAME`, `app/NAME` or `NAME`. */
function typed(word: string): { type: string | null; name: string } {
  const slash = word.indexOf('/')
  if (slash === -1) return { type: null, name: word }
  const kind = kindNamed(word.slice(0, slash), kinds)
  return { type: kind?.singular ?? word.slice(0, slash), name: word.slice(slash + 1) }
}
