import { readdirSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import type { Subprocess } from 'bun'
import { note, paint } from './output.ts'

const stopGraceMs = 5_000
const stopLookMs = 30
const portLookMs = 100
const portQuietMs = 20_000

export interface ProgramOptions {
  name: string
  line: string
  directory: string
  env: Record<string, string | undefined>
  host: string
  port: number
  /** Each line of output begins with the name: it is one of several. */
  labelled: boolean
}

/** One run of a project's program, with all that it starts. */
export class ServedProgram {
  readonly exited: Promise<number>
  readonly #child: Subprocess
  readonly #options: ProgramOptions
  #stopping = false

  constructor(options: ProgramOptions) {
    this.#options = options
    const { labelled } = options
    const child = Bun.spawn(['sh', '-c', options.line], {
      cwd: options.directory,
      env: options.env,
      stdin: 'ignore',
      stdout: labelled ? 'pipe' : 'inherit',
      stderr: labelled ? 'pipe' : 'inherit',
      // A group of its own: what ends is the program, not only the shell before it.
      detached: true,
    })
    this.#child = child
    const outputs = labelled
      ? [
          this.#label(child.stdout as ReadableStream<Uint8Array>, process.stdout),
          this.#label(child.stderr as ReadableStream<Uint8Array>, process.stderr),
        ]
      : []
    this.exited = child.exited.then(async (code) => {
      await Promise.all(outputs)
      return child.signalCode === null || !this.#stopping ? code : 0
    })
    void this.#sayOnceItListens()
  }

  /** Ends it and what it started; the port is free again once it resolves. */
  async stop(): Promise<void> {
    this.#stopping = true
    this.#signal('SIGTERM')
    const deadline = performance.now() + stopGraceMs
    // The shell may be gone before what it started.
    while (groupRuns(this.#child.pid) && performance.now() < deadline) await Bun.sleep(stopLookMs)
    this.#signal('SIGKILL')
    await this.#child.exited
  }

  #signal(signal: 'SIGTERM' | 'SIGKILL'): void {
    try {
      process.kill(-this.#child.pid, signal)
    } catch {
      // All of it has ended.
    }
  }

  async #sayOnceItListens(): Promise<void> {
    const { name, host, port, labelled } = this.#options
    const startedAt = performance.now()
    let warned = false
    const shown = labelled ? `${name}  ` : ''
    while (this.#child.exitCode === null && this.#child.signalCode === null && !this.#stopping) {
      if (await listens(host, port)) {
        note(`${paint('green', 'serving', process.stderr)}  ${shown}${addressOf(host, port)}`)
        return
      }
      if (!warned && performance.now() - startedAt > portQuietMs) {
        warned = true
        note(
          `${shown}nothing listens on port ${port} yet: it has to listen on HOST and PORT of its environment`,
        )
      }
      await Bun.sleep(portLookMs)
    }
  }

  async #label(stream: ReadableStream<Uint8Array>, to: NodeJS.WriteStream): Promise<void> {
    const mark = paint('dim', `${this.#options.name} | `, to)
    const decoder = new TextDecoder()
    let held = ''
    for await (const chunk of stream) {
      const lines = (held + decoder.decode(chunk, { stream: true })).split('\n')
      held = lines.pop() ?? ''
      to.write(lines.map((line) => `${mark}${line}\n`).join(''))
    }
    if (held !== '') to.write(`${mark}${held}\n`)
  }
}

/** Whether anything of a process group still runs. Those that ended and that their parent never asked about do not. */
function groupRuns(group: number): boolean {
  return readdirSync('/proc').some((name) => {
    if (!/^\d+$/.test(name)) return false
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      // The name, which may hold anything, is in parentheses; then come state, parent and group.
      const [state = '', , pgrp] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      return Number(pgrp) === group && !'ZX'.includes(state)
    } catch {
      return false
    }
  })
}

export function addressOf(host: string, port: number): string {
  const shown = ['127.0.0.1', '::1', '0.0.0.0', '::'].includes(host) ? 'localhost' : host
  return `http://${shown.includes(':') ? `[${shown}]` : shown}:${port}`
}

/** Whether somebody accepts connections there. */
export function listens(host: string, port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const socket = connect({ host: host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host, port })
  socket.on('connect', () => resolve(true))
  socket.on('error', () => resolve(false))
  return promise.finally(() => socket.destroy())
}
