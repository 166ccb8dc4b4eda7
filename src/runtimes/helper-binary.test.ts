import { afterEach, beforeEach, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { extractHelper } from './helper-binary.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(`${tmpdir()}/hutch-extract-`)
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

test('the helper is written once, executable, under the name of its digest', async () => {
  const path = await extractHelper(new Blob(['program']), `${dir}/bin`)
  const digest = createHash('sha256').update('program').digest('hex')
  expect(path).toBe(`${dir}/bin/hutch-helper-${digest}`)
  expect(statSync(path).mode & 0o777).toBe(0o755)
  const before = statSync(path).ino
  expect(await extractHelper(new Blob(['program']), `${dir}/bin`)).toBe(path)
  expect(statSync(path).ino).toBe(before)
})

test('a file that is not what its name says is replaced', async () => {
  const path = await extractHelper(new Blob(['program']), dir)
  appendFileSync(path, ' and more')
  expect(await extractHelper(new Blob(['program']), dir)).toBe(path)
  expect(readFileSync(path, 'utf8')).toBe('program')
})

test('another helper does not disturb the one before, and nothing else is left', async () => {
  writeFileSync(`${dir}/source`, 'from a file')
  const [first, second] = [
    await extractHelper(new Blob(['one']), dir),
    await extractHelper(`${dir}/source`, dir),
  ]
  expect(first).not.toBe(second)
  expect(readFileSync(second, 'utf8')).toBe('from a file')
  expect(readdirSync(dir).length).toBe(3)
})
