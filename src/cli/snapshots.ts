import type { ForkInfo, SnapshotInfo } from '../client/index.ts'
import { clientFor, removeEach, withHints } from './client.ts'
import { command, connectionFlags, sameTarget, type Target } from './command.ts'
import { noteNext } from './next.ts'
import { age, bytes, note, print, printJson, table } from './output.ts'
import { pairs } from './pairs.ts'
import { shellQuote, spelled } from './shell.ts'

const memory = [
  'Programs go on from there where this host keeps their memory (hutch doctor says so); else the commands that ran',
  'are started anew.',
]
const forkFlags = {
  ...connectionFlags,
  env: { kind: 'list', value: 'NAME=VALUE', short: 'e', about: 'variable, over what the other one had' },
  port: { kind: 'number', value: 'PORT', about: 'one more port' },
} as const

export const snapshot = command({
  name: 'sandbox snapshot',
  summary: 'Keeps the files of a sandbox as they are now, to go back to or to make others from.',
  usage: 'NAME [SNAPSHOT]',
  flags: connectionFlags,
  positionals: [1, 2],
  notes: ['SNAPSHOT: how it is to be called; else a name is made up.', ...memory],
  async run({ flags, positionals }) {
    const [sandbox = '', name] = positionals
    const taken = await withHints(
      flags,
      () => clientFor(flags).snapshots.create(sandbox, name === undefined ? {} : { name }),
      { 404: 'hutch sandbox ls', 409: `hutch snapshots ls --sandbox ${sandbox}` },
    )
    if (flags.json) printJson(taken)
    else {
      print(taken.id)
      noteNext(`hutch sandbox restore ${sandbox} ${shellQuote(taken.name)}`, flags)
    }
    return 0
  },
})

export const restore = command({
  name: 'sandbox restore',
  summary: 'Makes a sandbox what it was at one of its snapshots; what it held since is lost.',
  usage: 'NAME SNAPSHOT',
  flags: connectionFlags,
  positionals: [2, 2],
  notes: ['SNAPSHOT: its name or its id.', ...memory],
  async run({ flags, positionals }) {
    const [sandbox = '', snapshotName = ''] = positionals
    const answer = await withHints(flags, () => clientFor(flags).snapshots.restore(sandbox, snapshotName), {
      404: `hutch snapshots ls --sandbox ${sandbox}`,
    })
    if (flags.json) printJson(answer)
    else print(answer.name)
    return 0
  },
})

export const fork = command({
  name: 'sandbox fork',
  summary: 'Makes a new sandbox with the files of one as it is now, or of a snapshot of it.',
  usage: 'NAME NEW',
  flags: {
    ...forkFlags,
    snapshot: { kind: 'text', value: 'SNAPSHOT', about: 'from this snapshot of it, by name or id' },
  },
  positionals: [2, 2],
  notes: memory,
  async run({ flags, positionals }) {
    const [sandbox = '', target = ''] = positionals
    const { snapshot: from } = flags
    const source = { sandbox, ...(from === undefined ? {} : { snapshot: from }) }
    return await answerFork(flags, target, (options) =>
      clientFor(flags).snapshots.fork(source, target, options),
    )
  },
})

export const forkSnapshot = command({
  name: 'snapshots fork',
  summary: 'Makes a new sandbox from a snapshot, also of a sandbox that is gone.',
  usage: 'SNAPSHOT NEW',
  flags: forkFlags,
  positionals: [2, 2],
  notes: memory,
  async run({ flags, positionals }) {
    const [from = '', target = ''] = positionals
    return await answerFork(flags, target, (options) =>
      clientFor(flags).snapshots.fork({ snapshot: from }, target, options),
    )
  },
})

export const list = command({
  name: 'snapshots ls',
  summary: 'Lists the snapshots of a workspace, also those whose sandbox is gone.',
  flags: {
    ...connectionFlags,
    sandbox: { kind: 'text', value: 'NAME', about: 'only those of this sandbox' },
  },
  async run({ flags }) {
    const { sandbox } = flags
    const snapshots = await withHints(flags, async () => {
      const client = clientFor(flags).snapshots
      return sandbox === undefined ? await Array.fromAsync(client.list()) : await client.ofSandbox(sandbox)
    })
    if (flags.json) printJson(snapshots)
    else if (snapshots.length === 0) {
      note(`no snapshots; try: ${spelled(sameTarget(`hutch sandbox snapshot ${sandbox ?? 'box'}`, flags))}`)
    } else
      print(
        table(
          ['SNAPSHOT', 'NAME', 'SANDBOX', 'STATUS', 'SIZE', 'MEMORY', 'IMAGE', 'AGE'],
          snapshots.map(row),
        ),
      )
    return 0
  },
})

export const remove = command({
  name: 'snapshots rm',
  summary: 'Deletes snapshots; what was made from them stays.',
  usage: 'SNAPSHOT...',
  flags: connectionFlags,
  positionals: [1, 1000],
  async run({ flags, positionals }) {
    const { snapshots } = clientFor(flags)
    return await removeEach(flags, positionals, (id) => snapshots.remove(id), 'hutch snapshots ls')
  },
})

function row({ id, name, source, status, size, memoryKept, spec, createdAt }: SnapshotInfo): string[] {
  const from = source.deleted ? `${source.name} (gone)` : source.name
  const memory = memoryKept === undefined ? '-' : memoryKept ? 'kept' : 'not kept'
  const disk = size === undefined ? '-' : bytes(size)
  return [id, name, from, status, disk, memory, spec.image ?? '-', age(createdAt)]
}

async function answerFork(
  flags: Target & { env?: string[] | undefined; port?: number | undefined; json?: boolean | undefined },
  target: string,
  ask: (options: { env: Record<string, string>; port?: number }) => Promise<ForkInfo>,
): Promise<number> {
  const { port } = flags
  const options = { env: pairs('env', flags.env), ...(port === undefined ? {} : { port }) }
  const forked = await withHints(flags, () => ask(options), {
    404: 'hutch snapshots ls',
    409: `hutch sandbox get ${target}`,
  })
  if (flags.json) printJson(forked)
  else {
    print(forked.name)
    noteNext(`hutch sandbox exec ${forked.name} -- ls`, flags)
  }
  return 0
}
