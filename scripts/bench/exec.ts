import { readdirSync, readFileSync } from 'node:fs'
import { milliseconds, type Row, run, samplesMin, timesInTurns } from './measure.ts'
import { benchSandbox } from './sandbox.ts'

const rounds = 10 * samplesMin

/** `true`, waited for over HTTP; against bare `nsenter` into the same sandbox. */
export default async function exec(): Promise<Row[]> {
  await using sandbox = await benchSandbox()
  const headers = { 'content-type': 'application/json' }
  // Found on the host by a command line that nothing else has.
  const mark = `86400.${crypto.getRandomValues(new Uint32Array(1))[0]}`
  const background = JSON.stringify({ command: `exec sleep ${mark}` })
  await (await sandbox.call('/process', { method: 'POST', headers, body: background })).arrayBuffer()
  const pid = await hostPid(mark)
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

async function hostPid(mark: string): Promise<string> {
  const deadline = performance.now() + 5000
  while (performance.now() < deadline) {
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        if (readFileSync(`/proc/${pid}/cmdline`, 'utf8') === `sleep\0${mark}\0`) return pid
      } catch {
        // It ended while we looked.
      }
    }
    await Bun.sleep(10)
  }
  throw new Error('the sandbox is not found among the processes of this host')
}
