import { command } from './command.ts'
import { dataDirFor, runningConnection } from './connection.ts'
import { print, printJson } from './output.ts'
import { shellQuote } from './shell.ts'

export const env = command({
  name: 'env',
  summary: 'Prints the variables that point a client of the cloud at the running platform.',
  flags: { 'data-dir': { kind: 'text', value: 'DIR', about: 'data directory of the running platform' } },
  notes: [
    'In a shell: eval "$(hutch env)"',
    'BL_DISABLE_H2=1 keeps the SDK from dialling an edge host of the cloud when an answer names a region.',
  ],
  async run({ flags }) {
    const { running, credentials } = runningConnection(dataDirFor(flags['data-dir']))
    const url = running.publicUrl ?? running.url
    const variables: Record<string, string> = {
      BL_API_URL: `${url}/v0`,
      BL_RUN_URL: url,
      BL_WORKSPACE: credentials.workspace,
      BL_API_KEY: credentials.apiKey,
      BL_DISABLE_H2: '1',
      ...(running.region ? { BL_REGION: running.region } : {}),
    }
    if (flags.json) printJson(variables)
    else for (const [name, value] of Object.entries(variables)) print(`export ${name}=${shellQuote(value)}`)
    return 0
  },
})
