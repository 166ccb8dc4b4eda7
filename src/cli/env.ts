import { command, type Target } from './command.ts'
import { chosenWorkspace, dataDirFor, loginConnection, runningConnection } from './connection.ts'
import { readLogins } from './logins.ts'
import { print, printJson } from './output.ts'
import { shellQuote } from './shell.ts'

export const env = command({
  name: 'env',
  summary:
    'Prints the variables that point a client of the cloud at the running platform, or the one you are logged in to.',
  flags: { 'data-dir': { kind: 'text', value: 'DIR', about: 'data directory of the running platform' } },
  notes: [
    'In a shell: eval "$(hutch env)"',
    'BL_DISABLE_H2=1 keeps the SDK from dialling an edge host of the cloud when an answer names a region.',
  ],
  async run({ flags }) {
    const variables = variablesFor(flags)
    if (flags.json) printJson(variables)
    else for (const [name, value] of Object.entries(variables)) print(`export ${name}=${shellQuote(value)}`)
    return 0
  },
})

function variablesFor(flags: Target): Record<string, string> {
  const named = flags['data-dir'] !== undefined || process.env.HUTCH_DATA_DIR
  const [latest] = named ? [] : readLogins().logins
  if (latest) {
    const { apiUrl, workspace, apiKey } = loginConnection(latest)
    return {
      BL_API_URL: apiUrl,
      BL_RUN_URL: apiUrl.replace(/\/v0$/, ''),
      BL_WORKSPACE: workspace,
      BL_API_KEY: apiKey,
      BL_DISABLE_H2: '1',
    }
  }
  const dataDir = dataDirFor(flags['data-dir'])
  const { running, credentials } = runningConnection(dataDir)
  const url = running.publicUrl ?? running.url
  return {
    BL_API_URL: `${url}/v0`,
    BL_RUN_URL: url,
    BL_WORKSPACE: chosenWorkspace(dataDir) ?? credentials.workspace,
    BL_API_KEY: credentials.apiKey,
    BL_DISABLE_H2: '1',
    ...(running.region ? { BL_REGION: running.region } : {}),
  }
}
