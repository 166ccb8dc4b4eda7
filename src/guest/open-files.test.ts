import { afterEach, beforeEach, expect, test } from 'bun:test'
import { closeSync, fstatSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { OpenFiles, openFilesMax } from './open-files.ts'

let dir: string
let path: string
let files: OpenFiles

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-open-files-'))
  path = join(dir, 'f')
  writeFileSync(path, 'content')
  files = new OpenFiles()
})
afterEach(() => rmSync(dir, { recursive: true }))

function isOpen(descriptor: number): boolean {
  try {
    fstatSync(descriptor)
    return true
  } catch {
    return false
  }
}

test('only so many are open at once, and every one that is let go of makes room', () => {
  const open = Array.from({ length: openFilesMax }, () => files.place().take(openSync(path, 'r'))!)
  expect(files.full).toBe(true)
  open[0]![Symbol.dispose]()
  expect(files.full).toBe(false)
  expect(isOpen(open[0]!.descriptor)).toBe(false)
  const again = openSync(path, 'r')
  // Disposed twice, it must not close what has its number by now.
  open[0]![Symbol.dispose]()
  expect(isOpen(again)).toBe(true)
  closeSync(again)
  for (const file of open) file[Symbol.dispose]()
})

test('a place that nothing was put in is given back', () => {
  const places = Array.from({ length: openFilesMax }, () => files.place())
  expect(files.full).toBe(true)
  for (const place of places) place[Symbol.dispose]()
  expect(files.full).toBe(false)
})

test('what is no plain file is closed at once', () => {
  using place = files.place()
  const descriptor = openSync('/dev/zero', 'r')
  expect(place.take(descriptor)).toBeNull()
  expect(isOpen(descriptor)).toBe(false)
})

test('who has a file sees when the sandbox is gone', () => {
  using file = files.place().take(openSync(path, 'r'))!
  expect(file.revoked).toBe(false)
  files.revoke()
  expect(file.revoked).toBe(true)
})
