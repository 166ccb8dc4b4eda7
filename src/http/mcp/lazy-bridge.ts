import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type { McpBridge } from './bridge/index.ts'

/** The bridge, loaded and made when the first function needs it: most platforms have none. */
export class LazyMcpBridge implements Disposable {
  readonly #options: { clock: Clock; log: Logger }
  #opening: Promise<McpBridge> | null = null
  #opened: McpBridge | null = null

  constructor(options: { clock: Clock; log: Logger }) {
    this.#options = options
  }

  /** Whether one more session has place in this instance. */
  fits(instanceId: string): boolean {
    return this.#opened?.fits(instanceId) ?? true
  }

  async open(): Promise<McpBridge> {
    this.#opening ??= import('./bridge/index.ts').then(({ McpBridge }) => {
      this.#opened = new McpBridge(this.#options)
      return this.#opened
    })
    return await this.#opening
  }

  [Symbol.dispose](): void {
    this.#opened?.[Symbol.dispose]()
  }
}
