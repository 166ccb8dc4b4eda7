import { closeSync, mkdirSync, openSync, rmSync } from 'node:fs'
import type { Socket } from 'bun'
import type { Logger } from '../lib/log.ts'

const socketName = 'dns.sock'
const instanceIdBytesMax = 40
/** A query over TCP; those over UDP are no longer either. */
const queryBytesMax = 1500
const connectionsMax = 1024
const connectionsPerInstanceMax = 64
/** Queries that are not answered yet, and answers that are not taken yet. */
const pipelinedMax = 32
const idleSeconds = 15

interface Conversation {
  instanceId: string | null
  held: Uint8Array
  pending: number
  outgoing: Uint8Array[]
}

/**
 * DNS over TCP, for connections that are handed over: a line with the instance's id, then queries with their lengths
 * before them (RFC 7766). Listens when it is first needed.
 */
export class DnsServer {
  readonly #dir: string
  readonly #log: Logger
  readonly #answer: (instanceId: string, query: Uint8Array) => Promise<Uint8Array | null>
  readonly #perInstance = new Map<string, number>()
  #connections = 0
  #listening: { stop(force: boolean): void; dirFile: number } | null = null

  constructor(options: {
    dir: string
    log: Logger
    answer: (instanceId: string, query: Uint8Array) => Promise<Uint8Array | null>
  }) {
    this.#dir = options.dir
    this.#log = options.log
    this.#answer = options.answer
  }

  /** Of the socket to hand connections over to. */
  path(): string {
    this.#listening ??= this.#listen()
    return `${this.#dir}/${socketName}`
  }

  preamble(instanceId: string): Uint8Array {
    return new TextEncoder().encode(`${instanceId}\n`)
  }

  close(): void {
    this.#listening?.stop(true)
    if (this.#listening) closeSync(this.#listening.dirFile)
    this.#listening = null
    rmSync(`${this.#dir}/${socketName}`, { force: true })
  }

  #listen() {
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    rmSync(`${this.#dir}/${socketName}`, { force: true })
    // Through a descriptor, for the path of a socket may have 107 bytes only.
    const dirFile = openSync(this.#dir, 'r')
    const listener = Bun.listen<Conversation>({
      unix: `/proc/self/fd/${dirFile}/${socketName}`,
      socket: {
        binaryType: 'uint8array',
        open: (socket) => {
          this.#connections++
          socket.data = { instanceId: null, held: new Uint8Array(), pending: 0, outgoing: [] }
          socket.timeout(idleSeconds)
          if (this.#connections > connectionsMax) socket.terminate()
        },
        data: (socket, chunk) => this.#onData(socket, chunk),
        drain: (socket) => flush(socket),
        timeout: (socket) => void socket.terminate(),
        close: (socket) => {
          this.#connections--
          const { instanceId } = socket.data
          if (instanceId !== null) this.#count(instanceId, -1)
        },
        error: (_, error) => this.#log.debug('a DNS connection broke', { error: error.message }),
      },
    })
    return { stop: (force: boolean) => listener.stop(force), dirFile }
  }

  #count(instanceId: string, change: 1 | -1): number {
    const count = (this.#perInstance.get(instanceId) ?? 0) + change
    if (count === 0) this.#perInstance.delete(instanceId)
    else this.#perInstance.set(instanceId, count)
    return count
  }

  #onData(socket: Socket<Conversation>, chunk: Uint8Array) {
    const conversation = socket.data
    socket.timeout(idleSeconds)
    conversation.held =
      conversation.held.length === 0 ? chunk.slice() : Buffer.concat([conversation.held, chunk])
    if (conversation.instanceId === null) {
      const end = conversation.held.indexOf(0x0a)
      if (end < 0 && conversation.held.length <= instanceIdBytesMax) return
      if (end < 0) return void socket.terminate()
      const instanceId = new TextDecoder().decode(conversation.held.subarray(0, end))
      conversation.instanceId = instanceId
      conversation.held = conversation.held.subarray(end + 1)
      if (this.#count(instanceId, 1) > connectionsPerInstanceMax) return void socket.terminate()
    }
    while (conversation.held.length >= 2) {
      const length = (conversation.held[0]! << 8) | conversation.held[1]!
      const waiting = conversation.pending + conversation.outgoing.length
      if (length > queryBytesMax || waiting >= pipelinedMax) return void socket.terminate()
      if (conversation.held.length < 2 + length) return
      const query = conversation.held.slice(2, 2 + length)
      conversation.held = conversation.held.subarray(2 + length)
      conversation.pending++
      void this.#answer(conversation.instanceId, query).then((answer) => {
        conversation.pending--
        if (answer === null) return void socket.end()
        const { length } = answer
        conversation.outgoing.push(Buffer.concat([Uint8Array.of(length >> 8, length & 0xff), answer]))
        flush(socket)
      })
    }
  }
}

function flush(socket: Socket<Conversation>) {
  const { outgoing } = socket.data
  while (outgoing.length > 0) {
    const bytes = outgoing[0]!
    const sent = socket.write(bytes)
    if (sent < 0) {
      outgoing.length = 0
      return
    }
    if (sent < bytes.length) {
      outgoing[0] = bytes.subarray(sent)
      return
    }
    outgoing.shift()
  }
}
