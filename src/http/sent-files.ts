import { fstatSync } from 'node:fs'
import { shutdownConnection } from '../lib/tcp-connections.ts'
import type { OpenFile } from '../spec/guest.ts'

/** Files on their way at once, of all sandboxes; a few more while several requests begin together. */
const sentFilesMax = 512
/** So long after an exchange its file may stay open. */
const lookEveryMs = 20

/** The part of Bun's server that this needs. */
export interface SendingServer {
  readonly port: number | undefined
  requestIP(request: Request): { address: string; port: number } | null
}

interface SentFile {
  server: SendingServer
  request: Request
  file: OpenFile
  peer: { address: string; port: number }
  end: () => void
}

/**
 * Files that the kernel sends from their descriptors to clients. The server neither closes such a descriptor nor tells
 * when it is done with it, but knows a request's peer for exactly as long as the request is being answered.
 */
export class SentFiles implements Disposable {
  #sent = new Set<SentFile>()
  #timer: ReturnType<typeof setInterval> | null = null

  get full(): boolean {
    return this.#sent.size >= sentFilesMax
  }

  /** See `SendFile`; the answer has to become the answer of this request. */
  send(
    server: SendingServer,
    request: Request,
    file: OpenFile,
    headers: Headers,
    onEnd: () => void,
  ): Response {
    const peer = server.requestIP(request)
    if (peer === null) {
      // The client is gone, and nobody reads this.
      file[Symbol.dispose]()
      onEnd()
      return new Response(null, { headers })
    }
    const end = () => {
      this.#sent.delete(sent)
      file[Symbol.dispose]()
      onEnd()
    }
    const sent: SentFile = { server, request, file, peer, end }
    this.#sent.add(sent)
    this.#timer ??= setInterval(() => this.#look(), lookEveryMs)
    // Put in by the server, it would leave behind the other headers, in five pieces.
    headers.set('date', new Date().toUTCString())
    return new Response(Bun.file(file.descriptor), { headers })
  }

  #look() {
    for (const sent of this.#sent) {
      if (sent.server.requestIP(sent.request) === null) this.#ended(sent)
      else if (sent.file.revoked) this.#cut(sent)
    }
    if (this.#sent.size > 0 || this.#timer === null) return
    clearInterval(this.#timer)
    this.#timer = null
  }

  #ended(sent: SentFile) {
    // It became shorter while it was sent, so the client still waits for what its length promised.
    if (fstatSync(sent.file.descriptor).size < sent.file.bytes) this.#cut(sent)
    sent.end()
  }

  #cut({ server, peer }: SentFile) {
    if (server.port !== undefined) shutdownConnection(server.port, peer)
  }

  /** Lets go of every file. The server is stopped by then. */
  [Symbol.dispose](): void {
    if (this.#timer !== null) clearInterval(this.#timer)
    this.#timer = null
    for (const { end } of [...this.#sent]) end()
  }
}
