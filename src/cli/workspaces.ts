import { clientFor, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget } from './command.ts'
import { connectionFor, sourceOf } from './connection.ts'
import { isSame, readLogins, writeLogins } from './logins.ts'
import { age, note, print, printJson, table } from './output.ts'
import { shellQuote, spelled } from './shell.ts'

export const workspaces = command({
  name: 'workspaces',
  summary: 'Lists workspaces; with WORKSPACE, commands act in that one from then on.',
  usage: '[WORKSPACE]',
  flags: {
    ...connectionFlags,
    current: { kind: 'boolean', about: 'print the one that commands act in, and nothing else' },
  },
  notes: ['Besides: hutch workspaces create, hutch workspaces rm.'],
  positionals: [0, 1],
  async run({ flags, positionals }) {
    const [name] = positionals
    if (flags.current) {
      const { workspace } = connectionFor(flags)
      if (flags.json) printJson({ workspace })
      else print(workspace)
      return 0
    }
    if (name === undefined) return await list.run({ flags, positionals: [], rest: [] })
    const wanted = { ...flags, workspace: name }
    await withHints({ 'data-dir': flags['data-dir'] }, () => clientFor(wanted).workspaces.get(name), {
      404: 'hutch workspaces list',
    })
    choose(sourceOf(flags), name)
    if (flags.json) printJson({ workspace: name })
    else print(name)
    return 0
  },
})

function choose(source: ReturnType<typeof sourceOf>, name: string): void {
  const file = readLogins()
  switch (source.kind) {
    case 'variables':
      throw new CommandError('BL_WORKSPACE says which workspace', `export BL_WORKSPACE=${shellQuote(name)}`)
    case 'data-dir':
      writeLogins({ ...file, workspaces: { ...file.workspaces, [source.dataDir]: name } })
      return
    case 'login': {
      const { login } = source
      const there = file.logins.find((one) => one.apiUrl === login.apiUrl && one.workspace === name)
      const others = file.logins.filter((one) => !isSame(one, there ?? login))
      writeLogins({ ...file, logins: [there ?? { ...login, workspace: name }, ...others] })
    }
  }
}

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
      const current = connectionFor(flags).workspace
      const rows = workspaces.map((item) => [
        item.name,
        item.displayName ?? '-',
        item.status ?? '-',
        age(item.createdAt),
        item.name === current ? '*' : '',
      ])
      print(table(['NAME', 'DISPLAY NAME', 'STATUS', 'AGE', 'CURRENT'], rows))
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
