import { dataDirDefault } from '../data-directory.ts'
import { PlatformError } from '../errors.ts'
import { CommandError, command, UsageError } from './command.ts'
import { note, paint, print, printJson } from './output.ts'
import { shellQuote } from './shell.ts'

export const up = command({
  name: 'up',
  summary: 'Starts the platform and prints one line `ready http://HOST:PORT` when it answers.',
  flags: {
    port: { kind: 'text', value: 'PORT', about: 'port to listen on; 0: any free one (4400)' },
    host: { kind: 'text', value: 'ADDR', about: 'address to listen on (127.0.0.1 and ::1)' },
    'data-dir': { kind: 'text', value: 'DIR', about: `where everything is kept (${dataDirDefault()})` },
    region: { kind: 'text', value: 'NAME', about: 'region to name in answers (only what a client sent)' },
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
    'image-dir': { kind: 'text', value: 'DIR', about: 'where images made from this host are kept' },
    'image-source': { kind: 'text', value: 'HOW', about: 'auto, reflink, link or copy (auto)' },
    'trusted-proxies': {
      kind: 'list',
      value: 'RANGE',
      about: 'address or range whose forwarded headers count',
    },
    'log-level': { kind: 'text', value: 'LEVEL', about: 'debug, info, warn or error (info)' },
    'log-format': { kind: 'text', value: 'FORMAT', about: 'text or json (text)' },
    'sandboxes-max': { kind: 'text', value: 'N', about: 'sandboxes in the whole platform (1000)' },
    'sandbox-memory-mb-max': { kind: 'text', value: 'MB', about: 'memory one sandbox may ask for (65536)' },
    config: { kind: 'text', value: 'FILE', about: 'settings in TOML (hutch.toml in the data directory)' },
  },
  notes: [
    'Every setting is also a variable (HUTCH_PORT, HUTCH_DATA_DIR, ...) and a key of the file (port, dataDir, ...).',
    'The environment wins over the file, a flag over both.',
    'SIGTERM and Ctrl-C stop sandboxes, keep their files, and start them again at the next up.',
  ],
  async run({ flags }) {
    const stop = stopSignal()
    const [{ loadConfig }, { createPlatform }] = await Promise.all([
      import('../config.ts'),
      import('../platform.ts'),
    ])
    const config = await asUsage(() =>
      loadConfig({
        ...(flags.config === undefined ? {} : { file: flags.config }),
        env: process.env,
        flags: {
          port: flags.port,
          host: flags.host,
          dataDir: flags['data-dir'],
          region: flags.region,
          url: flags.url,
          domains: flags.domain,
          runtime: flags.runtime,
          keepInstances: flags['keep-instances'],
          imageDir: flags['image-dir'],
          imageSource: flags['image-source'],
          trustedProxies: flags['trusted-proxies'],
          logLevel: flags['log-level'],
          logFormat: flags['log-format'],
          sandboxesMax: flags['sandboxes-max'],
          sandboxMemoryMbMax: flags['sandbox-memory-mb-max'],
        },
      }),
    )
    const at = config.dataDir === dataDirDefault() ? '' : ` --data-dir ${shellQuote(config.dataDir)}`
    const platform = await createPlatform(config).catch((error: unknown) => {
      throw refusalToStart(error, at)
    })
    try {
      const { url, port } = await platform.listen()
      if (flags.json) printJson({ ready: url, port, pid: process.pid, dataDir: config.dataDir })
      else print(`ready ${url}`)
      if (!stop.signal.aborted) nextSteps(at)
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

function refusalToStart(error: unknown, at: string): unknown {
  if (!PlatformError.is(error)) return error
  if (error.code === 'conflict' || error.code === 'already_exists') {
    return new CommandError(error.message, `hutch status${at}`)
  }
  if (error.code === 'unavailable') return new CommandError(error.message, 'hutch doctor')
  return new CommandError(error.message)
}

function nextSteps(at: string): void {
  const dim = (text: string) => paint('dim', text, process.stderr)
  note(
    [
      dim('in another shell:'),
      `  eval "$(hutch env${at})"        ${dim('# point any client of the cloud here')}`,
      `  hutch sandbox create box${at}   ${dim('# a first sandbox')}`,
      `  hutch sandbox exec box${at} -- uname -a`,
      dim('Ctrl-C stops; sandboxes keep their files.'),
    ].join('\n'),
  )
}
