import { clientFor, withHints } from './client.ts'
import { command, connectionFlags, sameTarget } from './command.ts'
import { age, note, print, printJson, table } from './output.ts'
import { spelled } from './shell.ts'

export const list = command({
  name: 'workspaces list',
  summary: 'Lists the workspaces your key reaches.',
  flags: connectionFlags,
  async run({ flags }) {
    const workspaces = await withHints(flags, () => Array.fromAsync(clientFor(flags).workspaces.list()))
    if (flags.json) printJson(workspaces)
    else if (workspaces.length === 0) {
      const here = { 'data-dir': flags['data-dir'] }
      note(`no workspaces; try: ${spelled(sameTarget('hutch workspaces create main', here))}`)
    } else {
      const rows = workspaces.map((item) => [
        item.name,
        item.displayName ?? '-',
        item.status ?? '-',
        age(item.createdAt),
      ])
      print(table(['NAME', 'DISPLAY NAME', 'STATUS', 'AGE'], rows))
    }
    return 0
  },
})

export const create = command({
  name: 'workspaces create',
  summary: 'Creates a workspace; its name never changes.',
  usage: 'NAME',
  flags: { ...connectionFlags, 'display-name': { kind: 'text', value: 'TEXT', about: 'name for people' } },
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const created = await withHints(
      flags,
      () =>
        clientFor(flags).workspaces.create({
          name: positionals[0]!,
          ...(flags['display-name'] === undefined ? {} : { displayName: flags['display-name'] }),
        }),
      { 409: 'hutch workspaces list' },
      { name: 'NAME', displayName: '--display-name' },
    )
    if (flags.json) printJson(created)
    else print(created.name)
    return 0
  },
})

export const remove = command({
  name: 'workspaces rm',
  summary: 'Deletes a workspace, for good. One that still holds sandboxes is kept: delete them first.',
  usage: 'NAME',
  flags: { ...connectionFlags, force: { kind: 'boolean', about: 'even when it is the only one you reach' } },
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const name = positionals[0]!
    const here = { 'data-dir': flags['data-dir'] }
    const removal = () => clientFor(flags).workspaces.remove(name, { force: flags.force === true })
    await withHints(here, removal, {
      404: 'hutch workspaces list',
      409: `hutch sandbox ls --workspace ${name}`,
    })
    if (flags.json) printJson({ removed: name })
    else print(name)
    return 0
  },
})
