import { CommandError, command } from './command.ts'
import { dataDirFor } from './connection.ts'
import { print, printJson } from './output.ts'

export const systemd = command({
  name: 'systemd',
  summary: 'Prints a systemd unit that runs this executable.',
  flags: {
    'data-dir': {
      kind: 'text',
      value: 'DIR',
      about: 'data directory of the service (else HUTCH_DATA_DIR, or /var/lib/hutch)',
    },
  },
  notes: [
    'To install: hutch systemd | sudo tee /etc/systemd/system/hutch.service',
    'then:       sudo systemctl enable --now hutch',
  ],
  async run({ flags }) {
    const program = process.execPath
    const asked = flags['data-dir'] ?? process.env.HUTCH_DATA_DIR
    const dataDir = asked ? dataDirFor(asked) : '/var/lib/hutch'
    const unit = unitText(program, dataDir)
    if (flags.json) printJson({ unit })
    else print(unit)
    return 0
  },
})

/** Instances live in their own cgroups below the delegated one, and outlive a restart of the service. */
export function unitText(program: string, dataDir: string): string {
  return `[Unit]
Description=Hutch, the agent cloud in one executable
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart=${unitQuote(program)} up --keep-instances --data-dir ${unitQuote(dataDir)}
Restart=on-failure
RestartSec=1
# The platform makes a cgroup for every instance below its own.
Delegate=yes
# Only the platform itself is stopped: instances are found again by the next start.
KillMode=process
TimeoutStopSec=30
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target`
}

function unitQuote(word: string): string {
  if (/[\n\r]/.test(word)) throw new CommandError(`a unit cannot hold the path ${JSON.stringify(word)}`)
  const escaped = word.replaceAll('%', '%%').replaceAll('$', '$$$$')
  if (/^[A-Za-z0-9_\-./:@%+=,$]+$/.test(escaped)) return escaped
  return `"${escaped.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`
}
