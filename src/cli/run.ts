import { readFileSync } from 'node:fs'
import { isStream, spokenText } from '../lib/spoken-text.ts'
import { platformRefusal, readable, requestLine } from './answers.ts'
import { withHints } from './client.ts'
import { CommandError, command, sameTarget, UsageError } from './command.ts'
import { environmentFlags } from './environment.ts'
import { headersOf, invoke, requestFlags, runningKind } from './invoking.ts'
import { noteNext } from './next.ts'
import { note, print } from './output.ts'
import { runLocally, tellOfExecution } from './run-job.ts'

/** Below its address, where nobody says. */
const pathsDefault: Record<string, string> = { Function: '/mcp', Job: '/executions' }

export const run = command({
  name: 'run',
  summary:
    'Makes a request to what is served (an agent, a function, an application, a sandbox), or runs a job.',
  usage: 'KIND NAME',
  flags: {
    ...requestFlags,
    data: { kind: 'text', value: 'JSON', short: 'd', about: 'body of the request' },
    file: { kind: 'text', value: 'FILE', short: 'f', about: 'file with the body; - for standard input' },
    'upload-file': { kind: 'text', value: 'FILE', about: 'file to send as it is' },
    path: { kind: 'text', value: 'PATH', about: 'below its address (of a function /mcp)' },
    method: { kind: 'text', value: 'METHOD', about: 'POST, GET, ... (POST)' },
    params: { kind: 'list', value: 'NAME=VALUE', about: 'parameter of the query' },
    stream: { kind: 'boolean', about: 'print the answer as it comes, whatever its type' },
    timeout: { kind: 'number', value: 'SECONDS', about: 'give up after so long (never)' },
    wait: { kind: 'boolean', about: 'of a job: until it is over; the exit code says how it went' },
    concurrent: {
      kind: 'number',
      value: 'N',
      short: 'c',
      about: 'of a job with --local: tasks that run at once (1)',
    },
    ...environmentFlags,
    output: {
      kind: 'text',
      value: 'FORMAT',
      short: 'o',
      about: 'json: the answer, with its status and headers',
    },
  },
  positionals: [1, 2],
  notes: [
    `For example: hutch run agent hello -d '{"inputs":"Hello"}'`,
    `             hutch run function tools -d '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'`,
    `             hutch run sandbox box --path /process -d '{"command":"ls","waitForCompletion":true}'`,
    `             hutch run job work -d '{"tasks":[{"name":"John"},{"name":"Jane"}]}' --wait`,
    'A job with --local is the one of this folder: its program is run here, for each task with --name value of it.',
    'An answer of status 400 or more is printed, too, and the exit code is 1.',
  ],
  async run({ flags, positionals }) {
    const [word = '', name] = positionals
    const kind = runningKind(word)
    const isJob = kind.kind === 'Job' && flags.path === undefined
    const body = bodyOf(flags) ?? (isJob && !flags.local ? '{}' : undefined)
    if (isJob && flags.local)
      return await runLocally(flags, typeof body === 'object' ? await body.text() : body)
    if (flags.wait && !isJob) throw new UsageError('--wait is for jobs')
    if (flags.concurrent !== undefined) throw new UsageError('--concurrent is for jobs with --local')
    if (name === undefined) throw new UsageError(`NAME is missing; usage: hutch run ${kind.singular} NAME`)
    const method = (flags.method ?? 'POST').toUpperCase()
    const { timeout } = flags
    const invocation = {
      method,
      // Where an MCP server listens; what it answers to has to be asked for.
      path: flags.path ?? pathsDefault[kind.kind] ?? '',
      params: paramsOf(flags.params),
      headers: {
        ...(kind.kind === 'Function' ? { accept: 'application/json, text/event-stream' } : {}),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headersOf(flags.header),
      },
      ...(body === undefined ? {} : { body }),
      ...(timeout === undefined ? {} : { signal: AbortSignal.timeout(timeout * 1000) }),
    }
    return await withHints(flags, async () => {
      const startedAt = performance.now()
      try {
        const { url, response } = await invoke(flags, kind, name, invocation)
        if (flags.debug) {
          note(requestLine(method, url + invocation.path, response, performance.now() - startedAt))
          for (const [header, value] of response.headers) note(`  ${header}: ${value}`)
        }
        const whole = (flags.json === true && !isJob) || flags.output === 'json'
        const refusal = whole ? null : await platformRefusal(response)
        if (refusal !== null) {
          throw new CommandError(refusal, sameTarget(`hutch get ${kind.singular} ${name}`, flags))
        }
        if (isJob && flags.output === undefined) return await tellOfExecution(flags, name, response)
        await show(response, { stream: flags.stream === true, whole })
        const later = response.headers.get('x-hutch-execution')
        if (later !== null && !whole) noteNext(`hutch get execution ${later}`, flags)
        if (response.ok) return 0
        if (!flags.debug) note(`the answer's status is ${response.status} ${response.statusText}`.trim())
        return 1
      } catch (error) {
        if ((error as Error).name !== 'TimeoutError') throw error
        throw new CommandError(
          `there was no whole answer within ${timeout} s`,
          sameTarget(`hutch logs ${kind.singular} ${name}`, flags),
        )
      }
    })
  },
})

async function show(
  response: Response,
  { stream, whole }: { stream: boolean; whole: boolean },
): Promise<void> {
  if (whole) {
    const { status, headers } = response
    const text = await response.text()
    print(JSON.stringify({ status, headers: Object.fromEntries(headers), body: parsed(text) }, null, 2))
  } else if (stream || isStream(response)) {
    let last = '\n'
    for await (const piece of spokenText(response)) {
      process.stdout.write(piece)
      last = piece || last
    }
    if (!last.endsWith('\n')) process.stdout.write('\n')
  } else {
    const type = response.headers.get('content-type') ?? ''
    if (/^(image|audio|video|application\/(octet-stream|zip|pdf))/.test(type)) {
      for await (const chunk of response.body ?? []) process.stdout.write(chunk as Uint8Array)
      return
    }
    const text = await response.text()
    if (text !== '') print(readable(text))
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

function paramsOf(given: string[] | undefined): [string, string][] {
  return (given ?? []).map((pair) => {
    const equals = pair.indexOf('=')
    if (equals < 1) throw new UsageError(`--params: ${JSON.stringify(pair)} is not NAME=VALUE`)
    return [pair.slice(0, equals), pair.slice(equals + 1)]
  })
}

function bodyOf(flags: {
  data?: string | undefined
  file?: string | undefined
  'upload-file'?: string | undefined
}): string | Blob | undefined {
  const { data, file, 'upload-file': raw } = flags
  if ([data, file, raw].filter((each) => each !== undefined).length > 1)
    throw new UsageError('only one of --data, --file and --upload-file says what is sent')
  if (raw !== undefined) return Bun.file(raw)
  if (file !== undefined) return readFileSync(file === '-' ? 0 : file, 'utf8')
  return data
}
