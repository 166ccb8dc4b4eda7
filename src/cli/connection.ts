import { resolve } from 'node:path'
import {
  type Credentials,
  dataDirDefault,
  isDataDirDefault,
  type RunningPlatform,
  readCredentials,
  readRunningPlatform,
} from '../data-directory.ts'
import { CommandError, type Target } from './command.ts'
import { apiUrlOf, isSame, type Login, readLogins, writeLogins } from './logins.ts'
import { shellQuote } from './shell.ts'

const renewBeforeMs = 5 * 60 * 1000

export interface Connection {
  /** Base of the control plane, with /v0 and without a trailing slash. */
  apiUrl: string
  workspace: string
  apiKey: string
}

export function dataDirFor(flag: string | undefined): string {
  return resolve(flag ?? (process.env.HUTCH_DATA_DIR || dataDirDefault()))
}

/** @throws CommandError that says how to start the platform */
export function runningConnection(dataDir: string): { running: RunningPlatform; credentials: Credentials } {
  const up = `hutch up${isDataDirDefault(dataDir) ? '' : ` --data-dir ${shellQuote(dataDir)}`}`
  const running = readRunningPlatform(dataDir)
  if (!running) throw new CommandError(`no platform runs on ${dataDir}`, up)
  const credentials = readCredentials(dataDir)
  if (!credentials) {
    throw new CommandError(
      `${dataDir} has no credentials.json: stop the platform, and its next start writes another`,
      up,
    )
  }
  return { running, credentials }
}

/** Where a command's requests go, and why there. */
type Source = { kind: 'data-dir'; dataDir: string } | { kind: 'variables' } | { kind: 'login'; login: Login }

/**
 * The data directory that was asked for (--data-dir, HUTCH_DATA_DIR), else the BL_* variables, else the latest login,
 * else the default data directory. A key alone goes nowhere: it may be the cloud's.
 */
export function sourceOf(flags: Target): Source {
  const { BL_API_URL, BL_API_KEY, HUTCH_DATA_DIR } = process.env
  if (flags['data-dir'] !== undefined || HUTCH_DATA_DIR) {
    return { kind: 'data-dir', dataDir: dataDirFor(flags['data-dir']) }
  }
  const { logins } = readLogins()
  if (BL_API_URL) {
    if (BL_API_KEY) return { kind: 'variables' }
    const apiUrl = apiUrlOf(BL_API_URL)
    const login = loginFor(
      logins.filter((one) => one.apiUrl === apiUrl),
      flags.workspace ?? process.env.BL_WORKSPACE,
    )
    if (login) return { kind: 'login', login }
    throw new CommandError(
      `BL_API_URL is ${JSON.stringify(BL_API_URL)}, but BL_API_KEY is not set and nobody is logged in there`,
      apiUrl === null ? 'eval "$(hutch env)"' : `hutch login --url ${shellQuote(BL_API_URL)}`,
    )
  }
  const [latest] = logins
  const there = logins.filter((one) => one.apiUrl === latest?.apiUrl)
  const login = loginFor(there, flags.workspace)
  return login ? { kind: 'login', login } : { kind: 'data-dir', dataDir: dataDirFor(undefined) }
}

/** The login of this workspace, else the latest: a user's key reaches all workspaces of that user. */
function loginFor(logins: Login[], workspace: string | undefined): Login | undefined {
  return logins.find((one) => one.workspace === workspace) ?? logins[0]
}

export function connectionFor(flags: Target): Connection {
  const source = sourceOf(flags)
  switch (source.kind) {
    case 'variables':
      return variablesConnection(flags)
    case 'login': {
      const connection = loginConnection(source.login)
      const wanted = flags.workspace ?? (process.env.BL_API_URL ? process.env.BL_WORKSPACE : undefined)
      return wanted ? { ...connection, workspace: wanted } : connection
    }
    case 'data-dir': {
      const { running, credentials } = runningConnection(source.dataDir)
      return {
        apiUrl: `${running.url}/v0`,
        workspace: flags.workspace ?? chosenWorkspace(source.dataDir) ?? credentials.workspace,
        apiKey: credentials.apiKey,
      }
    }
  }
}

export function loginConnection({ apiUrl, workspace, credential }: Login): Connection {
  const apiKey = credential.kind === 'api-key' ? credential.apiKey : credential.accessToken
  return { apiUrl, workspace, apiKey }
}

/** What `hutch workspaces NAME` said of a platform of this machine. */
export function chosenWorkspace(dataDir: string): string | undefined {
  return readLogins().workspaces[dataDir]
}

function variablesConnection(flags: Target): Connection {
  const { BL_API_URL = '', BL_API_KEY = '', BL_WORKSPACE } = process.env
  const workspace = flags.workspace ?? BL_WORKSPACE
  if (!workspace)
    throw new CommandError(
      'BL_API_URL and BL_API_KEY are set, BL_WORKSPACE is not',
      'export BL_WORKSPACE=main',
    )
  const apiUrl = apiUrlOf(BL_API_URL)
  if (apiUrl === null) {
    throw new CommandError(
      `BL_API_URL ${JSON.stringify(BL_API_URL)} is no address such as http://localhost:4400/v0`,
      'eval "$(hutch env)"',
    )
  }
  return { apiUrl, workspace, apiKey: BL_API_KEY }
}

/** A service account's token lives two hours: before a command, one that is about to end is replaced. */
export async function renewLogin(flags: Target): Promise<void> {
  const source = sourceOf(flags)
  if (source.kind !== 'login') return
  const { login } = source
  const { credential } = login
  if (credential.kind !== 'service-account' || credential.expiresAt - Date.now() > renewBeforeMs) return
  const { Gate } = await import('../client/index.ts')
  const renewed = await new Gate(login.apiUrl).clientCredentials(credential.clientId, credential.clientSecret)
  const file = readLogins()
  const logins = file.logins.map((one) =>
    isSame(one, login) ? { ...one, credential: { ...credential, ...renewed } } : one,
  )
  writeLogins({ ...file, logins })
}
