import { dataDirDefault, isDataDirDefault } from '../data-directory.ts'
import { PlatformError } from '../errors.ts'
import { releaseProgramPages } from '../lib/program-pages.ts'
import type { Platform } from '../platform.ts'
import { CommandError, command, UsageError } from './command.ts'
import { failureMessage } from './failure.ts'
import { note, paint, print, printJson } from './output.ts'
import { shellQuote, spelled } from './shell.ts'

/** By then what a start needs is done. */
const startedAfterMs = 1000

export const up = command({
  name: 'up',
  summary: 'Starts the platform and prints one line `ready http://HOST:PORT` when it answers.',
  flags: {
    port: { kind: 'text', value: 'PORT', about: 'port to listen on; 0: any free one (4400)' },
    host: { kind: 'text', value: 'ADDR', about: 'address to listen on (127.0.0.1 and ::1)' },
    'data-dir': {
      kind: 'text',
      value: 'DIR',
      about: `where everything is kept (${process.getuid?.() === 0 ? dataDirDefault() : '~/.local/share/hutch'})`,
    },
    region: {
      kind: 'text',
      value: 'NAME',
      about: 'region of sandboxes whose client names none, in answers and BL_REGION (none)',
    },
    url: {
      kind: 'text',
      value: 'URL',
      about: 'address clients use, when a proxy stands before the platform',
    },
    domain: {
      kind: 'list',
      value: 'NAME',
      about: 'name under which it and its previews are reached (localhost)',
    },
    runtime: {
      kind: 'text',
      value: 'NAME',
      about: 'namespace, or process: no isolation, for development only (namespace)',
    },
    'keep-instances': { kind: 'boolean', about: 'leave sandboxes running when the platform stops' },
    criu: {
      kind: 'text',
      value: 'PATH',
      about:
        'static CRIU that keeps memory in snapshots, or none (/usr/local/lib/hutch/criu, if it is there)',
    },
    'image-dir': { kind: 'text', value: 'DIR', about: 'where images made from this host are kept' },
    'image-source': { kind: 'text', value: 'HOW', about: 'auto, reflink, link, copy or live (auto)' },
    'image-local': { kind: 'boolean', about: 'default images have /usr/local of this host too' },
    registry: {
      kind: 'list',
      value: 'HOST',
      about: 'registry that images may be pulled from, instead of the well-known public ones',
    },
    'registry-auth-file': {
      kind: 'text',
      value: 'FILE',
      about: "credentials for registries, as in Docker's config.json",
    },
    'image-mb-max': { kind: 'text', value: 'MB', about: 'what one image may have, unpacked (16384)' },
    'trusted-proxies': {
      kind: 'list',
      value: 'RANGE',
      about: 'address or range whose forwarded headers count',
    },
    'private-targets': {
      kind: 'list',
      value: 'RANGE',
      about: "address or range, not public, that the platform's own requests may go to",
    },
    'egress-allow': {
      kind: 'list',
      value: 'TARGET',
      about: 'private address, range or name, with a port or not, that sandboxes may reach',
    },
    'package-settings': {
      kind: 'text',
      value: 'WHOSE',
      about: "host: sandboxes use this host's package registries and certificates; or none (host)",
    },
    'keyless-workspace': {
      kind: 'text',
      value: 'NAME',
      about: 'where programs of this host may use the AgentField API without a key',
    },
    'agentfield-sync-seconds': {
      kind: 'text',
      value: 'SECONDS',
      about: 'how long a call by the AgentField API waits for its result (90)',
    },
    'agentfield-async-seconds': {
      kind: 'text',
      value: 'SECONDS',
      about: 'after how long without a word an AgentField execution is given up (3600)',
    },
    'agentfield-node-max': {
      kind: 'text',
      value: 'COUNT',
      about: 'executions that one AgentField node works on at once (0: as many as come)',
    },
    'platform-door': { kind: 'boolean', about: 'sandboxes reach the platform at http://hutch.internal' },
    'log-level': { kind: 'text', value: 'LEVEL', about: 'debug, info, warn or error (info)' },
    'log-format': { kind: 'text', value: 'FORMAT', about: 'text or json (text)' },
    'sandboxes-max': { kind: 'text', value: 'N', about: 'sandboxes in the whole platform (1000)' },
    'sandbox-memory-mb-max': { kind: 'text', value: 'MB', about: 'memory one sandbox may ask for (65536)' },
    'standby-after-seconds': {
      kind: 'text',
      value: 'N',
      about: 'idle until a sandbox is frozen; 0: never (15)',
    },
    'reclaim-after-seconds': {
      kind: 'text',
      value: 'N',
      about: 'frozen until its memory is given back; 0: never (300)',
    },
    'scale-to-zero-after-seconds': {
      kind: 'text',
      value: 'N',
      about: 'idle until an instance of something deployed is removed; 0: never (300)',
    },
    'idle-connection-seconds': {
      kind: 'text',
      value: 'N',
      about: 'silence until an open WebSocket keeps no sandbox awake; 0: it always does (900)',
    },
    'executions-waiting-max': {
      kind: 'text',
      value: 'N',
      about: 'executions of one kind that may wait (1000000)',
    },
    'executions-mb-max': {
      kind: 'text',
      value: 'N',
      about: 'MiB that executions may take on disk (4096)',
    },
    'executions-kept-days': {
      kind: 'text',
      value: 'N',
      about: 'days that executions are kept once they ended (7)',
    },
    'executions-kept-max': {
      kind: 'text',
      value: 'N',
      about: 'ended executions that are kept of a workspace (100000)',
    },
    'job-tasks-max': { kind: 'text', value: 'N', about: 'tasks of jobs that run at once (32)' },
    config: { kind: 'text', value: 'FILE', about: 'settings in TOML (hutch.toml in the data directory)' },
  },
  notes: [
    'Every setting is also a variable (HUTCH_PORT, HUTCH_DATA_DIR, ...) and a key of the file (port, dataDir, ...).',
    'The environment wins over the file, a flag over both.',
    'SIGTERM and Ctrl-C stop sandboxes, keep their files, and start them again at the next up.',
  ],
  async run({ flags }) {
    const stop = stopSignal()
    const [{ configKeys, flagOf, loadConfig }, { createPlatform }] = await Promise.all([
      import('../config.ts'),
      import('../platform.ts'),
    ])
    const given: Record<string, string | string[] | boolean | undefined> = flags
    const config = await asUsage(() =>
      loadConfig({
        ...(flags.config === undefined ? {} : { file: flags.config }),
        env: process.env,
        flags: Object.fromEntries(configKeys.map((key) => [key, given[flagOf(key)]])),
      }),
    )
    const at = isDataDirDefault(config.dataDir) ? '' : ` --data-dir ${shellQuote(config.dataDir)}`
    const refuse = (error: unknown): never => {
      throw refusalToStart(error, config.dataDir, at)
    }
    const platform = await createPlatform(config).catch(refuse)
    try {
      const { url, port } = await platform.listen().catch(refuse)
      warn(platform.runtime.capabilities)
      warnOfOpenHosts(config.hosts)
      if (flags.json) printJson({ ready: url, port, pid: process.pid, dataDir: config.dataDir })
      else print(`ready ${url}`)
      if (!stop.signal.aborted) nextSteps(at, config.keepInstances)
      setTimeout(releaseProgramPages, startedAfterMs).unref()
      await stop.received
    } finally {
      await platform.close({ keepInstances: config.keepInstances })
    }
    // Nothing is left to do; a forgotten timer must not hold the process.
    process.exit(0)
  },
})

/** The first SIGTERM or SIGINT asks to stop; a second one leaves at once, and sandboxes as they are. */
function stopSignal(): { signal: AbortSignal; received: Promise<void> } {
  const controller = new AbortController()
  const { promise, resolve } = Promise.withResolvers<void>()
  const onSignal = (name: NodeJS.Signals) => {
    if (controller.signal.aborted) {
      note('stopped at once; sandboxes that still run are found again by the next hutch up')
      process.exit(1)
    }
    note(`${name}: stopping (once more: at once)`)
    controller.abort()
    resolve()
  }
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
  // A window that is closed is a Ctrl-C; under nohup, which takes the terminal away, the signal is none of ours.
  if (process.stdin.isTTY) {
    process.on('SIGHUP', onSignal)
    process.stderr.on('error', () => {})
  }
  return { signal: controller.signal, received: promise }
}

async function asUsage<Value>(load: () => Value): Promise<Value> {
  try {
    return load()
  } catch (error) {
    if (PlatformError.is(error) && error.code === 'bad_request') throw new UsageError(error.message)
    throw error
  }
}

function refusalToStart(error: unknown, dataDir: string, at: string): unknown {
  if (!PlatformError.is(error)) {
    const { code, path } = error as { code?: string; path?: string }
    if (code === 'ENOSPC' || code === 'EDQUOT') {
      return new CommandError(`there is no disk left to start in ${dataDir}`, `df -h ${shellQuote(dataDir)}`)
    }
    if (path !== dataDir && !path?.startsWith(`${dataDir}/`)) return error
    return new CommandError(
      `the data directory cannot be used: ${failureMessage(error)}`,
      'hutch up --data-dir DIR',
    )
  }
  // Raised by listening: the data directory is ours by then.
  if (/^port /i.test(error.message)) return new CommandError(error.message, `hutch up --port 0${at}`)
  if (error.code === 'conflict' || error.code === 'already_exists') {
    return new CommandError(error.message, `hutch status${at}`)
  }
  if (error.code === 'unavailable') return new CommandError(error.message, 'hutch doctor')
  return new CommandError(error.message)
}

/** What a sandbox here is not protected by, said at every start and not only to those who ask `hutch doctor`. */
function warn({ isolation, limits }: Platform['runtime']['capabilities']): void {
  const yellow = (text: string) => paint('yellow', text, process.stderr)
  if (isolation === 'none') {
    note(
      `${yellow('warning:')} no isolation: code in a sandbox is an ordinary program of this user. For development only.`,
    )
    return
  }
  const missing = Object.entries(limits).flatMap(([name, how]) => (how === 'none' ? [name] : []))
  if (missing.length === 0) return
  note(
    `${yellow('warning:')} no limit here for ${missing.join(', ')}; ${spelled('hutch doctor')} says what to do`,
  )
}

function warnOfOpenHosts(hosts: string[]): void {
  const open = hosts.filter((host) => !/^(127\.|::1$)/.test(host))
  if (open.length === 0) return
  note(
    `${paint('yellow', 'warning:', process.stderr)} listening on ${open.join(', ')} without TLS: keys and files ` +
      'can be read on the way; put a proxy with TLS before it (--url, --trusted-proxies)',
  )
}

function nextSteps(at: string, keepInstances: boolean): void {
  const dim = (text: string) => paint('dim', text, process.stderr)
  const steps: [line: string, about: string][] = [
    [`eval "${spelled(`$(hutch env${at})`)}"`, 'point any client of the cloud here'],
    [spelled(`hutch sandbox create box${at}`), 'a first sandbox'],
    [spelled(`hutch sandbox exec box${at} -- uname -a`), 'a first command in it'],
    [`${spelled('hutch new agent hello')} && cd hello && ${spelled(`hutch deploy${at}`)}`, 'a first agent'],
  ]
  const width = Math.max(...steps.map(([line]) => line.length))
  note(
    [
      dim('in another shell:'),
      ...steps.map(([line, about]) => `  ${line.padEnd(width)}  ${dim(`# ${about}`)}`),
      dim(
        keepInstances
          ? 'Ctrl-C stops; sandboxes go on running, and the next start finds them.'
          : 'Ctrl-C stops, sandboxes too; they keep their files, and the next start starts them.',
      ),
    ].join('\n'),
  )
}
