/** Where the programs of an execution read their tasks: whoever has the address has the right to that, and no other. */
import { createHmac, timingSafeEqual } from 'node:crypto'
import type { SecretBox } from '../lib/secret-box.ts'

const separator = '~'

export class DataAddresses {
  readonly #key: Uint8Array

  constructor(secrets: Pick<SecretBox, 'deriveKey'>) {
    this.#key = secrets.deriveKey('execution-data')
  }

  /** Nothing of it is kept: it is the same at every start. */
  tokenOf(workspace: string, id: string): string {
    const named = `${workspace}${separator}${id}`
    return `${named}${separator}${this.#signature(named)}`
  }

  /** The execution that an address is of; null for one that was not made here. */
  executionOf(token: string): { workspace: string; id: string } | null {
    const [workspace = '', id = '', signature = ''] = token.split(separator)
    const wanted = Buffer.from(this.#signature(`${workspace}${separator}${id}`))
    const given = Buffer.from(signature)
    return given.length === wanted.length && timingSafeEqual(given, wanted) ? { workspace, id } : null
  }

  #signature(named: string): string {
    return createHmac('sha256', this.#key).update(named).digest('base64url')
  }
}
