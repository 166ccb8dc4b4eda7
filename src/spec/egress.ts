/**
 * The egress seam: who decides on whatever leaves an instance. A runtime that can see every outgoing connection with its
 * instance asks here and does as it is told; it decides nothing itself. Nothing in here throws or rejects.
 */
export interface Egress {
  /** Called once a connection, again when the platform was started again meanwhile. */
  decide(connection: EgressConnection): Promise<EgressVerdict>
  /** A DNS query as it was sent over UDP; null: it stays without an answer. */
  answerQuery(instanceId: string, query: Uint8Array): Promise<Uint8Array | null>
  /** What was to be dialled could not be reached. */
  failed(connection: EgressConnection, errno: string): void
  /** The instance ended, or was let go of: nothing more comes from it. */
  ended(instanceId: string): void
}

export interface EgressConnection {
  readonly instanceId: string
  /** `api`: to port 8080 of the instance itself, where its own API is; the address is not told then. */
  readonly kind: 'outgoing' | 'api'
  /** Where it was sent to: 4 or 16 bytes; none for `api`. */
  readonly address: Uint8Array
  readonly port: number
}

export type EgressVerdict =
  /** In the network of this host. */
  | { kind: 'dial'; address: string; port: number }
  /** To a unix socket of this process; `preamble` is sent there before anything else, so that it knows whom it serves. */
  | { kind: 'hand_over'; path: string; preamble?: Uint8Array }
  /** The program inside gets a reset. */
  | { kind: 'refuse' }
