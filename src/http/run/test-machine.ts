import { constants, createReadStream } from 'node:fs'
import * as fs from 'node:fs/promises'
import { connect } from 'node:net'
import { dirname, join } from 'node:path'
import { Readable } from 'node:stream'
import { Codegen } from '../../codegen/index.ts'
import { PlatformError } from '../../errors.ts'
import { systemClock } from '../../lib/clock.ts'
import { Dialer } from '../../lib/dialer.ts'
import { silentLogger } from '../../lib/log.ts'
import { SimpleTrees } from '../../runtimes/fake/trees.ts'
import type { SandboxLease } from '../../sandboxes/index.ts'
import { ScriptedGuest } from '../../sandboxes/processes/test-guest.ts'
import { SandboxProcesses } from '../../sandboxes/processes.ts'
import type { FileEntry, Guest, GuestFiles } from '../../spec/guest.ts'
import type { Instance, PortAddress } from '../../spec/runtime.ts'
import { LargeBodies } from '../large-bodies.ts'
import type { SandboxApi } from './sandbox/api.ts'
import { createSandboxMcp } from './sandbox/mcp.ts'

/** As the platform makes it. */
export function makeSandboxApi(options: { privateTargets?: string[] } = {}): SandboxApi {
  const dialer = new Dialer({ privateTargets: options.privateTargets ?? [], ownPorts: () => [] })
  return {
    bodies: new LargeBodies(systemClock),
    addressesOf: async () => [],
    build: { version: '1.2.3' },
    mcp: createSandboxMcp({ version: '1.2.3', log: silentLogger }),
    codegen: new Codegen({ dialer, log: silentLogger }),
  }
}

export const sandboxApi = makeSandboxApi()

/**
 * For tests of the data plane without a runtime: files below a directory of this host, shell commands of this host, and
 * ports that are this host's or, when `sockets` has them, unix sockets.
 */
export class HostMachine {
  readonly sockets = new Map<number, string>()
  leases = 0
  /** The sandbox's, of leases to come. */
  env: Record<string, string> = { HOME: '/home' }
  userVariables = new Set<string>()
  readonly guest: Guest
  private readonly scripted = new ScriptedGuest(systemClock)
  private readonly children = new Map<number, Bun.Subprocess>()
  private processes: SandboxProcesses | null = null
  private upgrades: Awaited<ReturnType<SandboxLease['upgrades']['read']>> = { count: 0, last: null }

  diskClosed = false

  constructor(private readonly root: string) {
    this.scripted.onSpawn = ({ id, argv, env, workingDir }) => {
      const child = Bun.spawn(argv, {
        cwd: this.inside(workingDir),
        env,
        stdout: 'pipe',
        stderr: 'pipe',
        stdin: 'pipe',
        detached: true,
      })
      this.children.set(id, child)
      const pump = async (stream: ReadableStream<Uint8Array>, kind: 'stdout' | 'stderr') => {
        for await (const chunk of stream) this.scripted.write(id, kind, chunk)
      }
      const pumps = [pump(child.stdout, 'stdout'), pump(child.stderr, 'stderr')]
      child.exited.then(async (exitCode) => {
        await Promise.all(pumps)
        const signal = child.signalCode ? { SIGTERM: 15, SIGKILL: 9 }[child.signalCode as string] : undefined
        this.scripted.end(id, signal === undefined ? { exitCode } : { signal })
      })
    }
    this.scripted.onSignal = (id, signal) => {
      process.kill(-this.children.get(id)!.pid, signal)
    }
    const stdin = (id: number) => this.children.get(id)?.stdin as import('bun').FileSink
    this.guest = {
      processes: {
        ...this.scripted.processes,
        spawn: async (spec) => {
          await this.files.stat(spec.workingDir).catch(() => {
            throw new PlatformError('unprocessable', 'chdir: no such file or directory')
          })
          return this.scripted.processes.spawn(spec)
        },
        writeStdin: async (id, data) => {
          stdin(id).write(data)
          await stdin(id).flush()
        },
        closeStdin: async (id) => {
          await stdin(id).end()
        },
      },
      files: this.files,
    }
  }

  async lease(workspace: string, name: string): Promise<SandboxLease> {
    if (!this.processes) {
      this.processes = new SandboxProcesses({
        guest: this.guest,
        recordsFile: join(this.root, '.records'),
        clock: systemClock,
        log: silentLogger,
        defaults: { env: { PATH: process.env.PATH ?? '', HOME: '/home' }, workingDir: '/project' },
        listening: (port) => this.listening(port),
      })
      await fs.mkdir(join(this.root, 'project'), { recursive: true })
      await this.processes.open()
    }
    this.leases++
    let held = true
    return {
      workspace,
      name,
      processes: this.processes,
      workingDir: '/project',
      env: this.env,
      userVariables: this.userVariables,
      upgrades: {
        read: async () => this.upgrades,
        note: async (version, error) => {
          const count = this.upgrades.count + (error === undefined ? 1 : 0)
          this.upgrades = {
            count,
            last: { at: Date.now(), version, ...(error === undefined ? {} : { error }) },
          }
        },
      },
      instance: {
        stats: async () => ({
          memoryBytes: 0,
          cpuMs: 0,
          processes: 0,
          diskBytes: 0,
          diskClosed: this.diskClosed,
        }),
        guest: this.guest,
        address: async (port: number) => this.address(port),
        listening: (port: number) => this.listening(port),
      } as unknown as Instance,
      asConnection: () => ({ touch() {} }),
      [Symbol.dispose]: () => {
        if (held) this.leases--
        held = false
      },
    }
  }

  async close(): Promise<void> {
    await this.processes?.close()
    for (const child of this.children.values()) {
      if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid, 'SIGKILL')
    }
  }

  private address(port: number): PortAddress {
    const unix = this.sockets.get(port)
    return unix === undefined ? { origin: `http://127.0.0.1:${port}` } : { origin: 'http://localhost', unix }
  }

  private listening(port: number): Promise<boolean> {
    const path = this.sockets.get(port)
    return new Promise((resolve) => {
      const socket = path === undefined ? connect(port, '127.0.0.1') : connect(path)
      socket.once('connect', () => {
        socket.destroy()
        resolve(true)
      })
      socket.once('error', () => resolve(false))
    })
  }

  inside(path: string): string {
    return join(this.root, path)
  }

  private readonly basicFiles: Omit<
    GuestFiles,
    'concatenate' | 'writeAll' | 'walk' | 'search' | 'watch' | 'copy' | 'move' | 'setOwner'
  > = {
    stat: (path, options) => wrapped(this.entry(path, options?.follow !== false)),
    list: (path) => this.list(path),
    read: async (path, range = {}) => {
      const entry = await wrapped(this.entry(path, true))
      if (entry.type !== 'file') {
        const errno = entry.type === 'directory' ? 'EISDIR' : 'EINVAL'
        throw new PlatformError('unprocessable', 'not a regular file', { details: { errno } })
      }
      if (range.length === 0) return { entry, body: new Blob([]).stream() }
      const start = range.offset ?? 0
      const end = range.length === undefined ? undefined : start + range.length - 1
      const stream = createReadStream(this.inside(path), { start, ...(end === undefined ? {} : { end }) })
      return { entry, body: Readable.toWeb(stream) as unknown as ReadableStream<Uint8Array> }
    },
    write: async (path, body, options) => {
      const target = this.inside(path)
      const temporary = `${target}.new-${Math.random()}`
      const making = fs.mkdir(dirname(target), { recursive: true, mode: 0o755 }).catch((error) => {
        // The guest looks where it cannot go; this is what it finds.
        throw error.code === 'EEXIST' ? Object.assign(error, { code: 'ENOTDIR' }) : error
      })
      await wrapped(making)
      try {
        const kept = await fs.stat(target).then(
          ({ mode }) => mode & 0o7777,
          () => options?.newFileMode ?? 0o644,
        )
        const file = await fs.open(temporary, 'w', 0o600)
        try {
          if (body instanceof Uint8Array) await file.writeFile(body)
          else for await (const chunk of body) await file.write(chunk)
        } finally {
          await file.close()
        }
        await fs.chmod(temporary, options?.mode ?? kept)
        await wrapped(fs.rename(temporary, target))
      } catch (error) {
        await fs.rm(temporary, { force: true })
        throw error
      }
      return this.entry(path, true)
    },
    makeDirectory: async (path, options = {}) => {
      await wrapped(
        fs.mkdir(this.inside(path), { recursive: options.parents ?? false, mode: options.mode ?? 0o755 }),
      )
    },
    remove: async (path, options = {}) => {
      const target = this.inside(path)
      if (options.recursive) return wrapped(fs.rm(target, { recursive: true }))
      const entry = await this.entry(path, false)
      await wrapped(entry.type === 'directory' ? fs.rmdir(target) : fs.unlink(target))
    },
    rename: (from, to) => wrapped(fs.rename(this.inside(from), this.inside(to))),
    setMode: (path, mode) => wrapped(fs.chmod(this.inside(path), mode)),
    realPath: async (path) => (await fs.realpath(this.inside(path))).slice(this.root.length) || '/',
  }

  private readonly trees = new SimpleTrees(this.basicFiles)

  private readonly files: GuestFiles = {
    ...this.basicFiles,
    concatenate: (parts, path, options) => this.trees.concatenate(parts, path, options),
    writeAll: (files) => this.trees.writeAll(files),
    walk: (path, options) => this.trees.walk(path, options),
    search: (path, options) => this.trees.search(path, options),
    watch: (path, options) => this.trees.watch(path, options),
    copy: (from, to, options) => this.trees.copy(from, to, options),
    move: (from, to, options) => this.trees.move(from, to, options),
    setOwner: (path, { uid = -1, gid = -1 }) => wrapped(fs.chown(this.inside(path), uid, gid)),
  }

  private async entry(path: string, follow: boolean, name = path): Promise<FileEntry> {
    const stats = follow ? await fs.stat(this.inside(path)) : await fs.lstat(this.inside(path))
    const kind = stats.mode & constants.S_IFMT
    const type = kind === constants.S_IFDIR ? 'directory' : kind === constants.S_IFLNK ? 'symlink' : 'file'
    const { uid, gid, size, mtimeMs: modifiedMs, nlink: links } = stats
    return { name, type, mode: stats.mode & 0o7777, uid, gid, size, modifiedMs, links }
  }

  private async *list(path: string): AsyncGenerator<FileEntry[]> {
    for (const name of await wrapped(fs.readdir(this.inside(path)))) {
      const entry = await this.entry(join(path, name), false, name).catch(() => null)
      if (entry) yield [entry]
    }
  }
}

async function wrapped<Value>(work: Promise<Value>): Promise<Value> {
  try {
    return await work
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code ?? ''
    const code =
      errno === 'ENOENT'
        ? 'not_found'
        : errno === 'ENOTEMPTY' || errno === 'EISDIR'
          ? 'conflict'
          : 'unprocessable'
    throw new PlatformError(code, String(error), { details: { errno } })
  }
}
