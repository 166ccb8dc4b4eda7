import { commit, version } from '../version.ts'
import { command } from './command.ts'
import { print, printJson } from './output.ts'

export const versionCommand = command({
  name: 'version',
  summary: 'Prints the version.',
  flags: {},
  async run({ flags }) {
    if (flags.json)
      printJson({ version, commit, bun: Bun.version, platform: `${process.platform}-${process.arch}` })
    else print(`hutch ${version} (${commit})`)
    return 0
  },
})
