import { constants } from 'node:os'
import { ClientError, type Processes, type ProcessInfo } from '../client/index.ts'
import { defined } from '../lib/defined.ts'
import { randomText } from '../lib/ids.ts'
import { openSandbox, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget, UsageError } from './command.ts'
import { note, print, printable, printJson } from './output.ts'
import { pairs } from './pairs.ts'
import { processTable } from './processes.ts'
import { shellJoin, spelled } from './shell.ts'

/** Commands that shells have built in, of which some are no programs at all. */
const shellsOwn = new Set([
  ...[
    '.',
    ':',
    '[',
    'alias',
    'bg',
    'break',
    'builtin',
    'cd',
    'command',
    'continue',
    'declare',
    'dirs',
    'echo',
    'eval',
  ],
  ...[
    'exec',
    'exit',
    'export',
    'false',
    'fg',
    'getopts',
    'hash',
    'help',
    'history',
    'jobs',
    'kill',
    'let',
    'local',
  ],
  ...[
    'popd',
    'printf',
    'pushd',
    'pwd',
    'read',
    'readonly',
    'return',
    'set',
    'shift',
    'shopt',
    'source',
    'test',
    'times',
  ],
  ...['trap', 'true', 'type', 'typeset', 'ulimit', 'umask', 'unalias', 'unset', 'wait'],
])

export const exec = command({
  name: 'sandbox exec',
  summary:
    "Runs a command in a sandbox, prints its output as it appears, and exits with the command's exit code.",
  usage: 'NAME -- COMMAND [ARG...]',
  flags: {
    ...connectionFlags,
    workdir: { kind: 'text', value: 'DIR', about: 'directory to run in' },
    env: { kind: 'list', value: 'NAME=VALUE', short: 'e', about: 'variable of the command' },
    stdin: { kind: 'boolean', short: 'i', about: 'pass standard input to the command' },
    detach: { kind: 'boolean', short: 'd', about: 'print the name of the process instead of waiting for it' },
    'keep-alive': { kind: 'boolean', about: 'keep the sandbox awake for as long as the command runs' },
  },
  positionals: [1, 1],
  takesRest: true,
  notes: [
    'Ctrl-C asks the command to end (SIGTERM), a second one kills it.',
    'Every ARG reaches the command as it is. For a pipeline: hutch sandbox exec box -- sh -c "ls | wc -l"',
  ],
  async run({ flags, positionals, rest }) {
    if (rest.length === 0)
      throw new UsageError('no command; usage: hutch sandbox exec NAME -- COMMAND [ARG...]')
    if (flags.detach && flags.stdin) throw new UsageError('--stdin is for a command that is waited for')
    const env = pairs('env', flags.env)
    return await withHints(
      flags,
      async () => {
        const { processes, info } = await openSandbox(flags, positionals[0]!)
        const name = `exec-${randomText(12)}`
        const request = {
          name,
          stdin: flags.stdin === true,
          command: commandLine(rest),
          env,
          ...(flags.workdir ? { workingDir: flags.workdir } : {}),
          // 0: for as long as it runs, however long that is.
          ...(flags['keep-alive'] ? { keepAlive: true, timeout: 0 } : {}),
        }
        if (flags.detach) {
          const started = await processes.start(request)
          if (flags.json) printJson(started)
          else {
            print(name)
            note(
              `its output: ${spelled(sameTarget(`hutch sandbox logs ${positionals[0]} ${name} -f`, flags))}`,
            )
          }
          return 0
        }
        const interruption = new Interruption({
          stop: () => processes.stop(name),
          kill: () => processes.kill(name),
        })
        const input = new AbortController()
        const output = { stdout: '', stderr: '' }
        try {
          const feed = () => {
            if (flags.stdin) void passStdin(processes, name, input.signal)
          }
          for await (const event of processes.exec(request, feed)) {
            if (event.type === 'result') {
              const { process: ended } = event
              const { exitCode: code, status, signal, outOfMemory } = ended
              if (flags.json) {
                printJson({ ...output, exitCode: code, status, ...defined({ signal, outOfMemory }) })
              } else if (outOfMemory) {
                const { memory } = info.spec.runtime ?? {}
                note(`ended for want of memory: the sandbox has ${memory} MB (hutch sandbox create --memory)`)
              } else if (signal !== undefined && interruption.exitCode === null) {
                note(`ended by ${signalNames.get(signal) ?? `signal ${signal}`}`)
              }
              return exitCode(ended, interruption.exitCode)
            }
            if (flags.json) output[event.type] += asText(event.data)
            else await write(event.type === 'stdout' ? process.stdout : process.stderr, event.data)
          }
        } finally {
          interruption[Symbol.dispose]()
          // A terminal that nobody types into must not keep us.
          input.abort()
        }
        throw new CommandError('the platform ended the stream before the command did', 'hutch status')
      },
      { 404: 'hutch sandbox ls' },
    )
  },
})

export const logs = command({
  name: 'sandbox logs',
  summary: "Prints a process's output; without PROCESS, lists the processes.",
  usage: 'NAME [PROCESS]',
  flags: {
    ...connectionFlags,
    follow: { kind: 'boolean', short: 'f', about: 'go on until the process ends' },
  },
  positionals: [1, 2],
  async run({ flags, positionals }) {
    const [name, id] = positionals as [string, string | undefined]
    return await withHints(
      flags,
      async () => {
        const { processes, info } = await openSandbox(flags, name)
        if (id === undefined) {
          const all = await processes.list()
          if (flags.json) printJson(all)
          else {
            processTable(all)
            // The program of its image is no process when it could not be started.
            const trouble = info.events?.findLast(({ type }) => type === 'instance')?.message
            if (all.length === 0 && trouble) note(printable(trouble))
          }
          return 0
        }
        // An unknown process answers 404 here; the stream's headers would already have said 200.
        await processes.get(id)
        if (flags.follow) {
          for await (const { type, data } of processes.follow(id)) {
            if (flags.json) process.stdout.write(`${JSON.stringify({ stream: type, data: asText(data) })}\n`)
            else await write(process[type], data)
          }
          return 0
        }
        const output = await processes.logs(id)
        if (flags.json) printJson({ stdout: output.stdout, stderr: output.stderr })
        else {
          await write(process.stdout, output.stdout)
          await write(process.stderr, output.stderr)
        }
        return 0
      },
      { 404: `hutch sandbox logs ${name}` },
    )
  },
})

/**
 * For the shell that runs it, whose place a program takes: what the program is told to do, and how it ends, is then its own.
 * What a shell does itself stays with it.
 */
export function commandLine(words: string[]): string {
  const [program = ''] = words
  const isProgram = /^[\w./+-]+$/.test(program) && !shellsOwn.has(program)
  return `${isProgram ? 'exec ' : ''}${shellJoin(words)}`
}

/** The command's own. Where a signal ended it, 128 and that, as shells have it: the one that we got, if it was passed on. */
export function exitCode(
  { exitCode: code, status, signal }: Pick<ProcessInfo, 'exitCode' | 'status' | 'signal'>,
  interrupted: number | null = null,
): number {
  if (code >= 0) return code & 0xff
  if (interrupted !== null) return interrupted
  if (signal !== undefined) return 128 + signal
  if (status === 'killed') return 128 + constants.signals.SIGKILL
  return status === 'stopped' ? 128 + constants.signals.SIGTERM : 255
}

const signalNames = new Map(Object.entries(constants.signals).map(([name, number]) => [number, name]))

/** Until the end of our input, or until the command no longer takes any: then it has ended, which is no failure. */
async function passStdin(processes: Processes, name: string, ended: AbortSignal): Promise<void> {
  const reader = Bun.stdin.stream().getReader()
  ended.addEventListener('abort', () => void reader.cancel().catch(() => {}), { once: true })
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (ended.aborted) return
      if (done) break
      await processes.writeStdin(name, value)
    }
    await processes.closeStdin(name)
  } catch (error) {
    if (!(error instanceof ClientError && [404, 409].includes(error.status))) {
      note(`standard input was cut off: ${(error as Error).message}`)
    }
  }
}

/**
 * The first Ctrl-C asks the command inside to end, whose end then ends us; the second one kills it. A reader of our
 * output that went away (`| head -1`) kills it too: nobody would ever see or stop it.
 */
class Interruption implements Disposable {
  /** What we exit with once asked to stop, as a shell reports it. */
  exitCode: number | null = null

  constructor(private readonly command: { stop: () => Promise<void>; kill: () => Promise<void> }) {
    process.on('SIGINT', this.#interrupted)
    process.on('SIGTERM', this.#terminated)
    process.stdout.on('error', this.#unread)
  }

  readonly #interrupted = () => this.#stop(128 + 2)
  readonly #terminated = () => this.#stop(128 + 15)

  readonly #unread = () => {
    const leave = () => process.exit(128 + 13)
    this.command.kill().then(leave, leave)
  }

  #stop(exitCode: number): void {
    const leave = () => process.exit(exitCode)
    if (this.exitCode !== null) {
      this.command.kill().then(leave, leave)
      return
    }
    this.exitCode = exitCode
    note('asking the command to end; Ctrl-C once more kills it')
    this.command.stop().catch(leave)
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#interrupted)
    process.off('SIGTERM', this.#terminated)
    process.stdout.off('error', this.#unread)
  }
}

/** Waits for a slow reader instead of keeping its output in memory. */
async function write(stream: NodeJS.WriteStream, data: string | Uint8Array): Promise<void> {
  if (data.length > 0 && !stream.write(data)) await new Promise((resolve) => stream.once('drain', resolve))
}

function asText(data: string | Uint8Array): string {
  return typeof data === 'string' ? data : new TextDecoder().decode(data)
}
