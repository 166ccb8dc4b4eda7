import { expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../lib/clock.ts'
import { probeScratchPrefix, removeAbandonedProbes } from './abandoned.ts'

test('what killed probes left is removed, and nothing of one that runs', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-abandoned-'))
  // A process that is told from this one by its start alone, as one is that got the pid of another.
  const dead = `hutch-doctor-${process.pid}.1-`
  const kept = [`${probeScratchPrefix()}b`, 'hutch-doctor-c', `${dead}link`]
  mkdirSync(join(dir, `${dead}a`, 'instances', '.probe-x', 'probe0000000'), { recursive: true })
  mkdirSync(join(dir, kept[0] ?? ''))
  mkdirSync(join(dir, kept[1] ?? ''))
  symlinkSync(dir, join(dir, kept[2] ?? ''))
  await removeAbandonedProbes(dir, systemClock)
  expect(readdirSync(dir).toSorted()).toEqual(kept.toSorted())
  rmSync(dir, { recursive: true })
})
