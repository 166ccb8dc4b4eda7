import { clientFor, withHints } from './client.ts'
import { command, connectionFlags } from './command.ts'
import { connectionFor } from './connection.ts'
import { print, printJson } from './output.ts'

export const token = command({
  name: 'token',
  summary: 'Prints what commands authenticate with, and nothing else: an API key, or an access token.',
  usage: '[WORKSPACE]',
  flags: connectionFlags,
  notes: ['curl -H "Authorization: Bearer $(hutch token)" ...'],
  positionals: [0, 1],
  async run({ flags, positionals }) {
    const target = { ...flags, workspace: positionals[0] ?? flags.workspace }
    const { apiKey, workspace } = connectionFor(target)
    // One that was revoked is no use to whoever asks for it.
    await withHints(target, () => clientFor(target).workspaces.get(workspace), {
      404: 'hutch workspaces list',
    })
    if (flags.json) printJson({ workspace, token: apiKey })
    else print(apiKey)
    return 0
  },
})
