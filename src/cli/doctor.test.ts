import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { TestPlatform } from './test-platform.ts'

const platform = new TestPlatform()
const dataDir = mkdtempSync(join(tmpdir(), 'hutch-doctor-'))
afterAll(() => {
  platform[Symbol.dispose]()
  rmSync(dataDir, { recursive: true, force: true })
})

test('doctor speaks of the platform that runs on its data directory: its port, and what it was told of CRIU', async () => {
  const running = { pid: process.pid, url: platform.origin, startedAt: 'now', criu: 'none' }
  writeFileSync(join(dataDir, 'platform.json'), JSON.stringify(running))
  const { stdout } = await platform.run(['doctor', '--json'], {
    env: { HUTCH_DATA_DIR: dataDir, HOME: dataDir },
  })
  const { findings } = JSON.parse(stdout) as { findings: { subject: string; detail: string }[] }
  const { port } = new URL(platform.origin)
  expect(findings.find(({ subject }) => subject === `port ${port}`)?.detail).toBe(
    `the platform runs here: ${platform.origin}`,
  )
  const memory = findings.find(({ subject }) => subject === 'memory snapshots')?.detail
  // Where no instance can be made at all there is nothing to say of it.
  if (memory !== undefined) expect(memory).not.toContain('programs go on')
})

test('the unit of a service has the data directory that all other commands go by', async () => {
  const unit = async (words: string[], env: Record<string, string>) =>
    /--data-dir (.*)/.exec((await platform.run(['systemd', ...words], { env })).stdout)?.[1]
  expect(await unit([], { HUTCH_DATA_DIR: '/srv/hutch' })).toBe('/srv/hutch')
  expect(await unit(['--data-dir', '/srv/other'], { HUTCH_DATA_DIR: '/srv/hutch' })).toBe('/srv/other')
  expect(await unit([], {})).toBe('/var/lib/hutch')
})
