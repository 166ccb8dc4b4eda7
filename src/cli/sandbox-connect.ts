import { openSandbox } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget } from './command.ts'
import { note } from './output.ts'

const closeNormal = 1000
/** It goes away, or is gone. */
const lostCodes = new Set([1001, 1006])
const colsDefault = 80
const rowsDefault = 24
/** A shell says something once it listens; what is typed before that may be thrown away. */
const firstWordMsMax = 2000
/** Ctrl-D, for an input that ends and is no terminal. */
const endOfFile = '\x04'

export const connect = command({
  name: 'sandbox connect',
  summary: 'Opens a terminal in a sandbox.',
  usage: 'NAME',
  flags: {
    ...connectionFlags,
    session: {
      kind: 'text',
      value: 'ID',
      about: 'share the shell of all who name the same session (default)',
    },
    shell: { kind: 'text', value: 'PATH', about: 'shell to start where the session is new' },
    workdir: { kind: 'text', value: 'DIR', about: 'directory to start it in' },
  },
  positionals: [1, 1],
  notes: [
    'The shell goes on for ten minutes after its last terminal is gone; the same command finds it again.',
  ],
  async run({ flags, positionals }) {
    const name = positionals[0]!
    const sandbox = await openSandbox(flags, name)
    const { stdin, stdout } = process
    const size = () => ({ cols: stdout.columns || colsDefault, rows: stdout.rows || rowsDefault })
    const errors: string[] = []
    const listens = Promise.withResolvers<void>()
    const firstWord = setTimeout(listens.resolve, firstWordMsMax)
    const terminal = sandbox.terminal({
      ...size(),
      ...(flags.session ? { sessionId: flags.session } : {}),
      ...(flags.shell ? { shell: flags.shell } : {}),
      ...(flags.workdir ? { workingDir: flags.workdir } : {}),
      onOutput(text) {
        stdout.write(text)
        listens.resolve()
      },
      onError: (message) => errors.push(message),
    })
    const resize = () => terminal.resize(size().cols, size().rows)
    const decoder = new TextDecoder()
    stdin.setRawMode?.(true)
    const type = (text: string) => void listens.promise.then(() => terminal.type(text))
    stdin.on('data', (bytes: Uint8Array) => type(decoder.decode(bytes, { stream: true })))
    stdin.on('end', () => type(endOfFile))
    stdout.on('resize', resize)
    try {
      const { code, reason } = await terminal.ended
      if (code === closeNormal) {
        if (stdout.isTTY) note(reason)
        return 0
      }
      const [error] = errors.slice(-1)
      if (error === undefined && lostCodes.has(code))
        throw new CommandError(
          'the connection to the platform was lost',
          sameTarget('hutch status', { 'data-dir': flags['data-dir'] }),
        )
      if (error === undefined) {
        const why = reason || `the connection was lost (${code})`
        throw new CommandError(why, sameTarget(`hutch sandbox get ${name}`, flags))
      }
      // Its image may have no such shell.
      const another = flags.shell === undefined ? ' --shell PATH' : ''
      throw new CommandError(error, sameTarget(`hutch sandbox connect ${name}${another}`, flags))
    } finally {
      clearTimeout(firstWord)
      stdin.setRawMode?.(false)
      stdin.pause()
      stdout.off('resize', resize)
    }
  },
})
