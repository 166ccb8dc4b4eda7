import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildHelper } from '../../scripts/build-helper.ts'
import { silentLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import { readError } from './codec.ts'
import { FrameReader, FrameType, FrameWriter, receivedLimits } from './frame.ts'
import { type GuestState, KeeperChannel } from './keeper.ts'
import { PayloadReader } from './payload.ts'

/** For tests of the launcher: throwaway instances whose root is empty but for the host's /usr. */

export const uidRange = 65_536
/** Away from those that a platform on this host gives, and from those of tests that run at the same time. */
let uidSlot = Math.floor(Math.random() * 0x1000)
const newUidBase = () => 0x1000_0000 + (uidSlot++ % 0x1000) * 2 * uidRange
const helperPath = process.env.HUTCH_TEST_HELPER ?? (await buildHelper()).path

export const read = (path: string): string => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

export const isRunning = (pid: number): boolean => {
  const state = /\) (\w)/.exec(read(`/proc/${pid}/stat`))?.[1]
  return state !== undefined && state !== 'Z' && state !== 'X'
}

export const status = (pid: number, field: string): string =>
  new RegExp(`^${field}:[ \\t]*(.*)$`, 'm').exec(read(`/proc/${pid}/status`))?.[1]?.replaceAll(/\s+/g, ' ') ??
  ''

export const namespaceOf = (pid: number | 'self', name: string): string =>
  readlinkSync(`/proc/${pid}/ns/${name}`)

export interface LaunchOptions {
  /** Entries besides those of every test. */
  entries?: string[]
  /** A shell script, run inside at once. */
  script?: string
  /** JavaScript, run inside at once by this program. */
  javascript?: string
  user?: { uid: number; gid: number }
  helper?: string
  /** null: none. */
  uidBase?: number | null
}

/** A directory for instances, with the layer that they share. */
export class TestHost {
  readonly dir = mkdtempSync(join(tmpdir(), 'hutch-launch-'))
  #launched: LaunchedInstance[] = []

  constructor() {
    chmodSync(this.dir, 0o755)
  }

  /** Owned by the user that launches: an ordinary one has no other files to give. */
  #layer(owner = { uid: 0, gid: 0 }): string {
    const layer = join(this.dir, `layer-${owner.uid}`)
    if (existsSync(layer)) return layer
    mkdirSync(layer)
    for (const name of ['etc', 'proc', 'dev', 'root', 'usr', 'tmp']) mkdirSync(join(layer, name))
    for (const name of ['bin', 'lib', 'lib64', 'sbin']) symlinkSync(`usr/${name}`, join(layer, name))
    for (const name of ['.', ...readdirSync(layer)]) lchownSync(join(layer, name), owner.uid, owner.gid)
    chmodSync(join(layer, 'tmp'), 0o1777)
    return layer
  }

  newDir(owner?: { uid: number; gid: number }): string {
    const dir = mkdtempSync(join(this.dir, 'instance-'))
    if (owner) chownSync(dir, owner.uid, owner.gid)
    return dir
  }

  async tryLaunch(dir: string, options: LaunchOptions = {}): Promise<string> {
    const run = options.javascript ? ['/opt/bun', '-e', options.javascript] : undefined
    const exec = options.script ? ['/bin/sh', '-c', options.script] : (run ?? [])
    const entries = [
      'id=test0000test',
      'hostname=box',
      `dir=${dir}`,
      `layer=${this.#layer(options.user)}`,
      'overlay=/usr:/usr',
      ...(options.user || options.uidBase === null ? [] : [`uidbase=${options.uidBase ?? newUidBase()}`]),
      ...(run ? [`bind=${process.execPath}:/opt/bun`] : []),
      ...exec.map((argument) => `exec=${argument}`),
      ...(options.entries ?? []),
    ]
    const drop = options.user
      ? ['setpriv', '--reuid', `${options.user.uid}`, '--regid', `${options.user.gid}`, '--clear-groups']
      : []
    const child = Bun.spawn([...drop, options.helper ?? helperPath, 'launch'], {
      stdin: 'pipe',
      stdout: 'pipe',
      stderr: 'inherit',
    })
    const text = new TextEncoder().encode(entries.map((entry) => `${entry}\0`).join(''))
    child.stdin.write(new FrameWriter(FrameType.launch, 7, text.length).raw(text).finish())
    child.stdin.flush()
    try {
      return await readAnswer(child.stdout)
    } finally {
      await child.stdin.end()
    }
  }

  async launch(options: LaunchOptions & { dir?: string } = {}): Promise<LaunchedInstance> {
    const dir = options.dir ?? this.newDir(options.user)
    const line = await this.tryLaunch(dir, options)
    const [, guest, keeper] = /^ok guest=(\d+) keeper=(\d+) network=relay\n$/.exec(line) ?? []
    if (!guest || !keeper) throw new Error(`the launcher answered: ${line}`)
    const instance = new LaunchedInstance(dir, Number(guest), Number(keeper))
    this.#launched.push(instance)
    return instance
  }

  async close(): Promise<void> {
    for (const instance of this.#launched) await instance.destroy()
    rmSync(this.dir, { recursive: true, force: true })
  }
}

/** The launcher's one answer, as a line. */
async function readAnswer(stdout: ReadableStream<Uint8Array>): Promise<string> {
  const reader = new FrameReader(receivedLimits.launcher)
  for await (const chunk of stdout) {
    for (const { type, id, payload } of reader.push(chunk)) {
      if (id !== 7) throw new Error(`an answer to request ${id}`)
      if (type === FrameType.error) {
        const { errno, message } = readError(payload)
        return `error stage=${message.replace(': ', ` errno=${errno} `)}\n`
      }
      const fields = new PayloadReader(payload)
      const [guest, , keeper, , relays] = [
        fields.u32(),
        fields.u64(),
        fields.u32(),
        fields.u64(),
        fields.u8(),
      ]
      return `ok guest=${guest} keeper=${keeper} network=${relays === 1 ? 'relay' : 'none'}\n`
    }
  }
  return ''
}

export class LaunchedInstance {
  readonly ended: Promise<GuestState | null>
  readonly keeper: KeeperChannel
  readonly #startedAt: string

  constructor(
    readonly dir: string,
    readonly guestPid: number,
    readonly keeperPid: number,
  ) {
    const { promise, resolve } = Promise.withResolvers<GuestState | null>()
    this.ended = promise
    this.keeper = new KeeperChannel({
      socketPath: this.run('keeper.sock'),
      log: silentLogger,
      onEnd: resolve,
    })
    this.#startedAt = LaunchedInstance.#startOf(keeperPid)
  }

  static #startOf(pid: number): string {
    return read(`/proc/${pid}/stat`).split(' ')[21] ?? ''
  }

  run(name: string): string {
    return join(this.dir, 'run', name)
  }

  /** What a file inside has, seen from the host. */
  inside(path: string): string {
    return read(join(this.dir, 'disk/root/upper', path))
  }

  /** The whole of a file that the script inside ends with the line `done`. */
  async report(path: string): Promise<string> {
    return eventually(path, () => {
      const text = this.inside(path)
      return text.endsWith('done\n') ? text : ''
    })
  }

  async destroy(): Promise<void> {
    if (LaunchedInstance.#startOf(this.keeperPid) === this.#startedAt && this.#startedAt) {
      try {
        process.kill(this.keeperPid, 'SIGKILL')
      } catch {
        // It ended meanwhile.
      }
    }
    await eventually('the guest to end', () => !isRunning(this.guestPid))
  }
}
