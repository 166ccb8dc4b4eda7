import {
  type Command,
  CommandError,
  connectionFlags,
  helpText,
  parseArguments,
  type Target,
  UsageError,
} from './cli/command.ts'
import { failureMessage } from './cli/failure.ts'
import { note, paint, print } from './cli/output.ts'
import { shellJoin, spelled } from './cli/shell.ts'
import { nearest } from './lib/nearest.ts'

/** A command's module is loaded when it runs: `hutch env` must not wait for the platform's code. */
interface Entry {
  summary: string
  load(): Promise<Command>
}

const commands: Record<string, Entry> = {
  up: { summary: 'start the platform', load: async () => (await import('./cli/up.ts')).up },
  env: {
    summary: 'print the variables that point a client at it',
    load: async () => (await import('./cli/env.ts')).env,
  },
  status: {
    summary: 'say whether it runs, and what it holds',
    load: async () => (await import('./cli/status.ts')).status,
  },
  doctor: {
    summary: 'say what is possible on this host',
    load: async () => (await import('./cli/doctor.ts')).doctor,
  },
  new: {
    summary: 'make a folder with a small project',
    load: async () => (await import('./cli/new.ts')).newProject,
  },
  serve: {
    summary: 'run a project on this machine',
    load: async () => (await import('./cli/serve.ts')).serve,
  },
  deploy: {
    summary: 'build the code of a folder and serve it',
    load: async () => (await import('./cli/deploy.ts')).deploy,
  },
  push: {
    summary: 'build an image of the code of a folder',
    load: async () => (await import('./cli/push.ts')).push,
  },
  run: { summary: 'make a request to what is served', load: async () => (await import('./cli/run.ts')).run },
  chat: { summary: 'talk with an agent', load: async () => (await import('./cli/chat.ts')).chat },
  logs: {
    summary: 'print what programs and builds say',
    load: async () => (await import('./cli/logs.ts')).logs,
  },
  get: { summary: 'list resources, or show one', load: async () => (await import('./cli/get.ts')).get },
  apply: {
    summary: 'make resources be what manifests say',
    load: async () => (await import('./cli/apply.ts')).apply,
  },
  delete: { summary: 'delete resources', load: async () => (await import('./cli/delete.ts')).remove },
  login: { summary: 'log in to a platform', load: async () => (await import('./cli/login.ts')).login },
  logout: { summary: 'forget a login', load: async () => (await import('./cli/login.ts')).logout },
  token: {
    summary: 'print what commands authenticate with',
    load: async () => (await import('./cli/token.ts')).token,
  },
  rollback: {
    summary: 'lead all requests back to an earlier revision',
    load: async () => (await import('./cli/traffic.ts')).rollback,
  },
  traffic: {
    summary: 'lead requests to a revision, such as an earlier one',
    load: async () => (await import('./cli/traffic.ts')).traffic,
  },
  'executions cancel': {
    summary: 'stop executions',
    load: async () => (await import('./cli/executions.ts')).cancel,
  },
  'executions replay': {
    summary: 'do once more what executions were to do',
    load: async () => (await import('./cli/executions.ts')).replay,
  },
  'executions metrics': {
    summary: 'say how much waits, runs and was done',
    load: async () => (await import('./cli/executions.ts')).metrics,
  },
  'triggers ls': {
    summary: 'list what triggers a deployment',
    load: async () => (await import('./cli/triggers.ts')).list,
  },
  'triggers add': {
    summary: 'add a trigger to a deployment',
    load: async () => (await import('./cli/triggers.ts')).add,
  },
  'triggers edit': {
    summary: 'change a trigger',
    load: async () => (await import('./cli/triggers.ts')).edit,
  },
  'triggers enable': {
    summary: 'switch a trigger on',
    load: async () => (await import('./cli/triggers.ts')).enable,
  },
  'triggers disable': {
    summary: 'switch a trigger off',
    load: async () => (await import('./cli/triggers.ts')).disable,
  },
  'triggers rotate': {
    summary: 'give the callbacks of a trigger a new secret',
    load: async () => (await import('./cli/triggers.ts')).rotate,
  },
  'triggers rm': {
    summary: 'delete triggers',
    load: async () => (await import('./cli/triggers.ts')).remove,
  },
  'deliveries ls': {
    summary: 'list callbacks',
    load: async () => (await import('./cli/deliveries.ts')).list,
  },
  'deliveries get': {
    summary: 'show a callback and its attempts',
    load: async () => (await import('./cli/deliveries.ts')).get,
  },
  'deliveries redeliver': {
    summary: 'send callbacks once more',
    load: async () => (await import('./cli/deliveries.ts')).redeliver,
  },
  'connect sandbox': {
    summary: 'open a terminal in a sandbox',
    load: async () => (await import('./cli/sandbox-connect.ts')).connect,
  },
  fork: {
    summary: 'make a sandbox or an application of a sandbox',
    load: async () => (await import('./cli/fork.ts')).fork,
  },
  'share image': {
    summary: 'share an image with another workspace',
    load: async () => (await import('./cli/share.ts')).share,
  },
  'unshare image': {
    summary: 'take a shared image back',
    load: async () => (await import('./cli/share.ts')).unshare,
  },
  'sandbox ls': { summary: 'list sandboxes', load: async () => (await import('./cli/sandbox.ts')).list },
  'sandbox get': { summary: 'show one sandbox', load: async () => (await import('./cli/sandbox.ts')).get },
  'sandbox create': {
    summary: 'create a sandbox',
    load: async () => (await import('./cli/sandbox.ts')).create,
  },
  'sandbox exec': {
    summary: 'run a command in a sandbox',
    load: async () => (await import('./cli/sandbox-exec.ts')).exec,
  },
  'sandbox connect': {
    summary: 'open a terminal in a sandbox',
    load: async () => (await import('./cli/sandbox-connect.ts')).connect,
  },
  'sandbox cp': {
    summary: 'copy files to or from a sandbox',
    load: async () => (await import('./cli/sandbox-cp.ts')).cp,
  },
  'sandbox logs': {
    summary: "print a process's output",
    load: async () => (await import('./cli/sandbox-exec.ts')).logs,
  },
  'sandbox snapshot': {
    summary: 'keep the files of a sandbox as they are',
    load: async () => (await import('./cli/snapshots.ts')).snapshot,
  },
  'sandbox restore': {
    summary: 'make a sandbox what it was at a snapshot',
    load: async () => (await import('./cli/snapshots.ts')).restore,
  },
  'sandbox fork': {
    summary: 'make a new sandbox from another',
    load: async () => (await import('./cli/snapshots.ts')).fork,
  },
  'sandbox archive': {
    summary: 'pack the files of a sandbox away',
    load: async () => (await import('./cli/sandbox.ts')).archive,
  },
  'sandbox unarchive': {
    summary: 'start an archived sandbox again',
    load: async () => (await import('./cli/sandbox.ts')).unarchive,
  },
  'sandbox rm': { summary: 'delete sandboxes', load: async () => (await import('./cli/sandbox.ts')).remove },
  'snapshots ls': { summary: 'list snapshots', load: async () => (await import('./cli/snapshots.ts')).list },
  'snapshots fork': {
    summary: 'make a new sandbox from a snapshot',
    load: async () => (await import('./cli/snapshots.ts')).forkSnapshot,
  },
  'snapshots rm': {
    summary: 'delete snapshots',
    load: async () => (await import('./cli/snapshots.ts')).remove,
  },
  'images ls': { summary: 'list images', load: async () => (await import('./cli/images.ts')).list },
  'images pull': {
    summary: 'pull an image from a registry',
    load: async () => (await import('./cli/images.ts')).pull,
  },
  'images import': {
    summary: 'take in an image from a file',
    load: async () => (await import('./cli/images.ts')).importImage,
  },
  'images rm': { summary: 'delete images', load: async () => (await import('./cli/images.ts')).remove },
  'images login': {
    summary: 'keep credentials for a registry',
    load: async () => (await import('./cli/images.ts')).login,
  },
  'images logout': {
    summary: 'forget credentials for a registry',
    load: async () => (await import('./cli/images.ts')).logout,
  },
  'keys create': { summary: 'create an API key', load: async () => (await import('./cli/keys.ts')).create },
  'keys list': { summary: 'list API keys', load: async () => (await import('./cli/keys.ts')).list },
  'keys revoke': { summary: 'revoke an API key', load: async () => (await import('./cli/keys.ts')).revoke },
  workspaces: {
    summary: 'choose the workspace that commands act in',
    load: async () => (await import('./cli/workspaces.ts')).workspaces,
  },
  'workspaces list': {
    summary: 'list workspaces',
    load: async () => (await import('./cli/workspaces.ts')).list,
  },
  'workspaces create': {
    summary: 'create a workspace',
    load: async () => (await import('./cli/workspaces.ts')).create,
  },
  'workspaces rm': {
    summary: 'delete a workspace',
    load: async () => (await import('./cli/workspaces.ts')).remove,
  },
  systemd: { summary: 'print a systemd unit', load: async () => (await import('./cli/systemd.ts')).systemd },
  version: {
    summary: 'print the version',
    load: async () => (await import('./cli/version.ts')).versionCommand,
  },
}

const aliases: Record<string, string> = {
  'sandbox list': 'sandbox ls',
  keys: 'keys list',
  'keys ls': 'keys list',
  'workspaces ls': 'workspaces list',
  'images list': 'images ls',
  images: 'images ls',
  sandboxes: 'sandbox ls',
  'snapshots list': 'snapshots ls',
  snapshots: 'snapshots ls',
  'connect sbx': 'sandbox connect',
  '--version': 'version',
  '-v': 'version',
}

/** Other words for the first one. */
const firstWords: Record<string, string> = { workspace: 'workspaces', ws: 'workspaces' }

const exitCodes = { failure: 1, usage: 2 }

async function main(argv: string[]): Promise<number> {
  const [first] = argv
  if (first === undefined || first === 'help' || first === '--help' || first === '-h') {
    const topic = first === 'help' ? argv.slice(1) : []
    if (topic.length > 0) return await main([...topic, '--help'])
    print(overview())
    return first === undefined ? exitCodes.usage : 0
  }
  const found = findCommand(argv)
  if (!found) {
    const group = overview(first)
    if (group && (argv.length === 1 || argv[1]?.startsWith('-'))) {
      print(group)
      return argv.includes('--help') || argv.includes('-h') ? 0 : exitCodes.usage
    }
    throw new UsageError(unknownCommand(argv))
  }
  const definition = await commands[found.name]!.load()
  const { help, ...input } = parseArguments(definition, found.rest)
  if (help) {
    process.stdout.write(helpText(definition))
    return 0
  }
  if (definition.flags.workspace === connectionFlags.workspace) {
    await (await import('./cli/connection.ts')).renewLogin(input.flags as Target)
  }
  return await definition.run(input)
}

function findCommand([first = '', ...others]: string[]): { name: string; rest: string[] } | null {
  const argv = [Object.hasOwn(firstWords, first) ? firstWords[first]! : first, ...others]
  for (const words of [2, 1]) {
    if (argv.length < words) continue
    const spelled = argv.slice(0, words).join(' ')
    const name = Object.hasOwn(aliases, spelled) ? aliases[spelled]! : spelled
    // An alias of one word must not swallow a mistyped second one.
    const second = argv[words]
    if (name !== spelled && words === 1 && second !== undefined && !second.startsWith('-')) return null
    // Nor hide the others of its group from who asks what there is.
    if (name !== spelled && words === 1 && ['--help', '-h'].includes(second ?? '') && overview(spelled))
      return null
    if (Object.hasOwn(commands, name)) return { name, rest: argv.slice(words) }
  }
  return null
}

function unknownCommand(argv: string[]): string {
  const words = argv.slice(0, 2).filter((word) => !word.startsWith('-'))
  if (words.length === 0 || argv[0]?.startsWith('-'))
    return `a command comes first, then its flags: not ${argv[0]}`
  const group = Object.keys(commands).filter((name) => name.startsWith(`${words[0]} `))
  if (group.length > 0) {
    const within = group.map((name) => name.slice(`${words[0]} `.length))
    const near = nearest(words[1] ?? '', within)
    const meant = near ? `did you mean hutch ${words[0]} ${near}? ` : ''
    return `unknown command ${words.join(' ')}; ${meant}hutch ${words[0]} has ${within.join(', ')}`
  }
  const guess =
    nearest(words.join(' '), Object.keys(commands)) ??
    nearest(words[0] ?? '', Object.keys(commands)) ??
    Object.keys(commands).find((name) => name === `sandbox ${words[0]}`)
  const meant = guess ? `; did you mean hutch ${guess}?` : ''
  return `unknown command ${words.join(' ')}${meant}`
}

/** All commands, or those of one group; '' when there is no such group. */
function overview(group?: string): string {
  const names = Object.keys(commands).filter((name) => !group || name.startsWith(`${group} `))
  if (names.length === 0) return ''
  const width = Math.max(...names.map((name) => name.length))
  const lines = names.map((name) => `  ${name.padEnd(width)}  ${commands[name]!.summary}`)
  const head = group ? `hutch ${group}` : 'hutch: the agent cloud in one executable'
  const usage = `hutch ${group ? `${group} ` : ''}COMMAND`
  return [head, '', `Usage: ${usage} [flags]`, '', ...lines, '', `${usage} --help says more.`].join('\n')
}

function report(error: unknown, argv: string[]): number {
  const own = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv
  if (own.includes('--json')) return reportJson(error, argv)
  const red = (text: string) => paint('red', text, process.stderr)
  if (error instanceof UsageError) {
    note(`${red('error:')} ${error.message}`)
    const found = findCommand(argv)
    note(`try:   ${spelled(`hutch ${found ? `${found.name} --help` : 'help'}`)}`)
    return exitCodes.usage
  }
  const inFull = process.env.HUTCH_LOG_LEVEL === 'debug' || own.includes('--verbose') || own.includes('-v')
  if (error instanceof CommandError) {
    note(`${red('error:')} ${error.message}`)
    if (error.hint) note(`try:   ${spelled(error.hint)}`)
    if (inFull) note(String(error.stack))
    return exitCodes.failure
  }
  const { code } = error as { code?: string }
  note(`${red('error:')} ${failureMessage(error)}`)
  if (code === 'EACCES') note(`try:   sudo ${spelled(`hutch ${shellJoin(argv)}`)}`)
  else if (inFull) note(String((error as Error).stack))
  return exitCodes.failure
}

/** For programs: `{"error": {"message", "try"?}}`, on stderr as the words are. */
function reportJson(error: unknown, argv: string[]): number {
  const usage = error instanceof UsageError
  const found = usage ? findCommand(argv) : null
  const hint = usage
    ? `hutch ${found ? `${found.name} --help` : 'help'}`
    : error instanceof CommandError
      ? error.hint
      : undefined
  const message = usage || error instanceof CommandError ? (error as Error).message : failureMessage(error)
  note(JSON.stringify({ error: { message, ...(hint ? { try: spelled(hint) } : {}) } }))
  return usage ? exitCodes.usage : exitCodes.failure
}

// A reader that went away (`hutch sandbox ls | head -1`) is no failure of ours.
process.stdout.on('error', (error: { code?: string }) => {
  // A command that has something to end first listens itself.
  if (process.stdout.listenerCount('error') === 1) process.exit(error.code === 'EPIPE' ? 0 : 1)
})

const argv = process.argv.slice(2)
const code = await main(argv).catch((error: unknown) => report(error, argv))
process.exitCode = code
