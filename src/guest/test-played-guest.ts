import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import {
  type Frame,
  FrameReader,
  FrameType,
  FrameWriter,
  framePayloadBytesMax,
  protocolVersion,
} from './frame.ts'

const anyFrames = Object.fromEntries(Object.values(FrameType).map((type) => [type, framePayloadBytesMax]))
export const writer = (type: FrameType, id = 0) => new FrameWriter(type, id)
export const ok = (id: number) => writer(FrameType.ok, id).finish()
export const helloOk = writer(FrameType.helloOk).u32(protocolVersion).u64(1).finish()
export const errorFrame = (id: number, errno: number) =>
  writer(FrameType.error, id).u32(errno).str('why').finish()
export const processFrame = (
  type: FrameType,
  id: number,
  state: number,
  more: { code?: number; frameId?: number } = {},
) =>
  writer(type, more.frameId ?? id)
    .u32(id)
    .u32(100 + id)
    .u8(state)
    .u32(more.code ?? 0)
    .u64(1_000)
    .u64(state === 1 ? 0 : 2_000)
    .u64(0)
    .finish()
export const spawned = (id: number) =>
  writer(FrameType.spawned, id)
    .u32(100 + id)
    .u64(1_000)
    .finish()
export const end = (id = 0) => writer(FrameType.end, id).finish()

/** A guest, or a keeper, that is played by a test: it greets, lists nothing, and leaves the rest to `onFrame`. */
export class PlayedGuest {
  onFrame: (frame: Frame, socket: Socket) => void = () => {}
  /** It accepts connections, and that is all. */
  deaf = false
  readonly sockets: Socket[] = []
  readonly received: Frame[] = []
  readonly logDir: string
  readonly socketPath: string
  readonly #dir = mkdtempSync(`${tmpdir()}/hutch-client-`)
  readonly #server: Server

  private constructor() {
    this.logDir = `${this.#dir}/log`
    this.socketPath = `${this.#dir}/guest.sock`
    mkdirSync(this.logDir)
    this.#server = createServer((socket) => {
      this.sockets.push(socket)
      if (this.deaf) return
      const reader = new FrameReader(anyFrames)
      socket.on('error', () => {})
      socket.on('data', (chunk: Uint8Array) => {
        for (const frame of reader.push(chunk)) {
          this.received.push({ ...frame, payload: frame.payload.slice() })
          if (frame.type === FrameType.hello) socket.write(helloOk)
          this.onFrame(frame, socket)
        }
      })
    })
  }

  static async open(): Promise<PlayedGuest> {
    const played = new PlayedGuest()
    await new Promise<void>((resolve) => played.#server.listen(played.socketPath, resolve))
    return played
  }

  /** Answers LIST with nothing, everything else by `serve`. */
  play(serve: (frame: Frame, socket: Socket) => void): void {
    this.onFrame = (frame, socket) => {
      if (frame.type === FrameType.list) socket.write(end(frame.id))
      else serve(frame, socket)
    }
  }

  /** Nobody connects any more. */
  async vanish(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve))
    for (const socket of this.sockets) socket.destroy()
    await closed
  }

  async close(): Promise<void> {
    await this.vanish()
    rmSync(this.#dir, { recursive: true, force: true })
  }
}

/** '' when it did not fail. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => '',
    (error) => error.code,
  )
}
