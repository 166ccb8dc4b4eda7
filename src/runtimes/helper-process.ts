import { readFileSync } from 'node:fs'
import { PlatformError } from '../errors.ts'
import { HelperError, outlivingHelper, type ProcessIdentity } from '../guest/index.ts'

/** From the start of the helper to its one line. */
const startTimeoutMs = 20_000
const answerBytesMax = 4096

export interface HelperStarted {
  guestPid: number
  keeperPid: number
}

/**
 * Starts the helper as a guest without isolation with its `key=value` entries and reads its one line. It outlives us,
 * so it gets no descriptor of ours that would matter when we are gone.
 * @throws HelperError what the helper answered; nothing of it is left then
 */
export async function startGuest(
  helperPath: string,
  entries: readonly (readonly [string, string])[],
): Promise<HelperStarted> {
  for (const [key, value] of entries) {
    if (value.includes('\0')) throw new PlatformError('bad_request', `${key} contains NUL`)
  }
  const child = Bun.spawn([helperPath, 'guest'], { ...outlivingHelper, stdin: 'pipe' })
  const timer = setTimeout(() => child.kill('SIGKILL'), startTimeoutMs)
  try {
    try {
      child.stdin.write(entries.map(([key, value]) => `${key}=${value}\0`).join(''))
      await child.stdin.end()
    } catch {
      // It ended before it read everything; its line says why.
    }
    const line = await readLine(child.stdout)
    const ok = /^ok guest=(\d+) keeper=(\d+)$/.exec(line)
    if (ok) {
      child.unref()
      return { guestPid: Number(ok[1]), keeperPid: Number(ok[2]) }
    }
    await child.exited
    const error = /^error stage=(\S+) errno=(\d+) (.*)$/.exec(line)
    if (error) throw new HelperError(error[1] ?? '', Number(error[2]), error[3] ?? '')
    throw new HelperError('start', 0, line === '' ? `ended with ${child.exitCode ?? child.signalCode}` : line)
  } finally {
    clearTimeout(timer)
  }
}

/** Ends by itself when the one connection to its socket closes, at the latest with this process. */
export async function startDialler(helperPath: string, dir: string, socketName: string): Promise<void> {
  const child = Bun.spawn([helperPath, 'dial', socketName], { ...outlivingHelper, stdin: 'ignore', cwd: dir })
  const timer = setTimeout(() => child.kill('SIGKILL'), startTimeoutMs)
  try {
    const line = await readLine(child.stdout)
    if (line !== 'ok') throw new HelperError('dial', 0, line === '' ? 'it ended at once' : line)
    child.unref()
  } finally {
    clearTimeout(timer)
  }
}

async function readLine(stream: ReadableStream<Uint8Array>): Promise<string> {
  let text = ''
  const decoder = new TextDecoder()
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true })
    const end = text.indexOf('\n')
    if (end >= 0) return text.slice(0, end)
    if (text.length > answerBytesMax) break
  }
  return text
}

/** Null when no such process exists. */
export function identify(pid: number): ProcessIdentity | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name in parentheses may contain anything: fields count from behind it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (fields[0] === 'Z' || fields[0] === 'X') return null
    return { pid, startTime: Number(fields[19]) }
  } catch {
    return null
  }
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identify(identity.pid)?.startTime === identity.startTime
}

export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}
