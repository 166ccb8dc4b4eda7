import { PlatformError } from '../../errors.ts'
import { BoundedMap } from '../../lib/bounded-map.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Guest } from '../../spec/guest.ts'
import type { Instance } from '../../spec/runtime.ts'
import type { Logs } from '../../telemetry/index.ts'
import { type RevisionProgram, type RevisionRun, sessionProcessIdMin } from '../fleet/index.ts'
import { StdioServer } from './server.ts'

/** Revisions that answered, remembered. */
const revisionsMax = 4096
/** From its start to its answer; as long as a program may take that listens on a port. */
const answerMsMax = 120_000
/** Of what it wrote for people, told when it did not start. */
const lastLinesMax = 20
/** No session has it. */
const probeProcessId = sessionProcessIdMin - 1
const probeId = 'hutch-probe'
const initialize = JSON.stringify({
  jsonrpc: '2.0',
  id: probeId,
  method: 'initialize',
  params: {
    protocolVersion: '2025-06-18',
    capabilities: {},
    clientInfo: { name: 'hutch', version: '1' },
  },
})

export interface StdioProbesOptions {
  clock: Clock
  logs: Pick<Logs, 'append'>
}

/** Whether a server that speaks by stdin and stdout can be used is found out once for each revision. */
export class StdioProbes {
  readonly #options: StdioProbesOptions
  readonly #answered = new BoundedMap<string, true>(revisionsMax)

  constructor(options: StdioProbesOptions) {
    this.#options = options
  }

  /**
   * Starts the server, greets it, and ends it again.
   * @throws unprocessable when it did not answer, with the last lines it wrote; the signal's reason
   */
  async probe(
    run: RevisionRun,
    instance: Instance,
    program: RevisionProgram,
    signal: AbortSignal,
  ): Promise<void> {
    if (this.#answered.get(run.id)) return
    const { workspace, name, id } = run
    const source = { workspace, kind: 'functions' as const, name, revision: id, instance: instance.id }
    await this.#greet(instance.guest, program, signal, (line, stream) =>
      this.#options.logs.append({ ...source, stream }, line),
    )
    this.#answered.set(run.id, true)
  }

  async #greet(
    guest: Guest,
    program: RevisionProgram,
    signal: AbortSignal,
    onLine: (line: string, stream: 'stdout' | 'stderr') => void,
  ): Promise<void> {
    const { clock } = this.#options
    const answered = Promise.withResolvers<void>()
    const lines: string[] = []
    const server = await StdioServer.start({
      ...{ guest, id: probeProcessId, program, clock },
      onMessage(text) {
        const problem = problemOf(text)
        if (problem === null) answered.resolve()
        else if (problem !== undefined) {
          answered.reject(notReady(`its answer to "initialize" was an error: ${problem}`, lines))
        }
      },
      onLine(line, stream) {
        lines.push(line)
        if (lines.length > lastLinesMax) lines.shift()
        onLine(line, stream)
      },
    })
    const over = new AbortController()
    const late = clock.sleep(answerMsMax, AbortSignal.any([signal, over.signal])).then(() => {
      throw notReady(`it did not answer "initialize" within ${answerMsMax / 1000} seconds`, lines)
    })
    const ended = server.ended.then(({ reason }) => {
      throw notReady(`${reason} before it answered "initialize"`, lines)
    })
    for (const promise of [late, ended, answered.promise]) promise.catch(() => {})
    let now = true
    try {
      await server.write(initialize).catch(() => {})
      await Promise.race([answered.promise, ended, late])
      now = false
    } finally {
      over.abort()
      server.end({ now })
      await server.ended
    }
  }
}

/** Undefined for what is not the answer, null for a good one. */
function problemOf(text: string): string | null | undefined {
  try {
    const message = JSON.parse(text) as { id?: unknown; result?: unknown; error?: { message?: unknown } }
    if (message.id !== probeId) return undefined
    return message.error === undefined ? null : String(message.error.message).slice(0, 500)
  } catch {
    return undefined
  }
}

function notReady(what: string, lines: string[]): PlatformError {
  const last = lines.every((line) => line.trim() === '')
    ? 'It wrote nothing to stderr.'
    : `Its last lines:\n${lines.join('\n')}`
  return new PlatformError(
    'unprocessable',
    `The MCP server did not start: ${what}. With transport = "stdio" it has to read JSON-RPC messages from stdin and ` +
      `write its answers to stdout. ${last}`,
  )
}
