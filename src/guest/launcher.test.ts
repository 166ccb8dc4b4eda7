import { afterEach, beforeAll, beforeEach, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { buildHelper } from '../../scripts/build-helper.ts'
import { eventually } from '../lib/test-eventually.ts'
import { HelperError, Launcher } from './launcher.ts'
import { read } from './test-launch.ts'

setDefaultTimeout(120_000)

let helperPath: string
let launcher: Launcher

beforeAll(async () => {
  helperPath = (await buildHelper()).path
})
beforeEach(() => {
  launcher = new Launcher(helperPath)
})
afterEach(() => launcher[Symbol.asyncDispose]())

/** Launchers that this process has started and that live. */
function launchers(): number[] {
  return readdirSync('/proc')
    .filter((name) => read(`/proc/${name}/cmdline`).endsWith('\0launch\0'))
    .filter((name) => new RegExp(`\\) [^ZX] ${process.pid} `).test(read(`/proc/${name}/stat`)))
    .map(Number)
}

/** What an impossible launch answers: it needs no privilege to fail. */
const refusal = (key: string) => launcher.launch([[key, 'x']]).catch((error) => error)

test('every launch gets its own answer, however many are under way', async () => {
  const keys = Array.from({ length: 100 }, (_, at) => `key${at}`)
  const answers = await Promise.all(keys.map(refusal))
  for (const [at, answer] of answers.entries()) {
    expect(answer).toBeInstanceOf(HelperError)
    expect([answer.stage, answer.errno, answer.said]).toEqual([
      'spec',
      22,
      `key${at}: unknown key: Invalid argument`,
    ])
  }
})

test('one process serves launch after launch, and ends when none comes', async () => {
  await refusal('a')
  const [first] = launchers()
  await refusal('b')
  expect(launchers()).toEqual([first!])
  await eventually('the end of the launcher', () => launchers().length === 0)
  expect((await refusal('c')).stage).toBe('spec')
})

test('a launcher that dies fails what it was at, and the next launch has another', async () => {
  await refusal('a')
  const [first] = launchers()
  process.kill(first!, 'SIGSTOP')
  const caught = refusal('b')
  process.kill(first!, 'SIGKILL')
  expect((await caught).message).toBe('start: the launcher ended')
  expect((await refusal('c')).stage).toBe('spec')
  expect(launchers()).not.toContain(first)
})

test('a launcher that dies with a full pipe harms nobody but those who wait for it', async () => {
  await refusal('a')
  const [first] = launchers()
  process.kill(first!, 'SIGSTOP')
  const large = Array.from({ length: 20 }, () => launcher.launch([['id', 'x'.repeat(60_000)]]))
  const answers = large.map((one) => one.catch((error) => error))
  process.kill(first!, 'SIGKILL')
  for (const { message } of await Promise.all(answers)) expect(message).toBe('start: the launcher ended')
  expect((await refusal('c')).stage).toBe('spec')
})

test('a specification that is too long is refused, and the launcher goes on', async () => {
  const answer = await launcher.launch([['id', 'x'.repeat(70_000)]]).catch((error) => error)
  expect([answer.stage, answer.said]).toEqual(['spec', 'more than 65536 bytes: Argument list too long'])
  expect((await refusal('a')).stage).toBe('spec')
})

test('disposing ends the launcher', async () => {
  await refusal('a')
  expect(launchers()).toHaveLength(1)
  await launcher[Symbol.asyncDispose]()
  expect(launchers()).toEqual([])
})
