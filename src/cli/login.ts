import { spawn } from 'node:child_process'
import { hostname } from 'node:os'
import { Client, Gate, type WorkspaceInfo } from '../client/index.ts'
import { readRunningPlatform } from '../data-directory.ts'
import { withHints } from './client.ts'
import { CommandError, command, UsageError } from './command.ts'
import { dataDirFor } from './connection.ts'
import {
  apiUrlOf,
  isSame,
  type Login,
  readLogins,
  type SavedCredential,
  saveLogin,
  writeLogins,
} from './logins.ts'
import { note, paint, print, printJson } from './output.ts'
import { askSecret, canAsk, choose } from './prompt.ts'
import { shellQuote } from './shell.ts'

const addressDefault = 'http://localhost:4400'
/** A key that a login in the browser makes. */
const keyExpiry = '90d'
const keyNameCharactersMax = 100

export const login = command({
  name: 'login',
  summary: 'Logs in to a platform; every command goes there from then on.',
  usage: '[WORKSPACE]',
  flags: {
    url: {
      kind: 'text',
      value: 'URL',
      about: `address of the platform (BL_API_URL, the one that runs here, ${addressDefault})`,
    },
    'api-key': { kind: 'text', value: 'KEY', about: 'a key of yours; - reads it from the input' },
    browser: { kind: 'boolean', about: 'approve in a browser, also when a key is in the environment' },
  },
  notes: [
    'Without --api-key: BL_CLIENT_CREDENTIALS (base64 of ID:SECRET), else BL_API_KEY, else it asks; where nobody can be asked,',
    'a login is approved in a browser. What it learns is kept in ~/.config/hutch/logins.json, for your eyes.',
    '--data-dir, HUTCH_DATA_DIR and BL_API_URL with BL_API_KEY go before a login.',
  ],
  positionals: [0, 1],
  async run({ flags, positionals }) {
    const apiUrl = addressOf(flags.url)
    const credential = await credentialFor(apiUrl, flags)
    const apiKey = credential.kind === 'api-key' ? credential.apiKey : credential.accessToken
    const client = new Client({ apiUrl, workspace: '', apiKey })
    const reached = await readable(apiUrl, () => Array.fromAsync(client.workspaces.list()))
    const workspace = await workspaceFor(positionals[0], reached, apiUrl)
    saveLogin({ apiUrl, workspace, credential })
    if (flags.json) printJson({ url: apiUrl, workspace })
    else print(`${paint('green', 'logged in')}  ${apiUrl.replace(/\/v0$/, '')}, workspace ${workspace}`)
    return 0
  },
})

export const logout = command({
  name: 'logout',
  summary: 'Forgets a login, and revokes the key that it made.',
  usage: '[WORKSPACE]',
  flags: { all: { kind: 'boolean', about: 'all of them' } },
  notes: ['Without WORKSPACE: the latest login.'],
  positionals: [0, 1],
  async run({ flags, positionals }) {
    const file = readLogins()
    const [name] = positionals
    if (name !== undefined && flags.all) throw new UsageError('--all goes without a WORKSPACE')
    const named =
      name === undefined ? file.logins[0] : file.logins.find(({ workspace }) => workspace === name)
    const gone = flags.all ? file.logins : named === undefined ? [] : [named]
    if (gone.length === 0 && name !== undefined) throw new CommandError(`nobody is logged in to ${name}`)
    for (const one of gone) await revoke(one)
    writeLogins({ ...file, logins: file.logins.filter((one) => !gone.some((other) => isSame(one, other))) })
    if (flags.json) printJson(gone.map(({ apiUrl, workspace }) => ({ url: apiUrl, workspace })))
    else if (gone.length === 0) note('nobody was logged in')
    else
      for (const { apiUrl, workspace } of gone)
        print(`logged out  ${apiUrl.replace(/\/v0$/, '')}, workspace ${workspace}`)
    return 0
  },
})

function addressOf(given: string | undefined): string {
  const running = () => {
    try {
      return readRunningPlatform(dataDirFor(undefined))?.url
    } catch {
      // A directory of somebody else's, or a user without a home.
      return undefined
    }
  }
  const address = given ?? (process.env.BL_API_URL || running() || addressDefault)
  const apiUrl = apiUrlOf(address)
  if (apiUrl === null) {
    throw new UsageError(`--url: ${JSON.stringify(address)} is no address such as ${addressDefault}`)
  }
  return apiUrl
}

async function credentialFor(
  apiUrl: string,
  flags: { 'api-key'?: string; browser?: boolean },
): Promise<SavedCredential> {
  const { BL_CLIENT_CREDENTIALS, BL_API_KEY } = process.env
  if (flags['api-key'] !== undefined) {
    const apiKey = flags['api-key'] === '-' ? (await Bun.stdin.text()).trim() : flags['api-key']
    return { kind: 'api-key', apiKey: checkedKey(apiKey, '--api-key') }
  }
  if (!flags.browser) {
    if (BL_CLIENT_CREDENTIALS) return await serviceAccount(apiUrl, BL_CLIENT_CREDENTIALS)
    if (BL_API_KEY) return { kind: 'api-key', apiKey: checkedKey(BL_API_KEY, 'BL_API_KEY') }
    if (canAsk()) {
      const way = await choose('How to log in', [
        { name: 'browser', about: 'approve it on a page of the platform' },
        { name: 'key', about: 'type an API key' },
      ])
      if (way === 'key') return { kind: 'api-key', apiKey: checkedKey(await askSecret('API key'), 'the key') }
    }
  }
  return await approved(apiUrl)
}

function checkedKey(apiKey: string, name: string): string {
  // What it cannot be sent as is no key, and the message of the failure would hold it.
  if (/^[\x21-\x7e]{1,4096}$/.test(apiKey)) return apiKey
  throw new UsageError(
    `${name} is no API key: ${apiKey === '' ? 'it is empty' : 'it holds spaces or other signs'}`,
  )
}

async function serviceAccount(apiUrl: string, encoded: string): Promise<SavedCredential> {
  const text = Buffer.from(encoded, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  if (colon < 1) throw new UsageError('BL_CLIENT_CREDENTIALS is not base64 of ID:SECRET')
  const [clientId, clientSecret] = [text.slice(0, colon), text.slice(colon + 1)]
  const token = await readable(apiUrl, () => new Gate(apiUrl).clientCredentials(clientId, clientSecret))
  return { kind: 'service-account', clientId, clientSecret, ...token }
}

/** By somebody in a browser; what is kept is a key of its own, which `hutch keys list` shows. */
async function approved(apiUrl: string): Promise<SavedCredential> {
  const gate = new Gate(apiUrl)
  const begun = await readable(apiUrl, () => gate.begin())
  note(`open   ${begun.address}`)
  note(
    `code   ${paint('bold', begun.userCode, process.stderr)}, for ${Math.round(begun.expiresInSeconds / 60)} minutes`,
  )
  openInBrowser(begun.address)
  const { accessToken } = await readable(apiUrl, () => gate.approval(begun))
  const client = new Client({ apiUrl, workspace: '', apiKey: accessToken })
  const name = `hutch login, ${hostname()}`.slice(0, keyNameCharactersMax)
  const key = await readable(apiUrl, () => client.keys.create({ name, expiresIn: keyExpiry }))
  return { kind: 'api-key', apiKey: key.apiKey ?? '', keyId: key.id }
}

/** Where there is a desktop; elsewhere the address is typed somewhere else. */
function openInBrowser(address: string): void {
  if (!process.stderr.isTTY || !(process.env.DISPLAY || process.env.WAYLAND_DISPLAY)) return
  const opener = spawn('xdg-open', [address], { stdio: 'ignore', detached: true })
  opener.on('error', () => {})
  opener.unref()
}

async function workspaceFor(
  wanted: string | undefined,
  reached: WorkspaceInfo[],
  apiUrl: string,
): Promise<string> {
  const names = reached.map(({ name }) => name)
  if (wanted !== undefined) {
    if (names.includes(wanted)) return wanted
    throw new CommandError(
      `workspace "${wanted}" is not one that this key reaches: ${names.join(', ') || 'none'}`,
    )
  }
  if (names.length === 1) return names[0]!
  if (names.length === 0) throw new CommandError(`this key reaches no workspace of ${apiUrl}`)
  if (canAsk())
    return await choose(
      'Workspace',
      names.map((name) => ({ name, about: '' })),
    )
  throw new UsageError(`WORKSPACE is missing: one of ${names.join(', ')}`)
}

/** The platform may be gone, or the key be revoked already: then there is nothing to revoke. */
async function revoke({ apiUrl, workspace, credential }: Login): Promise<void> {
  if (credential.kind !== 'api-key' || credential.keyId === undefined) return
  const client = new Client({ apiUrl, workspace, apiKey: credential.apiKey })
  await client.keys.revoke(credential.keyId).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error)
    note(`the key ${credential.keyId} was not revoked: ${reason}`)
  })
}

/** What the platform refused, in its words. */
function readable<Value>(apiUrl: string, work: () => Promise<Value>): Promise<Value> {
  return withHints({}, work, { 401: `hutch login --url ${shellQuote(apiUrl)}`, 0: 'hutch login --url URL' })
}
