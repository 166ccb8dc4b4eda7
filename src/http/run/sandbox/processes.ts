import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import {
  fullOutputBytesMax,
  OutputTail,
  type ProcessStart,
  type ProcessView,
  type SandboxProcess,
  type SandboxProcesses,
} from '../../../sandboxes/processes.ts'
import { type Keepalive, keptAlive } from '../bodies.ts'
import {
  apiHeaders,
  callsFromInsideMax,
  json,
  readJsonBody,
  type SandboxAnswer,
  type SandboxCall,
} from './call.ts'
import { outputEvents, outputRecords, prefixedLines, resultEvent } from './output-streams.ts'

export const stdinBytesMax = 8 * 1024 * 1024
const portsMax = 100
/**
 * Of one sandbox, open at once: what a client leaves unread of one is about a megabyte here. More than the sandbox's own
 * programs can hold open, so that they cannot keep others out.
 */
export const outputStreamsMax = callsFromInsideMax + 64

export const startBody = z.lazy(() =>
  z.object({
    command: z.string().min(1),
    name: z.string().nullish(),
    workingDir: z.string().nullish(),
    env: z.record(z.string(), z.string()).nullish(),
    waitForCompletion: z.boolean().nullish(),
    timeout: z.number().min(0).nullish(),
    waitForPorts: z.array(z.number().int().min(1).max(65535)).max(portsMax).nullish(),
    restartOnFailure: z.boolean().nullish(),
    maxRestarts: z.number().int().nullish(),
    keepAlive: z.boolean().nullish(),
    stdin: z.boolean().nullish(),
  }),
)

export async function startProcess(call: SandboxCall): Promise<SandboxAnswer> {
  const start = requestedStart(await readJsonBody(call, startBody))
  const { processes } = call.lease
  if ((call.request.headers.get('accept') ?? '').includes('text/event-stream')) {
    const leave = enterStream(processes)
    try {
      return streamExecution(call, await processes.launch(start), leave)
    } catch (error) {
      leave()
      throw error
    }
  }
  return json(await processes.start(start, call.request.signal))
}

/** @throws bad_request for an environment that cannot be */
export function requestedStart(body: z.output<typeof startBody>): ProcessStart {
  const { timeout, ...fields } = body
  for (const [name, value] of Object.entries(body.env ?? {})) {
    if (name === '' || /[=\0]/.test(name) || value.includes('\0')) {
      throw new PlatformError(
        'bad_request',
        `invalid request body: env: '${name.slice(0, 64)}' cannot be set`,
      )
    }
  }
  return withoutNulls({ ...fields, timeoutSeconds: timeout }) as unknown as ProcessStart
}

function withoutNulls(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== null && value !== undefined),
  )
}

/** The client parses every line: there is never a blank one, and unknown types pass it by. */
const executionKeepalive: Keepalive = { text: '{"type":"keepalive"}\n', everyMs: 5000 }
const logKeepalive: Keepalive = { text: '[keepalive]\n', everyMs: 30_000 }
const recordKeepalive: Keepalive = { text: '{"type":"keepalive"}\n', everyMs: 30_000 }

/** NDJSON, whatever the Accept says: output as events, and the process itself as the last. */
function streamExecution(call: SandboxCall, process: SandboxProcess, leave: () => void): SandboxAnswer {
  async function* events(signal: AbortSignal): AsyncGenerator<Uint8Array> {
    try {
      const tail = new OutputTail(fullOutputBytesMax)
      yield* outputEvents(process.follow(signal, tail), { freeing: isServed(call) })
      if (signal.aborted) return
      await process.done
      tail.end()
      yield* resultEvent(await process.view('fresh'), tail.kept())
    } catch (error) {
      if (!signal.aborted) yield errorEvent(error)
    }
  }
  return streamed(call, events, executionKeepalive, 'application/x-ndjson', leave)
}

export function streamLogs(call: SandboxCall, identifier: string): SandboxAnswer {
  const process = call.lease.processes.require(identifier)
  const leave = enterStream(call.lease.processes)
  if (!wantsRecords(call.request.headers.get('accept') ?? '')) {
    const lines = (signal: AbortSignal) => prefixedLines(process.follow(signal), { freeing: isServed(call) })
    return streamed(call, lines, logKeepalive, 'text/plain; charset=utf-8', leave)
  }
  async function* records(signal: AbortSignal): AsyncGenerator<Uint8Array> {
    try {
      yield* outputRecords(process.follow(signal))
    } catch (error) {
      if (!signal.aborted) yield errorEvent(error)
    }
  }
  return streamed(call, records, recordKeepalive, 'application/x-ndjson', leave)
}

/** Only who names them gets records, and not who would rather have text. */
function wantsRecords(accept: string): boolean {
  const weights = new Map(
    accept.split(',').map((part) => {
      const [type = '', ...parameters] = part.split(';').map((word) => word.trim().toLowerCase())
      const weight = parameters.find((parameter) => parameter.startsWith('q='))
      return [type, weight === undefined ? 1 : Number(weight.slice(2)) || 0]
    }),
  )
  const records = weights.get('application/x-ndjson') ?? 0
  return records > 0 && records >= (weights.get('text/plain') ?? 0)
}

const openStreams = new WeakMap<SandboxProcesses, number>()

/** @throws too_many_requests. What it answers is to be called when the stream is over, once or more. */
function enterStream(processes: SandboxProcesses): () => void {
  const open = openStreams.get(processes) ?? 0
  if (open >= outputStreamsMax) {
    throw new PlatformError(
      'too_many_requests',
      `this sandbox has ${outputStreamsMax} streams of output open, the most allowed: end one first`,
      { retryAfterSeconds: 1 },
    )
  }
  openStreams.set(processes, open + 1)
  let left = false
  return () => {
    if (left) return
    left = true
    openStreams.set(processes, (openStreams.get(processes) ?? 1) - 1)
  }
}

/** The headers are out: a failure can only be told as the last event. */
function errorEvent(error: unknown): Uint8Array {
  const data = PlatformError.is(error) ? error.message : 'the output can no longer be read'
  return Buffer.from(`${JSON.stringify({ type: 'error', data })}\n`)
}

/** A server copies what it is given before it asks for more; whoever else reads an answer may hold all of it. */
function isServed({ upgrade }: SandboxCall): boolean {
  return upgrade !== null
}

function streamed(
  call: SandboxCall,
  chunks: (signal: AbortSignal) => AsyncGenerator<Uint8Array>,
  keepalive: Keepalive,
  contentType: string,
  leave: () => void,
): SandboxAnswer {
  const gone = new AbortController()
  const signal = AbortSignal.any([call.request.signal, gone.signal])
  const onEnd = () => {
    gone.abort()
    leave()
    call.onEnd()
  }
  const body = keptAlive(chunks(signal), keepalive, onEnd, { isAhead: !isServed(call) })
  return {
    streaming: new Response(body, { headers: { ...apiHeaders, 'content-type': contentType } }),
    endsItself: true,
  }
}

export async function listProcesses(call: SandboxCall): Promise<SandboxAnswer> {
  const views = await call.lease.processes.list()
  return json(views.map((view: ProcessView) => ({ ...view, completedAt: view.completedAt || null })))
}

export async function getProcess(call: SandboxCall, identifier: string): Promise<SandboxAnswer> {
  return json(await call.lease.processes.get(identifier))
}

export async function getLogs(call: SandboxCall, identifier: string): Promise<SandboxAnswer> {
  return json(await call.lease.processes.logs(identifier))
}

export async function stopProcess(call: SandboxCall, identifier: string): Promise<SandboxAnswer> {
  await call.lease.processes.stop(identifier)
  return json({ message: 'Process stopped successfully' })
}

export async function killProcess(call: SandboxCall, identifier: string): Promise<SandboxAnswer> {
  await call.lease.processes.kill(identifier)
  return json({ message: 'Process killed successfully' })
}

export async function writeStdin(call: SandboxCall, identifier: string): Promise<SandboxAnswer> {
  const process = call.lease.processes.require(identifier)
  const bytes = await call.whole.bytes(stdinBytesMax)
  await process.writeStdin(bytes)
  return json({ message: 'Data written to stdin successfully' })
}

export async function closeStdin(call: SandboxCall, identifier: string): Promise<SandboxAnswer> {
  await call.lease.processes.require(identifier).closeStdin()
  return json({ message: 'Stdin closed successfully' })
}
