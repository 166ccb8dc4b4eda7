import { afterAll, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { acquireDataLock } from './data-lock.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-data-lock-'))
let directories = 0
const newDirectory = () => join(root, String(directories++))
afterAll(() => rmSync(root, { recursive: true }))

/** A real second process that holds the directory, and itself has a child that outlives it. */
async function holder(dataDir: string) {
  const program = `
    const { acquireDataLock } = await import(${JSON.stringify(join(import.meta.dir, 'data-lock.ts'))})
    const lock = acquireDataLock(${JSON.stringify(dataDir)}, { pid: process.pid })
    lock.publish({ pid: process.pid, url: 'http://localhost:4411', startedAt: '2026-01-01T00:00:00Z' })
    const child = Bun.spawn(['sleep', '60'], { stdio: ['ignore', 'ignore', 'ignore'] })
    console.log(child.pid)
    process.stdin.on('end', () => { lock[Symbol.dispose](); process.exit(0) }).resume()`
  const child = Bun.spawn([process.execPath, '-e', program], {
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
  })
  const { value } = await child.stdout.getReader().read()
  const grandchildPid = Number(new TextDecoder().decode(value))
  expect(grandchildPid).toBeGreaterThan(0)
  return { child, grandchildPid }
}

function refusal(dataDir: string): PlatformError {
  try {
    acquireDataLock(dataDir, { pid: process.pid })[Symbol.dispose]()
  } catch (error) {
    if (PlatformError.is(error)) return error
    throw error
  }
  throw new Error('the directory was free')
}

test('a second holder in another process is told who holds the directory', async () => {
  const dataDir = newDirectory()
  const { child, grandchildPid } = await holder(dataDir)
  const error = refusal(dataDir)
  expect(error.code).toBe('conflict')
  expect(error.message).toContain(`process ${child.pid}`)
  expect(error.message).toContain('http://localhost:4411')
  expect(error.message).toContain(dataDir)
  child.stdin.end()
  expect(await child.exited).toBe(0)
  expect(existsSync(join(dataDir, 'platform.json'))).toBe(false)
  acquireDataLock(dataDir, { pid: process.pid })[Symbol.dispose]()
  process.kill(grandchildPid, 'SIGKILL')
})

test('kill -9 frees the directory at once, though its children live on', async () => {
  const dataDir = newDirectory()
  const { child, grandchildPid } = await holder(dataDir)
  refusal(dataDir)
  child.kill('SIGKILL')
  await child.exited
  process.kill(grandchildPid, 0)
  // The record of the dead is still there, and counts for nothing.
  expect(JSON.parse(readFileSync(join(dataDir, 'platform.json'), 'utf8')).pid).toBe(child.pid)
  const lock = acquireDataLock(dataDir, { pid: process.pid })
  expect(JSON.parse(readFileSync(join(dataDir, 'platform.json'), 'utf8'))).toEqual({ pid: process.pid })
  lock[Symbol.dispose]()
  process.kill(grandchildPid, 'SIGKILL')
})

test('a second holder in the same process is refused too, and refusing does not free it', () => {
  const dataDir = newDirectory()
  const lock = acquireDataLock(dataDir, { pid: process.pid })
  expect(refusal(dataDir).message).toContain(`process ${process.pid}, which is starting`)
  lock.publish({ pid: process.pid, url: 'http://localhost:4400', startedAt: 'now' })
  expect(refusal(dataDir).message).toContain('http://localhost:4400')
  const other = Bun.spawnSync([
    process.execPath,
    '-e',
    `const { acquireDataLock } = await import(${JSON.stringify(join(import.meta.dir, 'data-lock.ts'))})
     try { acquireDataLock(${JSON.stringify(dataDir)}, { pid: process.pid }); console.log('free') } catch (error) { console.log(error.code) }`,
  ])
  expect(other.stdout.toString().trim()).toBe('conflict')
  lock[Symbol.dispose]()
  lock[Symbol.dispose]()
  acquireDataLock(dataDir, { pid: process.pid })[Symbol.dispose]()
})

test('the record is replaced as a whole, is private, and leaves nothing beside it', () => {
  const dataDir = newDirectory()
  using lock = acquireDataLock(dataDir, { pid: 12, url: 'http://localhost:1' })
  const path = join(dataDir, 'platform.json')
  expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({ pid: 12, url: 'http://localhost:1' })
  lock.publish({ pid: 12, url: 'http://localhost:2', startedAt: 'then', region: 'here' })
  expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({
    pid: 12,
    url: 'http://localhost:2',
    startedAt: 'then',
    region: 'here',
  })
  for (const file of ['platform.json', 'lock']) expect(statSync(join(dataDir, file)).mode & 0o777).toBe(0o600)
  expect(readdirSync(dataDir).sort()).toEqual(['lock', 'platform.json'])
})

test('a record that says nothing still gives a clear refusal', () => {
  const dataDir = newDirectory()
  using _lock = acquireDataLock(dataDir, { pid: process.pid })
  writeFileSync(join(dataDir, 'platform.json'), '{ half')
  expect(refusal(dataDir).message).toContain('held by another process')
})
