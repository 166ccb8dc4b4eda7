import type { KeeperChannel, KeeperEgress, LeavingConnection } from '../../guest/index.ts'
import type { Egress } from '../../spec/egress.ts'
import type { Dialler } from './dialler.ts'

/** What leaves one instance: asks what becomes of it, and has it done. */
export class Leaving implements KeeperEgress {
  readonly #instanceId: string
  readonly #egress: Egress
  readonly #dialler: Dialler
  #keeper: KeeperChannel | null = null

  constructor(instanceId: string, egress: Egress, dialler: Dialler) {
    this.#instanceId = instanceId
    this.#egress = egress
    this.#dialler = dialler
  }

  /** By way of this channel. */
  attach(keeper: KeeperChannel): void {
    this.#keeper = keeper
  }

  onConnect(leaving: LeavingConnection): void {
    void this.#connect(leaving)
  }

  onQuery(id: number, query: Uint8Array): void {
    void this.#egress.answerQuery(this.#instanceId, query).then((answer) => {
      if (answer !== null) this.#keeper?.answerQuery(id, answer)
    })
  }

  ended(): void {
    this.#egress.ended(this.#instanceId)
  }

  async #connect(leaving: LeavingConnection): Promise<void> {
    const { id, kind, address, port } = leaving
    const connection = { instanceId: this.#instanceId, kind, address, port }
    const verdict = await this.#egress.decide(connection)
    if (verdict.kind === 'refuse') return void this.#keeper?.refuse(id)
    const errno = await this.#dialler.dial(this.#instanceId, {
      mailbox: `${this.#instanceId}/run/egress.sock`,
      connection: id,
      ...(verdict.kind === 'dial'
        ? { address: verdict.address, port: verdict.port }
        : { address: verdict.path, port: 0, preamble: verdict.preamble }),
    })
    if (errno === null) return
    this.#egress.failed(connection, errno)
    this.#keeper?.refuse(id)
  }
}
