import { milliseconds, type Row, run, samplesMin, timesInTurns } from './measure.ts'
import { benchSandbox, sandboxPid } from './sandbox.ts'

const rounds = 10 * samplesMin

/** `true`, waited for over HTTP; against bare `nsenter` into the same sandbox. */
export default async function exec(): Promise<Row[]> {
  await using sandbox = await benchSandbox()
  const headers = { 'content-type': 'application/json' }
  const pid = await sandboxPid(sandbox)
  const body = JSON.stringify({ command: 'true', waitForCompletion: true })
  const exec = async () => {
    const response = await sandbox.call('/process', { method: 'POST', headers, body })
    const { exitCode } = (await response.json()) as { exitCode: number }
    if (exitCode !== 0) throw new Error(`true exited with ${exitCode}`)
  }
  const nsenter = () => run(['nsenter', '-t', pid, '-m', '-u', '-i', '-n', '-p', 'true'])
  const { measured, bare } = await timesInTurns(rounds, exec, nsenter)
  return [
    {
      what: 'exec of true and wait, over HTTP',
      value: `${milliseconds(measured)}, ${(measured.median / bare.median).toFixed(2)} x`,
      baseline: `${milliseconds(bare)} nsenter`,
      reach: '<= 1 x nsenter',
    },
  ]
}
