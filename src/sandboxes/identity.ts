import { posix } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Guest, GuestFiles, Identity } from '../spec/guest.ts'

/** Larger account files are not of an image that was made for programs to start quickly. */
const accountsBytesMax = 4 * 1024 * 1024
const userCharsMax = 256
const userVariable = 'BL_SANDBOX_USER'
const enabledVariable = 'BL_SANDBOX_USER_ENABLED'

export interface SandboxUser extends Identity {
  name: string
  home: string
}

/**
 * Whom the programs of a sandbox run as, '' for root: the user that the image or the environment names, when the
 * environment says that it counts, or the one that the image's `sandbox-api --user` asks for.
 * @throws bad_request when it says so and nobody is named
 */
export function wantedUser(imageUser: string, env: Record<string, string>, program: string[]): string {
  const asked = userOption(program)
  if (asked === null && env[enabledVariable] !== 'true') return ''
  const user = asked || env[userVariable] || imageUser
  if (user !== '' && user.length <= userCharsMax) return user
  throw new PlatformError(
    'bad_request',
    `${enabledVariable} is true, but neither USER of the image nor ${userVariable} names a user`,
  )
}

/** Whether this is the cloud's own sandbox API, whose work the platform does. */
export function isSandboxApi(program: string[]): boolean {
  return posix.basename(program[0] ?? '') === 'sandbox-api'
}

function userOption(program: string[]): string | null {
  if (!isSandboxApi(program)) return null
  const at = program.findIndex((word) => word === '--user' || word.startsWith('--user='))
  if (at < 0) return null
  return program[at] === '--user' ? (program[at + 1] ?? '') : program[at]!.slice('--user='.length)
}

/**
 * Looks a user up in the accounts of the sandbox: `app`, `10001`, `app:app` or `10001:10001`.
 * @throws bad_request when it does not exist or is root
 */
async function findUser(files: GuestFiles, user: string): Promise<SandboxUser> {
  const [wanted = '', wantedGroup] = user.split(':')
  const accounts = await readLines(files, '/etc/passwd')
  const account = accounts
    .map((line) => line.split(':'))
    .find(([name, , uid]) => (isNumber(wanted) ? uid === wanted : name === wanted))
  if (!account) throw refused(user, 'does not exist in /etc/passwd of the image')
  let gid = Number(account[3])
  if (wantedGroup) {
    const groups = await readLines(files, '/etc/group')
    const group = groups
      .map((line) => line.split(':'))
      .find(([name, , id]) => (isNumber(wantedGroup) ? id === wantedGroup : name === wantedGroup))
    if (!group && !isNumber(wantedGroup))
      throw refused(user, 'has a group that is not in /etc/group of the image')
    gid = Number(group?.[2] ?? wantedGroup)
  }
  const uid = Number(account[2])
  const inRange = (id: number) => Number.isInteger(id) && id >= 0 && id <= 65_535
  if (!inRange(uid) || !inRange(gid)) throw refused(user, 'has an id that is not between 0 and 65535')
  if (uid === 0) throw refused(user, 'is root: name another, or leave the variable out')
  return { uid, gid, name: account[0] ?? '', home: account[5] || '/' }
}

/** From now on everything is done as this user. @throws bad_request as `findUser`, and where nobody can be another */
export async function becomeUser(guest: Guest, user: string): Promise<SandboxUser> {
  if (!guest.actAs) {
    throw new PlatformError('bad_request', `${enabledVariable}: programs can be nobody else on this platform`)
  }
  const found = await findUser(guest.files, user)
  guest.actAs(found)
  await guest.files.stat('/').catch((cause) => {
    throw new PlatformError(
      'bad_request',
      `${enabledVariable}: sandboxes have only one user on this platform, which runs neither as root nor with subordinate ids`,
      { cause },
    )
  })
  return found
}

/** What programs expect to be told of who they are; what is set otherwise wins. */
export function userEnv(user: SandboxUser): Record<string, string> {
  return { HOME: user.home, USER: user.name, LOGNAME: user.name }
}

async function readLines(files: GuestFiles, path: string): Promise<string[]> {
  const { body } = await files.read(path, { length: accountsBytesMax }).catch((cause) => {
    throw new PlatformError('bad_request', `${userVariable}: ${path} of the image cannot be read`, { cause })
  })
  return (await new Response(body).text()).split('\n')
}

function isNumber(text: string): boolean {
  return /^\d{1,10}$/.test(text)
}

function refused(user: string, why: string): PlatformError {
  return new PlatformError(
    'bad_request',
    `the user ${JSON.stringify(user)} (USER of the image, or ${userVariable}) ${why}`,
  )
}
