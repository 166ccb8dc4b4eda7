import type { SecretBox } from '../lib/secret-box.ts'

/** Environments of instances, which rest sealed for one instance alone. */
export class InstanceSealing {
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>

  constructor(secrets: Pick<SecretBox, 'seal' | 'open'>) {
    this.#secrets = secrets
  }

  seal(id: string, env: Record<string, string>): string {
    return this.#secrets.seal(JSON.stringify(env), `instance:${id}`)
  }

  open(id: string, sealed: string): Record<string, string> {
    return JSON.parse(this.#secrets.open(sealed, `instance:${id}`)) as Record<string, string>
  }
}
