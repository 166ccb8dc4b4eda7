import { z } from 'zod'
import { randomText } from '../../../../lib/ids.ts'
import type { ProcessStart, ProcessView, SandboxProcesses } from '../../../../sandboxes/processes.ts'
import { CallCancelled, type McpTool, mcpTool, type ToolCall } from '../../../mcp/index.ts'
import { requestedStart, startBody } from '../processes.ts'
import type { ToolContext } from './context.ts'

/** Gateways and clients give up on an answer after a minute: before that the call answers, and the process goes on. */
const waitSecondsMax = 58
const timeoutSecondsDefault = 30
const progressEveryMs = 1000
const progressLineCharsMax = 200

const processView = z.looseObject({
  pid: z.string(),
  name: z.string(),
  command: z.string(),
  status: z.string(),
  startedAt: z.string(),
  completedAt: z.string(),
  exitCode: z.int(),
  workingDir: z.string(),
  logs: z.string().describe('Both streams in the order they were written; of long ones the end'),
  stdout: z.string(),
  stderr: z.string(),
  restartOnFailure: z.boolean(),
  maxRestarts: z.int(),
  restartCount: z.int(),
  keepAlive: z.boolean(),
})

const identifier = z.string().min(1).describe('The pid or the name of the process')
const message = z.looseObject({ message: z.string() })

export const processTools: McpTool<ToolContext>[] = [
  mcpTool({
    name: 'processesList',
    title: 'List processes',
    description: 'Lists the processes started through this API, running and ended, oldest first.',
    input: z.object({}),
    output: z.looseObject({ processes: z.array(processView) }),
    annotations: { readOnlyHint: true },
    async run(_, { lease }: ToolContext) {
      return { processes: (await lease.processes.list()).map(shown) }
    },
  }),
  mcpTool({
    name: 'processExecute',
    title: 'Execute a command',
    description:
      'Runs a shell command. Without waitForCompletion it answers as soon as the process started; ask for its ' +
      `output with processGetLogs. A wait ends after timeout seconds, at most ${waitSecondsMax}: the process then ` +
      'goes on and the answer says pollRequired.',
    input: z.object({
      command: z.string().min(1).describe('For the shell: pipes, variables and && work'),
      name: z.string().optional().describe('To find the process again; unique among what runs'),
      workingDir: z.string().optional().describe('Default /'),
      env: z.record(z.string(), z.string()).optional().describe("On top of the sandbox's environment"),
      waitForCompletion: z.boolean().optional().describe('Answer when the process ended, with its output'),
      timeout: z
        .number()
        .min(0)
        .max(31_536_000)
        .optional()
        .describe(
          `Seconds. Bounds the wait (default ${timeoutSecondsDefault}); with keepAlive the life of the process ` +
            '(default 600, 0: no bound)',
        ),
      waitForPorts: z
        .array(z.int().min(1).max(65535))
        .max(100)
        .optional()
        .describe('Answer when something listens on all of these ports'),
      restartOnFailure: z.boolean().optional().describe('Start it again when it fails'),
      maxRestarts: z.int().min(-1).max(1_000_000).optional().describe('0: none. -1: no bound'),
      keepAlive: z.boolean().optional().describe('The sandbox stays awake as long as the process runs'),
    }),
    output: z.looseObject({
      pid: z.string(),
      name: z.string(),
      status: z.string(),
      exitCode: z.int(),
      logs: z.string().optional(),
      stdout: z.string().optional(),
      stderr: z.string().optional(),
      message: z.string().optional(),
      pollRequired: z.boolean().optional(),
    }),
    annotations: { destructiveHint: true, openWorldHint: true },
    run: (input, { lease }: ToolContext, call) => execute(lease.processes, input, call),
  }),
  mcpTool({
    name: 'processGet',
    title: 'Get a process',
    description: 'State of one process, with the end of its output.',
    input: z.object({ identifier }),
    output: processView,
    annotations: { readOnlyHint: true },
    run: async (input, { lease }: ToolContext) => shown(await lease.processes.get(input.identifier)),
  }),
  mcpTool({
    name: 'processGetLogs',
    title: 'Get the output of a process',
    description: 'Output of one process up to now: both streams together and each by itself.',
    input: z.object({ identifier }),
    output: z.looseObject({ logs: z.string(), stdout: z.string(), stderr: z.string() }),
    annotations: { readOnlyHint: true },
    run: async (input, { lease }: ToolContext) => ({ ...(await lease.processes.logs(input.identifier)) }),
  }),
  mcpTool({
    name: 'processStop',
    title: 'Stop a process',
    description: 'Asks a process and its group to end (SIGTERM).',
    input: z.object({ identifier }),
    output: message,
    annotations: { destructiveHint: true },
    async run(input, { lease }: ToolContext) {
      await lease.processes.stop(input.identifier)
      return { message: 'Process stopped successfully' }
    },
  }),
  mcpTool({
    name: 'processKill',
    title: 'Kill a process',
    description: 'Ends a process and everything it started, at once (SIGKILL).',
    input: z.object({ identifier }),
    output: message,
    annotations: { destructiveHint: true },
    async run(input, { lease }: ToolContext) {
      await lease.processes.kill(input.identifier)
      return { message: 'Process killed successfully' }
    },
  }),
]

function shown(view: ProcessView): ProcessView & { logs: string } {
  return { ...view, logs: view.logs ?? '' }
}

async function execute(processes: SandboxProcesses, input: object, call: ToolCall): Promise<object> {
  const { timeoutSeconds, ...requested } = requestedStart(startBody.parse(input))
  const name = requested.name || `proc-${randomText(8)}`
  const workingDir = requested.workingDir ?? '/'
  const waits = Boolean(requested.waitForCompletion || requested.waitForPorts?.length)
  const { keepAlive } = requested
  const waitSeconds = Math.min(
    keepAlive ? waitSecondsMax : timeoutSeconds || timeoutSecondsDefault,
    waitSecondsMax,
  )
  const start: ProcessStart = {
    ...requested,
    name,
    workingDir,
    // Without keepAlive it bounds only the wait, which ends here, with an answer instead of a failure.
    ...(keepAlive && timeoutSeconds !== undefined ? { timeoutSeconds } : {}),
  }
  const waitIsOver = new AbortController()
  const timer = waits ? setTimeout(() => waitIsOver.abort(), waitSeconds * 1000) : undefined
  const ticker = call.progress && waits ? reporting(processes, name, waitSeconds, call) : undefined
  try {
    const view = await processes.start(start, AbortSignal.any([call.signal, waitIsOver.signal]))
    return answer(view)
  } catch (error) {
    if (call.signal.reason instanceof CallCancelled && !keepAlive) {
      // Whoever cancels a command wants it to end, which someone who only went away may not.
      await processes.kill(name).catch(() => {})
    }
    if (!waitIsOver.signal.aborted || call.signal.aborted) throw error
    return {
      ...answer(await processes.get(name)),
      pollRequired: true,
      message: `Not done after ${waitSeconds} seconds, the process goes on: ask for it with processGet, identifier "${name}"`,
    }
  } finally {
    clearTimeout(timer)
    clearInterval(ticker)
  }
}

function answer({ pid, name, status, exitCode, logs, stdout, stderr }: ProcessView): object {
  return { pid, name, status, exitCode, ...(logs === null ? {} : { logs, stdout, stderr }) }
}

/** The time that passed and the last line of output, every second. */
function reporting(
  processes: SandboxProcesses,
  name: string,
  totalSeconds: number,
  call: ToolCall,
): ReturnType<typeof setInterval> {
  const startedAt = performance.now()
  let asking = false
  return setInterval(async () => {
    if (asking) return
    asking = true
    try {
      const view = await processes.find(name)?.view('inline')
      const line = view?.logs?.trimEnd().split('\n').pop()?.slice(0, progressLineCharsMax)
      const progress = Math.round((performance.now() - startedAt) / 1000)
      call.progress?.({ progress, total: totalSeconds, ...(line ? { message: line } : {}) })
    } catch {
      // The call itself says what is wrong.
    } finally {
      asking = false
    }
  }, progressEveryMs)
}
