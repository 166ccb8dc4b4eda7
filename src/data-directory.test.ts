import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { dataDirDefault, imageDirDefault, readCredentials, readRunningPlatform } from './data-directory.ts'

const directory = mkdtempSync(join(tmpdir(), 'hutch-data-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function write(name: string, content: unknown): void {
  writeFileSync(join(directory, name), typeof content === 'string' ? content : JSON.stringify(content))
}

test('root keeps its data where services do, others in their home', () => {
  expect(dataDirDefault({ HOME: '/home/a' }, 0)).toBe('/var/lib/hutch')
  expect(dataDirDefault({ HOME: '/home/a' }, 1000)).toBe('/home/a/.local/share/hutch')
  expect(dataDirDefault({ HOME: '/home/a', XDG_DATA_HOME: '/x' }, 1000)).toBe('/x/hutch')
  expect(imageDirDefault({ HOME: '/home/a' }, 1000)).toBe('/home/a/.cache/hutch/images')
  expect(imageDirDefault({}, 0)).toBe('/var/cache/hutch/images')
})

test('a platform runs when its process lives', () => {
  write('platform.json', { pid: process.pid, url: 'http://localhost:1', startedAt: 'now' })
  expect(readRunningPlatform(directory)).toEqual({
    pid: process.pid,
    url: 'http://localhost:1',
    startedAt: 'now',
  })
})

test('what a killed platform left is not a running one', () => {
  const ended = Bun.spawnSync(['true'])
  write('platform.json', { pid: ended.pid, url: 'http://localhost:1', startedAt: 'now' })
  expect(readRunningPlatform(directory)).toBeNull()
})

test('a killed platform that its parent has not asked about is not a running one', async () => {
  // The shell becomes a program that never waits for the child it had.
  const parent = Bun.spawn(['sh', '-c', 'true & echo $!; exec sleep 60'], { stdout: 'pipe' })
  try {
    const { value } = await parent.stdout.getReader().read()
    write('platform.json', { pid: Number(new TextDecoder().decode(value)), url: 'http://localhost:1' })
    const deadline = Date.now() + 60_000
    while (readRunningPlatform(directory) !== null && Date.now() < deadline) await Bun.sleep(5)
    expect(readRunningPlatform(directory)).toBeNull()
  } finally {
    parent.kill()
    await parent.exited
  }
})

test('a file that is missing, broken or of another shape is no platform and no credentials', () => {
  for (const content of ['', '{', '[]', '{"pid":"1"}', 'null']) {
    write('platform.json', content)
    write('credentials.json', content)
    expect(readRunningPlatform(directory)).toBeNull()
    expect(readCredentials(directory)).toBeNull()
  }
  expect(readRunningPlatform(join(directory, 'none'))).toBeNull()
})
