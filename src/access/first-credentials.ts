import { type Credentials, readCredentials, writeCredentials } from '../data-directory.ts'
import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import type { Users, Workspaces } from '../workspaces/index.ts'
import type { Access } from './index.ts'

const workspaceFirst = 'main'
const adminEmail = 'admin@hutch.localhost'
const keyName = 'hutch env'
const namesTriedMax = 100

interface FirstCredentialsOptions {
  dataDir: string
  users: Users
  workspaces: Workspaces
  access: Access
  log: Logger
}

/**
 * What `hutch env` prints: the key of the first admin, and a workspace of theirs to act in. The first start makes both;
 * a key that was revoked is replaced at the next one. When the admin leaves the workspace, or it is deleted, another of
 * theirs takes its place at once.
 */
export class FirstCredentials implements AsyncDisposable {
  readonly #options: FirstCredentialsOptions
  readonly #adminSub: string
  #current: Credentials
  #following: Promise<void> | null = null
  #changed = false
  #closed = false

  private constructor(options: FirstCredentialsOptions, adminSub: string, current: Credentials) {
    this.#options = options
    this.#adminSub = adminSub
    this.#current = current
    options.users.onChange(() => this.#follow())
  }

  static async open(options: FirstCredentialsOptions): Promise<FirstCredentials> {
    const { dataDir, users, workspaces, access } = options
    const known = readCredentials(dataDir)
    const { sub } =
      (await users.getByEmail(adminEmail)) ?? (await users.create({ email: adminEmail, givenName: 'Admin' }))
    const workspace =
      chosen(await workspaces.namesOf(sub), known?.workspace) ?? (await firstWorkspace(workspaces, sub))
    const accepted = known !== null && (await isAccepted(access, known.apiKey))
    const apiKey = accepted ? known.apiKey : await newKey(access, sub)
    const current = { workspace, apiKey }
    if (!accepted || known.workspace !== workspace) writeCredentials(dataDir, current)
    return new FirstCredentials(options, sub, current)
  }

  get current(): Credentials {
    return this.#current
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    await this.#following
  }

  #follow(): void {
    this.#changed = true
    this.#following ??= this.#keepUp().finally(() => {
      this.#following = null
    })
  }

  async #keepUp(): Promise<void> {
    const { dataDir, workspaces, log } = this.#options
    while (this.#changed && !this.#closed) {
      this.#changed = false
      try {
        const names = await workspaces.namesOf(this.#adminSub)
        const workspace = chosen(names, this.#current.workspace)
        if (workspace === null || workspace === this.#current.workspace) continue
        this.#current = { ...this.#current, workspace }
        writeCredentials(dataDir, this.#current)
      } catch (error) {
        log.warn('the workspace that hutch env prints may be gone', { error })
      }
    }
  }
}

/** The one so far while it can be used. Null: there is none. */
function chosen(names: string[], known: string | undefined): string | null {
  for (const name of [known, workspaceFirst]) if (name !== undefined && names.includes(name)) return name
  return names.sort()[0] ?? null
}

/** Where the name is somebody else's by now, the next one. */
async function firstWorkspace(workspaces: Workspaces, ownerSub: string): Promise<string> {
  for (let tried = 1; ; tried++) {
    const name = tried === 1 ? workspaceFirst : `${workspaceFirst}-${tried}`
    try {
      await workspaces.create({ name, displayName: 'Main', ownerSub })
      return name
    } catch (error) {
      const taken = PlatformError.is(error) && error.code === 'already_exists'
      if (!taken || tried === namesTriedMax) throw error
    }
  }
}

async function newKey(access: Access, sub: string): Promise<string> {
  const input = { sub, subType: 'user', workspace: '', name: keyName, createdBy: sub } as const
  return (await access.keys.create(input)).key
}

async function isAccepted(access: Access, apiKey: string): Promise<boolean> {
  try {
    await access.authenticate(apiKey)
    return true
  } catch (error) {
    if (PlatformError.is(error) && error.code === 'authentication_failed') return false
    throw error
  }
}
