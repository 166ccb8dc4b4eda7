import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { type BatchStep, pageLimitMax, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { normalHost } from './reference.ts'

export interface RegistryCredentials {
  username: string
  password: string
}

interface CredentialBody {
  username: string
  sealedPassword: string
}

const credentialKind = 'registry_credential'
export const passwordCharsMax = 16 * 1024
export const usernameCharsMax = 256
const dockerConfigBytesMax = 256 * 1024

const dockerConfigSchema = z.object({
  auths: z
    .record(
      z.string(),
      z.object({
        auth: z.string().optional(),
        username: z.string().optional(),
        password: z.string().optional(),
      }),
    )
    .default({}),
})

/**
 * Credentials for registries: those of a workspace, sealed in the store, and those of the operator, in a file of Docker's
 * format. None is ever answered or logged.
 */
export class Credentials {
  readonly #store: Store
  readonly #secrets: SecretBox
  readonly #authFile: string | null

  constructor(options: { store: Store; secrets: SecretBox; authFile: string | null }) {
    this.#store = options.store
    this.#secrets = options.secrets
    this.#authFile = options.authFile
  }

  async list(workspace: string): Promise<{ host: string; username: string; updatedAt: number }[]> {
    const page = await this.#store.page<CredentialBody>({
      kind: credentialKind,
      workspace,
      limit: pageLimitMax,
      sort: 'name:asc',
    })
    return page.data.map(({ name, body, updatedAt }) => ({ host: name, username: body.username, updatedAt }))
  }

  async set(workspace: string, host: string, { username, password }: RegistryCredentials): Promise<void> {
    const key = { kind: credentialKind, workspace, name: normalHost(host) }
    const body: CredentialBody = {
      username,
      sealedPassword: this.#secrets.seal(password, aad(workspace, key.name)),
    }
    const present = await this.#store.get(key)
    if (present) await this.#store.update(key, present.version, { body })
    else await this.#store.batch([{ op: 'create', input: { ...key, body } }, inWorkspace(workspace)])
  }

  /** @throws not_found */
  async remove(workspace: string, host: string): Promise<void> {
    const name = normalHost(host)
    if (await this.#store.remove({ kind: credentialKind, workspace, name })) return
    throw new PlatformError('not_found', `no credentials are kept for the registry ${JSON.stringify(name)}`)
  }

  /** Steps that forget all of a workspace's. */
  async removal(workspace: string): Promise<BatchStep[]> {
    const kept = await this.list(workspace)
    return kept.map(({ host }) => ({ op: 'remove', key: { kind: credentialKind, workspace, name: host } }))
  }

  /** Those given along first, then the workspace's, then the operator's. */
  async find(
    workspace: string,
    host: string,
    given: RegistryCredentials | null,
  ): Promise<RegistryCredentials | null> {
    if (given) return given
    const stored = await this.#store.get<CredentialBody>({ kind: credentialKind, workspace, name: host })
    if (stored) {
      const { username, sealedPassword } = stored.body
      return { username, password: this.#secrets.open(sealedPassword, aad(workspace, host)) }
    }
    if (this.#authFile === null) return null
    const text = await readFile(this.#authFile, 'utf8').catch((cause) => {
      throw new PlatformError('unavailable', 'registryAuthFile cannot be read', { cause })
    })
    return fromDockerConfig(text, host, 'registryAuthFile')
  }
}

/**
 * The credentials for a host in a configuration of Docker's, JSON or base64 of it.
 * @throws bad_request that names the field, and nothing of what is in it
 */
export function fromDockerConfig(text: string, host: string, field: string): RegistryCredentials | null {
  const wrong = () =>
    new PlatformError(
      'bad_request',
      `${field} is not a Docker config.json ({"auths":{"host":{"auth":"..."}}})`,
    )
  if (text.length > dockerConfigBytesMax) throw wrong()
  let parsed: z.output<typeof dockerConfigSchema>
  try {
    const plain = text.trimStart().startsWith('{') ? text : Buffer.from(text, 'base64').toString('utf8')
    parsed = dockerConfigSchema.parse(JSON.parse(plain))
  } catch {
    throw wrong()
  }
  for (const [name, { auth, username, password }] of Object.entries(parsed.auths)) {
    const bare = name.replace(/^https?:\/\//, '').replace(/\/.*$/, '')
    if (normalHost(bare) !== host) continue
    if (username !== undefined && password !== undefined) return { username, password }
    const decoded = Buffer.from(auth ?? '', 'base64').toString('utf8')
    const colon = decoded.indexOf(':')
    if (colon < 0) throw wrong()
    return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1).replace(/\0+$/, '') }
  }
  return null
}

function aad(workspace: string, host: string): string {
  return `registry:${workspace}/${host}`
}
