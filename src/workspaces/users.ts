import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { BatchStep, Resource, Store } from '../spec/store.ts'
import { workspaceKey } from './key.ts'

export type MemberRole = 'admin' | 'member'

export interface User {
  sub: string
  email: string
  givenName: string
  familyName: string
}

/** A user's part in one workspace. */
export interface Member extends User {
  workspace: string
  role: MemberRole
  createdAt: number
  updatedAt: number
}

interface NewUser {
  email: string
  givenName?: string
  familyName?: string
}

type UserBody = Omit<User, 'sub'>
interface MemberBody {
  role: MemberRole
}

const workspacesPerUserMax = 1000
/** Below the store's `batchStepsMax`, so that a workspace goes with all its members at once. */
const membersPerWorkspaceMax = 900
const emailPattern = /^[^\s@]{1,64}@[^\s@]{1,190}$/

/** People, and which workspaces they belong to. */
export class Users {
  readonly #store: Store
  readonly #clock: Clock
  readonly #listeners = new Set<() => void>()
  /** By workspace: whether somebody is the last admin, and how many there are, holds until it is acted on. */
  readonly #membership = new KeyedLock()
  /** By user: in how many workspaces they are. */
  readonly #joining = new KeyedLock()

  constructor(options: { store: Store; clock: Clock }) {
    this.#store = options.store
    this.#clock = options.clock
  }

  /** Called after every change of a role or a user made through this object, before the change resolves. */
  onChange(listener: () => void): void {
    this.#listeners.add(listener)
  }

  /** @throws already_exists when the address is taken */
  async create(input: NewUser): Promise<User> {
    const { user, steps } = userCreation(input)
    await this.#store.batch(steps)
    return user
  }

  /** Creates a user in their first workspace. @throws as `create` and `add` */
  async createIn(workspace: string, input: NewUser, role: MemberRole): Promise<User> {
    const { user, steps } = userCreation(input)
    await this.#add(workspace, user.sub, role, steps)
    return user
  }

  async get(sub: string): Promise<User | null> {
    const found = await this.#store.get<UserBody>({ kind: 'user', workspace: '', name: sub })
    return found === null ? null : { sub, ...found.body }
  }

  async getByEmail(email: string): Promise<User | null> {
    const found = await this.#store.get<{ sub: string }>({
      kind: 'user_email',
      workspace: '',
      name: email.toLowerCase(),
    })
    return found === null ? null : this.get(found.body.sub)
  }

  /** Every workspace of the user with the role there. */
  async rolesOf(sub: string): Promise<Map<string, MemberRole>> {
    const found = await this.#store.find<MemberBody>({
      kind: 'member',
      index: 'sub',
      value: sub,
      limit: workspacesPerUserMax,
    })
    return new Map(found.map((member) => [member.workspace, member.body.role]))
  }

  async members(workspace: string): Promise<Member[]> {
    const found = await this.#membersOf(workspace)
    const members = await Promise.all(found.map((resource) => this.#memberOf(resource)))
    return members.filter((member) => member !== null)
  }

  #membersOf(workspace: string): Promise<Resource<MemberBody>[]> {
    return this.#store.find<MemberBody>({
      kind: 'member',
      workspace,
      index: 'workspace',
      value: workspace,
      limit: membersPerWorkspaceMax,
    })
  }

  /** By sub or e-mail address. @throws not_found */
  async member(workspace: string, subOrEmail: string): Promise<Member> {
    const sub = subOrEmail.includes('@') ? ((await this.getByEmail(subOrEmail))?.sub ?? '') : subOrEmail
    const found =
      sub === '' ? null : await this.#store.get<MemberBody>({ kind: 'member', workspace, name: sub })
    const member = found === null ? null : await this.#memberOf(found)
    if (member === null) {
      throw new PlatformError(
        'not_found',
        `User "${subOrEmail.slice(0, 254)}" is not in workspace "${workspace}"`,
      )
    }
    return member
  }

  /**
   * @throws already_exists when the user is in the workspace already, conflict when it is full or they are in as many
   *   as allowed, workspace_not_found
   */
  async add(workspace: string, sub: string, role: MemberRole): Promise<void> {
    await this.#add(workspace, sub, role, [])
  }

  async #add(workspace: string, sub: string, role: MemberRole, before: BatchStep[]): Promise<void> {
    await this.whileUnchanged(workspace, async () => {
      // Deleted meanwhile: a new one of its name must not find somebody in it.
      if ((await this.#store.get(workspaceKey(workspace))) === null) {
        throw new PlatformError('workspace_not_found', `Workspace "${workspace}" not found`)
      }
      if ((await this.members(workspace)).length >= membersPerWorkspaceMax) {
        throw new PlatformError(
          'conflict',
          `Workspace "${workspace}" has ${membersPerWorkspaceMax} users, the most`,
        )
      }
      await this.whileRoom(sub, () => this.#store.batch([...before, memberCreation(workspace, sub, role)]))
    })
    this.#changed()
  }

  /** Runs `work` while nobody joins or leaves the workspace and no role in it changes. */
  async whileUnchanged<Result>(workspace: string, work: () => Promise<Result>): Promise<Result> {
    return await this.#membership.run(workspace, work)
  }

  /** Runs `work`, which puts a user into one more workspace. @throws conflict when they are in as many as allowed */
  async whileRoom<Result>(sub: string, work: () => Promise<Result>): Promise<Result> {
    return await this.#joining.run(sub, async () => {
      if ((await this.rolesOf(sub)).size < workspacesPerUserMax) return await work()
      throw new PlatformError(
        'conflict',
        `User ${sub} is in ${workspacesPerUserMax} workspaces, the most allowed`,
      )
    })
  }

  /** @throws not_found, conflict for the last admin of the workspace */
  async setRole(workspace: string, subOrEmail: string, role: MemberRole): Promise<Member> {
    return await this.whileUnchanged(workspace, async () => {
      const member = await this.member(workspace, subOrEmail)
      if (member.role === role) return member
      if (member.role === 'admin') await this.#refuseLastAdmin(workspace, member)
      const key = { kind: 'member', workspace, name: member.sub }
      const found = await this.#store.get<MemberBody>(key)
      if (found === null)
        throw new PlatformError('not_found', `User "${member.email}" has left "${workspace}"`)
      await this.#store.update<MemberBody>(key, found.version, { body: { role } })
      this.#changed()
      return { ...member, role, updatedAt: this.#clock.now() }
    })
  }

  /** @throws not_found, conflict for the last admin of the workspace */
  async remove(workspace: string, subOrEmail: string): Promise<Member> {
    return await this.whileUnchanged(workspace, async () => {
      const member = await this.member(workspace, subOrEmail)
      if (member.role === 'admin') await this.#refuseLastAdmin(workspace, member)
      await this.#store.remove({ kind: 'member', workspace, name: member.sub })
      this.#changed()
      return member
    })
  }

  /** Steps that take everybody out of a workspace, to go with the workspace in one batch. */
  async removalSteps(workspace: string): Promise<BatchStep[]> {
    const members = await this.#membersOf(workspace)
    return members.map(({ name }) => ({ op: 'remove', key: { kind: 'member', workspace, name } }))
  }

  /** To be called by whoever ran `removalSteps` or `memberCreation` in a batch. */
  changedElsewhere(): void {
    this.#changed()
  }

  #changed(): void {
    for (const listener of this.#listeners) listener()
  }

  async #refuseLastAdmin(workspace: string, member: Member): Promise<void> {
    const members = await this.members(workspace)
    if (members.some(({ role, sub }) => role === 'admin' && sub !== member.sub)) return
    throw new PlatformError(
      'conflict',
      `${member.email} is the last admin of workspace "${workspace}": make somebody else an admin first`,
    )
  }

  async #memberOf(resource: Resource<MemberBody>): Promise<Member | null> {
    const user = await this.get(resource.name)
    if (user === null) return null
    const { workspace, createdAt, updatedAt } = resource
    return { ...user, workspace, role: resource.body.role, createdAt, updatedAt }
  }
}

function userCreation(input: NewUser): { user: User; steps: BatchStep[] } {
  const email = normalEmail(input.email)
  const body: UserBody = { email, givenName: input.givenName ?? '', familyName: input.familyName ?? '' }
  const sub = `usr_${randomText(16)}`
  return {
    user: { sub, ...body },
    // The first record makes the address unique: the store promises uniqueness of names only.
    steps: [
      { op: 'create', input: { kind: 'user_email', workspace: '', name: email, body: { sub } } },
      { op: 'create', input: { kind: 'user', workspace: '', name: sub, body } },
    ],
  }
}

export function memberCreation(workspace: string, sub: string, role: MemberRole): BatchStep {
  return {
    op: 'create',
    input: { kind: 'member', workspace, name: sub, body: { role }, indexes: { sub, workspace } },
  }
}

function normalEmail(email: string): string {
  const normal = email.trim().toLowerCase()
  if (!emailPattern.test(normal)) {
    throw new PlatformError('bad_request', `email: "${email.slice(0, 80)}" is not an e-mail address`)
  }
  return normal
}
