import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../../errors.ts'
import type { Archives } from './archive.ts'
import { DiskSnapshots } from './snapshots.ts'

/** Copies by a `cp` that refuses to share blocks for the reason that a test gives it, and says how it was asked. */

let dir: string
let snapshots: DiskSnapshots
let taken = 0
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-disk-snapshots-'))
  mkdirSync(join(dir, 'instance'))
  writeFileSync(join(dir, 'instance', 'archive'), 'the files')
  writeFileSync(join(dir, 'asked'), '')
  writeFileSync(
    join(dir, 'cp'),
    `#!/bin/sh
echo "$1" >> ${dir}/asked
if [ "$1" = --reflink=always ] && [ -e ${dir}/reason ]; then
  echo "cp: failed to clone 'b' from 'a': $(/bin/cat ${dir}/reason)" >&2
  exit 1
fi
for last; do before=$at; at=$last; done
exec /bin/cp -- "$before" "$at"
`,
    { mode: 0o755 },
  )
  snapshots = new DiskSnapshots({
    dir: join(dir, 'snapshots'),
    cpPath: join(dir, 'cp'),
    archives: {} as Archives,
    diskImages: null,
    freeBytesMin: 0,
  })
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const asked = () => readFileSync(join(dir, 'asked'), 'utf8').split('\n').filter(Boolean)
const refuse = (reason: string) => writeFileSync(join(dir, 'reason'), `${reason}\n`)
const allow = () => rmSync(join(dir, 'reason'))
const take = () =>
  snapshots.capture((++taken).toString(16).padStart(16, '0'), {
    dir: join(dir, 'instance'),
    disk: 'loop',
    guest: null,
  })

test.each(['Operation not supported', 'Invalid cross-device link', 'Invalid argument'])(
  'where blocks cannot be shared (%s) that is not tried again',
  async (reason) => {
    refuse(reason)
    await take()
    await take()
    expect(asked()).toEqual(['--reflink=always', '--reflink=never', '--reflink=never'])
  },
)

test('a disk that is full fails one copy, and the next shares its blocks', async () => {
  refuse('No space left on device')
  const error = await take().catch((thrown: unknown) => thrown)
  expect(PlatformError.is(error) && error.code).toBe('insufficient_storage')
  allow()
  await take()
  expect(asked()).toEqual(['--reflink=always', '--reflink=always'])
})

test('a copy that could not share its blocks this once is made without, and the next shares them', async () => {
  refuse('Interrupted system call')
  await take()
  allow()
  await take()
  expect(asked()).toEqual(['--reflink=always', '--reflink=never', '--reflink=always'])
})
