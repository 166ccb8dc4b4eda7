import { mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildHelper } from '../../scripts/build-helper.ts'
import { readProcess } from './codec.ts'
import {
  type Frame,
  FrameReader,
  FrameType,
  FrameWriter,
  framePayloadBytesMax,
  protocolVersion,
} from './frame.ts'
import { PayloadReader } from './payload.ts'

/** For tests of the native guest: the role `guest` in a temporary directory, and frames sent to it by hand. */

const answerTimeoutMs = 100_000
const everyTypeAllowed = Object.fromEntries(
  Object.values(FrameType).map((type) => [type, framePayloadBytesMax]),
)

/** HUTCH_TEST_HELPER runs the suite against another build, as one with sanitizers. */
const helperPath = process.env.HUTCH_TEST_HELPER ?? (await buildHelper()).path

export class TestGuest implements AsyncDisposable {
  private constructor(
    readonly dir: string,
    readonly pid: number,
    readonly exited: Promise<number>,
    readonly logDir: string,
    private readonly kill: () => void,
  ) {}

  static async start(options: { prepare?: (dir: string) => void } = {}): Promise<TestGuest> {
    const dir = await mkdtemp(join(tmpdir(), 'hutch-guest-'))
    options.prepare?.(dir)
    const entries = [`dir=${dir}`, `workdir=${dir}/inside`]
    const child = Bun.spawn([helperPath, 'guest'], {
      stdin: new TextEncoder().encode(entries.map((entry) => `${entry}\0`).join('')),
      stdout: 'pipe',
      stderr: process.env.HUTCH_TEST_HELPER ? 'inherit' : 'ignore',
    })
    const line = await new Response(child.stdout).text()
    const pid = Number(/^ok guest=(\d+) keeper=0\n$/.exec(line)?.[1])
    if (!pid) throw new Error(`the guest did not start: ${line}`)
    return new TestGuest(dir, pid, child.exited, join(dir, 'log'), () => child.kill('SIGKILL'))
  }

  get socketPath(): string {
    return join(this.dir, 'run/guest.sock')
  }

  control(): Promise<TestConnection> {
    return TestConnection.open(this.socketPath, 1)
  }

  files(uid = 0, gid = 0): Promise<TestConnection> {
    return TestConnection.open(this.socketPath, 2, uid, gid)
  }

  async descriptors(): Promise<string[]> {
    const names = await readdir(`/proc/${this.pid}/fd`)
    return Promise.all(names.map((name) => readlink(`/proc/${this.pid}/fd/${name}`).catch(() => 'gone')))
  }

  /** The data of the records that are kept, checked to be well formed and gapless. */
  async output(id: number): Promise<{ stream: number; data: Buffer }[]> {
    const records: { stream: number; data: Buffer }[] = []
    const names = (await readdir(join(this.logDir, String(id)))).sort()
    let expected: number | null = null
    for (const name of names) {
      const start = Number.parseInt(name, 16)
      if (expected !== null && start !== expected)
        throw new Error(`gap between segments: ${expected} ${start}`)
      const bytes = await readFile(join(this.logDir, String(id), name))
      let at = 0
      while (at < bytes.length) {
        const length = bytes.readUInt32LE(at)
        if (length === 0 || length > 65_536 || at + 16 + length > bytes.length) throw new Error('bad record')
        records.push({ stream: bytes.readUInt8(at + 4), data: bytes.subarray(at + 16, at + 16 + length) })
        at += 16 + length
      }
      expected = start + bytes.length
    }
    return records
  }

  async text(id: number, stream?: number): Promise<string> {
    const records = await this.output(id)
    const wanted = records.filter((record) => stream === undefined || record.stream === stream)
    return Buffer.concat(wanted.map((record) => record.data)).toString()
  }

  async [Symbol.asyncDispose]() {
    const control = await this.control().catch(() => null)
    control?.send(new FrameWriter(FrameType.shutdown, 0).u32(0))
    const timer = setTimeout(this.kill, 5_000)
    await this.exited
    clearTimeout(timer)
    control?.close()
    await rm(this.dir, { recursive: true, force: true })
  }
}

export interface SpawnOptions {
  flags?: number
  uid?: number
  gid?: number
  cols?: number
  rows?: number
  outputBytesMax?: number
  cwd?: string
  env?: string[]
}

export class TestConnection {
  readonly closed: Promise<void>
  #frames: Frame[] = []
  #wake: (() => void)[] = []
  #ended = false

  private constructor(readonly socket: Socket) {
    const reader = new FrameReader(everyTypeAllowed)
    socket.on('data', (chunk: Uint8Array) => {
      for (const frame of reader.push(new Uint8Array(chunk))) this.#frames.push(frame)
      this.#wakeAll()
    })
    socket.on('error', () => {})
    this.closed = new Promise((resolve) => {
      socket.on('close', () => {
        this.#ended = true
        this.#wakeAll()
        resolve()
      })
    })
  }

  #wakeAll() {
    for (const wake of this.#wake.splice(0)) wake()
  }

  /** Connected, nothing said yet. */
  static async raw(path: string): Promise<TestConnection> {
    const socket = connect({ path })
    const connection = new TestConnection(socket)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    return connection
  }

  static async open(path: string, role: number, uid = 0, gid = 0): Promise<TestConnection> {
    const connection = await TestConnection.raw(path)
    connection.send(new FrameWriter(FrameType.hello, 0).u32(protocolVersion).u8(role).u32(uid).u32(gid))
    const answer = await connection.next()
    if (answer.type !== FrameType.helloOk) throw new Error(`HELLO answered by ${answer.type}`)
    return connection
  }

  send(frame: FrameWriter | Uint8Array): this {
    this.socket.write(frame instanceof FrameWriter ? frame.finish() : frame)
    return this
  }

  /** The first frame that fits, taken out of what arrived. */
  async next(fits: (frame: Frame) => boolean = () => true): Promise<Frame> {
    const deadline = performance.now() + answerTimeoutMs
    for (;;) {
      const at = this.#frames.findIndex(fits)
      const frame = this.#frames[at]
      if (frame) {
        this.#frames.splice(at, 1)
        return frame
      }
      if (this.#ended) throw new Error('the connection closed')
      const left = deadline - performance.now()
      if (left <= 0) throw new Error('no such frame in time')
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left)
        this.#wake.push(() => {
          clearTimeout(timer)
          resolve()
        })
      })
    }
  }

  /** `OK`, or `errno N` of an ERROR, as the answer with this id. */
  async answer(id: number): Promise<string> {
    const frame = await this.next(
      (frame) => frame.id === id && (frame.type === FrameType.ok || frame.type === FrameType.error),
    )
    return frame.type === FrameType.ok ? 'OK' : describeError(frame)
  }

  request(frame: FrameWriter, id: number): Promise<string> {
    return this.send(frame).answer(id)
  }

  async spawn(id: number, argv: string[], options: SpawnOptions = {}): Promise<number | string> {
    const frame = new FrameWriter(FrameType.spawn, id)
      .u32(options.flags ?? 0)
      .u32(options.uid ?? 0)
      .u32(options.gid ?? 0)
      .u16(options.cols ?? 0)
      .u16(options.rows ?? 0)
      .u64(options.outputBytesMax ?? 1 << 20)
      .str(options.cwd ?? '')
      .strings(argv)
      .strings(options.env ?? ['PATH=/usr/bin:/bin'])
    this.send(frame)
    const answer = await this.next(
      (frame) => frame.id === id && (frame.type === FrameType.spawned || frame.type === FrameType.error),
    )
    return answer.type === FrameType.error ? describeError(answer) : new PayloadReader(answer.payload).u32()
  }

  shell(id: number, script: string, options: SpawnOptions = {}): Promise<number | string> {
    return this.spawn(id, ['/bin/sh', '-c', script], options)
  }

  async exit(id: number) {
    return readProcess((await this.next((frame) => frame.type === FrameType.exit && frame.id === id)).payload)
  }

  async list() {
    this.send(new FrameWriter(FrameType.list, 0))
    const items = []
    for (;;) {
      const frame = await this.next((frame) => frame.type === FrameType.item || frame.type === FrameType.end)
      if (frame.type === FrameType.end) return items
      items.push(readProcess(frame.payload))
    }
  }

  close() {
    this.socket.destroy()
  }
}

export function describeError(frame: Frame): string {
  const reader = new PayloadReader(frame.payload)
  const errno = reader.u32()
  const message = reader.str()
  reader.end()
  return `errno ${errno} ${message}`
}
