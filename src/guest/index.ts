import type { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import type { Guest, Identity } from '../spec/guest.ts'
import { ControlChannel } from './control.ts'
import { FilesChannel } from './files.ts'

export { DiallerChannel, type DialTarget } from './dialler.ts'
export { fileError, printable } from './errno.ts'
export { type GuestState, KeeperChannel, type KeeperEgress, type LeavingConnection } from './keeper.ts'
export {
  HelperError,
  type LaunchedInstance,
  Launcher,
  outlivingHelper,
  type ProcessIdentity,
} from './launcher.ts'
export { HelperLayers } from './layers.ts'

export interface GuestClientOptions {
  /** Path of the guest's socket: at most 107 bytes. */
  socketPath: string
  /** Where process 1 writes output to, on this host. */
  logDir: string
  log: Logger
  requestTimeoutMs?: number
  stallMsMax?: number
  idleMsMax?: number
  lastingMsMin?: number
  /** Programs that shall run in `from`, or below, run in `to`: where the guest has the host's own directories. */
  workingDir?: { from: string; to: string } | null
  /** The connection to process 1 was lost, and not by us: it may have ended. */
  onLost?: () => void
}

/** Process 1 of one instance, reached over its socket. */
export class GuestClient implements Guest {
  readonly processes: ControlChannel
  readonly files: FilesChannel

  constructor(options: GuestClientOptions) {
    this.processes = new ControlChannel(options)
    this.files = new FilesChannel(options)
  }

  /** @throws unavailable when nobody answers */
  async open(): Promise<void> {
    await this.processes.open()
  }

  actAs(identity: Identity): void {
    this.processes.actAs(identity)
    this.files.actAs(identity)
  }

  /** Around freezing: requests wait instead of timing out. */
  suspend(): void {
    this.processes.suspend()
    this.files.suspend()
  }

  resume(): void {
    this.processes.resume()
    this.files.resume()
  }

  /** Ends every wait, stream and transfer with `error`. */
  close(error: PlatformError): void {
    this.processes.close(error)
    this.files.close(error)
  }
}
