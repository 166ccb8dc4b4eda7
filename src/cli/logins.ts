import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { CommandError } from './command.ts'
import { shellQuote } from './shell.ts'

/** Who somebody is on platforms elsewhere, as `hutch login` wrote it down; the latest login is the first. */
export interface Login {
  /** With /v0 and without a trailing slash. */
  apiUrl: string
  workspace: string
  credential: SavedCredential
}

export type SavedCredential =
  /** `keyId`: made by this login, and revoked when it ends. */
  | { kind: 'api-key'; apiKey: string; keyId?: string }
  | {
      kind: 'service-account'
      clientId: string
      clientSecret: string
      accessToken: string
      /** Milliseconds since the epoch. */
      expiresAt: number
    }

interface LoginsFile {
  logins: Login[]
  /** Workspaces chosen for platforms of this machine, by their data directory. */
  workspaces: Record<string, string>
}

const loginsMax = 100

function loginsPath(): string {
  return join(process.env.XDG_CONFIG_HOME || join(homedir(), '.config'), 'hutch', 'logins.json')
}

export function readLogins(): LoginsFile {
  let text: string
  try {
    text = readFileSync(loginsPath(), 'utf8')
  } catch (error) {
    const { code } = error as { code?: string }
    if (code === 'ENOENT' || code === 'ENOTDIR') return { logins: [], workspaces: {} }
    throw error
  }
  try {
    const read = JSON.parse(text) as Partial<LoginsFile>
    const logins = (read.logins ?? []).filter(isLogin)
    return { logins, workspaces: { ...read.workspaces } }
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw new CommandError(`${loginsPath()} is not JSON any more`, `rm ${shellQuote(loginsPath())}`)
  }
}

function isLogin(value: Partial<Login> | null): value is Login {
  return (
    typeof value?.apiUrl === 'string' &&
    typeof value.workspace === 'string' &&
    ['api-key', 'service-account'].includes(value.credential?.kind ?? '')
  )
}

/** Whole or not at all, for the eyes of this user. */
export function writeLogins(file: LoginsFile): void {
  const path = loginsPath()
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  const draft = `${path}.${process.pid}`
  writeFileSync(draft, `${JSON.stringify(file, null, 2)}\n`, { mode: 0o600 })
  renameSync(draft, path)
}

/** Puts it first, in place of another for the same workspace there. */
export function saveLogin(login: Login): void {
  const { logins, workspaces } = readLogins()
  const others = logins.filter((other) => !isSame(other, login))
  writeLogins({ logins: [login, ...others].slice(0, loginsMax), workspaces })
}

export function isSame(one: Login, other: Login): boolean {
  return one.apiUrl === other.apiUrl && one.workspace === other.workspace
}

/** An address as somebody types it, as that of the control plane; null for what is none. */
export function apiUrlOf(address: string): string | null {
  if (!/^https?:\/\//.test(address) || !URL.canParse(address)) return null
  const bare = address.replace(/\/+$/, '')
  return new URL(bare).pathname === '/' ? `${bare}/v0` : bare
}
