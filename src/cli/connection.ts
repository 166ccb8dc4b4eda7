import { resolve } from 'node:path'
import {
  type Credentials,
  dataDirDefault,
  type RunningPlatform,
  readCredentials,
  readRunningPlatform,
} from '../data-directory.ts'
import { CommandError, type Target } from './command.ts'
import { shellQuote } from './shell.ts'

export interface Connection {
  /** Base of the control plane, with /v0 and without a trailing slash. */
  apiUrl: string
  workspace: string
  apiKey: string
}

export function dataDirFor(flag: string | undefined): string {
  return resolve(flag ?? (process.env.HUTCH_DATA_DIR || dataDirDefault()))
}

function isDefault(dataDir: string): boolean {
  try {
    return dataDir === dataDirDefault()
  } catch {
    return false
  }
}

/** @throws CommandError that says how to start the platform */
export function runningConnection(dataDir: string): { running: RunningPlatform; credentials: Credentials } {
  const up = `hutch up${isDefault(dataDir) ? '' : ` --data-dir ${shellQuote(dataDir)}`}`
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

/** Whether the BL_* variables say where requests go: nobody named a data directory, and they hold address and key. */
export function usesVariables(flags: Target): boolean {
  const { BL_API_URL, BL_API_KEY, HUTCH_DATA_DIR } = process.env
  return flags['data-dir'] === undefined && !HUTCH_DATA_DIR && Boolean(BL_API_URL && BL_API_KEY)
}

/**
 * Where a command's requests go: the data directory that was asked for (--data-dir, HUTCH_DATA_DIR), else the BL_*
 * variables when they hold both an address and a key, else the default data directory. A key alone goes nowhere: it
 * may be the cloud's.
 */
export function connectionFor(flags: Target): Connection {
  if (usesVariables(flags)) {
    const { BL_API_URL = '', BL_API_KEY = '', BL_WORKSPACE } = process.env
    const workspace = flags.workspace ?? BL_WORKSPACE
    if (!workspace)
      throw new CommandError(
        'BL_API_URL and BL_API_KEY are set, BL_WORKSPACE is not',
        'export BL_WORKSPACE=main',
      )
    if (!/^https?:\/\//.test(BL_API_URL) || !URL.canParse(BL_API_URL)) {
      throw new CommandError(
        `BL_API_URL ${JSON.stringify(BL_API_URL)} is no address such as http://localhost:4400/v0`,
        'eval "$(hutch env)"',
      )
    }
    return { apiUrl: BL_API_URL.replace(/\/+$/, ''), workspace, apiKey: BL_API_KEY }
  }
  const { running, credentials } = runningConnection(dataDirFor(flags['data-dir']))
  return {
    apiUrl: `${running.url}/v0`,
    workspace: flags.workspace ?? credentials.workspace,
    apiKey: credentials.apiKey,
  }
}
