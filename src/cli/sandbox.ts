import type { Resource } from '../client/index.ts'
import { clientFor, removeEach, withHints } from './client.ts'
import { command, connectionFlags, sameTarget } from './command.ts'
import { noteNext } from './next.ts'
import { age, note, print, printJson, table } from './output.ts'
import { pairs } from './pairs.ts'
import { describe } from './resource-output.ts'
import { spelled } from './shell.ts'

export const list = command({
  name: 'sandbox ls',
  summary: 'Lists the sandboxes of a workspace.',
  flags: connectionFlags,
  async run({ flags }) {
    const sandboxes = await withHints(flags, () => Array.fromAsync(clientFor(flags).sandboxes.list()))
    if (flags.json) {
      printJson(sandboxes)
      return 0
    }
    if (sandboxes.length === 0) {
      note(`no sandboxes; try: ${spelled(sameTarget('hutch sandbox create box', flags))}`)
      return 0
    }
    const rows = sandboxes.map((sandbox) => [
      sandbox.metadata.name,
      sandbox.status ?? '-',
      sandbox.state ?? '-',
      sandbox.spec.runtime?.image ?? '-',
      String(sandbox.spec.runtime?.memory ?? '-'),
      age(sandbox.metadata.createdAt),
    ])
    print(table(['NAME', 'STATUS', 'STATE', 'IMAGE', 'MEMORY MB', 'AGE'], rows))
    return 0
  },
})

export const get = command({
  name: 'sandbox get',
  summary: 'Shows one sandbox.',
  usage: 'NAME',
  flags: connectionFlags,
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const sandbox = await withHints(flags, () => clientFor(flags).sandboxes.get(positionals[0]!), {
      404: 'hutch sandbox ls',
    })
    if (flags.json) printJson(sandbox)
    else describe(sandbox as Resource)
    return 0
  },
})

export const create = command({
  name: 'sandbox create',
  summary: 'Creates a sandbox and waits until it runs.',
  usage: '[NAME]',
  flags: {
    ...connectionFlags,
    image: { kind: 'text', value: 'IMAGE', about: 'image to start from (blaxel/base-image:latest)' },
    memory: { kind: 'number', value: 'MB', about: 'memory; the processor share follows (4096)' },
    storage: { kind: 'number', value: 'MB', about: 'disk (half of the memory)' },
    env: { kind: 'list', value: 'NAME=VALUE', short: 'e', about: 'variable of its processes' },
    label: { kind: 'list', value: 'NAME=VALUE', short: 'l', about: 'label' },
    ttl: { kind: 'text', value: 'TIME', about: 'delete it after this time, e.g. 30m, 24h, 7d' },
    region: { kind: 'text', value: 'NAME', about: 'region to note in its record' },
    'if-not-exists': { kind: 'boolean', about: 'answer the existing one when the name is taken' },
  },
  positionals: [0, 1],
  async run({ flags, positionals }) {
    const [name] = positionals
    const sandbox = await withHints(
      flags,
      () =>
        clientFor(flags).sandboxes.create(
          {
            ...(name === undefined ? {} : { name }),
            ...(flags.image === undefined ? {} : { image: flags.image }),
            ...(flags.memory === undefined ? {} : { memoryMb: flags.memory }),
            ...(flags.storage === undefined ? {} : { storageMb: flags.storage }),
            ...(flags.ttl === undefined ? {} : { ttl: flags.ttl }),
            ...(flags.region === undefined ? {} : { region: flags.region }),
            labels: pairs('label', flags.label),
            env: pairs('env', flags.env),
          },
          { ifNotExists: flags['if-not-exists'] === true },
        ),
      { 409: `hutch sandbox create ${name ?? ''} --if-not-exists` },
      {
        'metadata.name': 'NAME',
        'metadata.labels': '--label',
        'spec.runtime.image': '--image',
        'spec.runtime.memory': '--memory',
        'spec.runtime.storageMb': '--storage',
        'spec.runtime.envs': '--env',
        'spec.runtime.ttl': '--ttl',
        'spec.region': '--region',
      },
    )
    if (flags.json) printJson(sandbox)
    else {
      print(sandbox.metadata.name)
      noteNext(`hutch sandbox exec ${sandbox.metadata.name} -- uname -a`, flags)
    }
    return 0
  },
})

export const archive = command({
  name: 'sandbox archive',
  summary: 'Packs the files of a sandbox away: they take less disk, and nothing runs in it until unarchive.',
  usage: 'NAME',
  flags: connectionFlags,
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const name = positionals[0]!
    const sandbox = await withHints(flags, () => clientFor(flags).sandboxes.archive(name), {
      404: 'hutch sandbox ls',
      409: `hutch sandbox get ${name}`,
    })
    if (flags.json) printJson(sandbox)
    else {
      print(name)
      noteNext(`hutch sandbox unarchive ${name}`, flags)
    }
    return 0
  },
})

export const unarchive = command({
  name: 'sandbox unarchive',
  summary: 'Starts an archived sandbox again, with the files it had.',
  usage: 'NAME',
  flags: connectionFlags,
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const name = positionals[0]!
    const sandbox = await withHints(flags, () => clientFor(flags).sandboxes.unarchive(name), {
      404: 'hutch sandbox ls',
      409: `hutch sandbox get ${name}`,
    })
    if (flags.json) printJson(sandbox)
    else {
      print(name)
      noteNext(`hutch sandbox exec ${name} -- ls`, flags)
    }
    return 0
  },
})

export const remove = command({
  name: 'sandbox rm',
  summary: 'Deletes sandboxes with everything in them.',
  usage: 'NAME...',
  flags: connectionFlags,
  positionals: [1, 1000],
  async run({ flags, positionals }) {
    const { sandboxes } = clientFor(flags)
    return await removeEach(flags, positionals, (name) => sandboxes.remove(name), 'hutch sandbox ls')
  },
})
