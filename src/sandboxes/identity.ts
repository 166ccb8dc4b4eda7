import { posix } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Guest, GuestFiles, Identity } from '../spec/guest.ts'

/** Larger account files are not of an image that was made for programs to start quickly. */
const accountsBytesMax = 4 * 1024 * 1024
const userCharsMax = 256
const userVariable = 'BL_SANDBOX_USER'
const enabledVariable = 'BL_SANDBOX_USER_ENABLED'
/** Words of a program that may be its script. */
const scriptWordsMax = 4
const scriptBytesMax = 64 * 1024
const pathDirsMax = 16
/** A name as it stands, `$NAME`, `${NAME}`, or `${NAME:-name}` with its kin. */
const word = String.raw`[\w.:-]+|\$\w+|\$\{\w+(?::?[-=][\w.:-]*)?\}`
const variable = /^\$(?:(?<bare>\w+)|\{(?<braced>\w+)(?:(?<colon>:?)[-=](?<fallback>[\w.:-]*))?\})$/
/** A command of a script, up to the end of what belongs to it. */
const sandboxApiUser = new RegExp(
  String.raw`(?:^|[\s;&|(])(?:[\w./-]*\/)?sandbox-api(?=\s)[^\n;&|]*?\s--user[= ]["']?(${word})`,
  'm',
)

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
function isSandboxApi(program: string[]): boolean {
  return posix.basename(program[0] ?? '') === 'sandbox-api'
}

function userOption(program: string[]): string | null {
  return isSandboxApi(program) ? optionOf(program, ['user']) : null
}

/** What is to run for an image's own program, whose sandbox API may be told of a command to start; [] for nothing. */
export function programOf(program: string[], env: Record<string, string>): string[] {
  if (!isSandboxApi(program)) return program
  const command = optionOf(program, ['command', 'c'])
  if (!command) return []
  const shellArgs = (env.SHELL_ARGS || '-c').split(/\s+/).filter(Boolean)
  // It runs there, whatever WORKDIR is.
  return [env.SHELL || 'sh', ...shellArgs, `cd /\n${command}`]
}

/** The value of an option of any of these names, with one dash or two; null where there is none. */
function optionOf([, ...words]: string[], names: string[]): string | null {
  for (const [at, text] of words.entries()) {
    const [, name = '', value] = /^--?(\w+)(?:=(.*))?$/s.exec(text) ?? []
    if (names.includes(name)) return value ?? words[at + 1] ?? ''
  }
  return null
}

/**
 * Whom a script that an image starts hands the sandbox over to, as those of the cloud do: it runs `sandbox-api --user NAME`
 * beside its own servers, and stays root. Null: to nobody. Asked before anything ran, so that it is the image's word.
 * @throws bad_request for a user who is not there, is root, or whose name the script makes up as it runs
 */
export async function userOfScript(
  guest: Guest,
  program: string[],
  { env, workingDir }: { env: Record<string, string>; workingDir: string },
): Promise<string | null> {
  for (const word of program.slice(0, scriptWordsMax)) {
    const text = await scriptText(guest.files, word, { path: env.PATH ?? '', workingDir })
    const named = text === null ? undefined : sandboxApiUser.exec(text)?.[1]
    if (text === null || named === undefined) continue
    const user = resolved(named, text, env)
    if (user === null) {
      throw new PlatformError(
        'bad_request',
        `the image's own program runs sandbox-api --user ${named}, of which the value is not known here: name the user, or set the variable`,
      )
    }
    await becomeUser(guest, user)
    // Until its script was started.
    guest.actAs?.(root)
    return user
  }
  return null
}

/** Comments and broken lines are out of it; null for what is no script. */
async function scriptText(
  files: GuestFiles,
  word: string,
  { path, workingDir }: { path: string; workingDir: string },
): Promise<string | null> {
  // `sh -c` has it as a word.
  if (/\s/.test(word)) return plainScript(word)
  const dirs = word.includes('/') ? [workingDir] : path.split(':').slice(0, pathDirsMax)
  for (const dir of dirs) {
    const bytes = await files
      .read(posix.resolve('/', dir, word), { length: scriptBytesMax })
      .then(({ body }) => new Response(body).bytes())
      .catch(() => null)
    if (bytes === null) continue
    const text = Buffer.from(bytes).toString('latin1')
    return text.startsWith('#!') ? plainScript(text) : null
  }
  return null
}

function plainScript(text: string): string {
  return text.replace(/\\\n/g, ' ').replace(/^\s*#.*$/gm, '')
}

/** What a word of a script comes to, by what the script assigns and the environment; null where that is not known here. */
function resolved(
  text: string,
  script: string,
  env: Record<string, string>,
  within: string[] = [],
): string | null {
  const found = variable.exec(text)?.groups
  if (!found) return text
  const name = found.bare ?? found.braced ?? ''
  // `NAME="${NAME:-name}"` means the variable as it was.
  const assigned = within.includes(name)
    ? undefined
    : new RegExp(`^\\s*(?:(?:export|readonly)\\s+)?${name}=["']?(${word})["']?\\s*$`, 'm').exec(script)?.[1]
  const value = assigned === undefined ? env[name] : resolved(assigned, script, env, [...within, name])
  if (value === undefined || value === null || (found.colon === ':' && value === '')) {
    return found.fallback ?? null
  }
  return value
}

/**
 * Looks a user up in the accounts of the sandbox: `app`, `10001`, `app:app` or `10001:10001`.
 * @throws bad_request when it does not exist or is root
 */
export async function findUser({ files }: Guest, user: string): Promise<SandboxUser> {
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
  const found = await findUser(guest, user)
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

const root: Identity = { uid: 0, gid: 0 }
export const rootEnv = { HOME: '/root', USER: 'root', LOGNAME: 'root' }

/** `fromRoot`: the variables were put together for root, whose home is no use to another. */
export function envOf(
  user: SandboxUser,
  env: Record<string, string>,
  fromRoot: boolean,
): Record<string, string> {
  const { HOME, ...rest } = env
  return { ...userEnv(user), ...(fromRoot && HOME === rootEnv.HOME ? rest : env) }
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
