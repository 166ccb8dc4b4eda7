import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { UidRanges } from './uid-ranges.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(`${tmpdir()}/hutch-uids-`)
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const instanceDir = (name: string) => {
  mkdirSync(`${dir}/${name}`, { recursive: true })
  return `${dir}/${name}`
}

test('no two claims overlap, also not those of another platform', () => {
  const [one, two] = [new UidRanges(`${dir}/ranges`), new UidRanges(`${dir}/ranges`)]
  const bases = Array.from({ length: 200 }, (_, at) =>
    (at % 2 ? one : two).claim(instanceDir(`instance-${at}`)),
  )
  const sorted = bases.sort((a, b) => a - b)
  expect(sorted.every((base, at) => at === 0 || base - (sorted[at - 1] ?? 0) >= 131_072)).toBe(true)
  expect(sorted[0]).toBeGreaterThanOrEqual(0x4000_0000)
  expect(sorted.at(-1)).toBeLessThanOrEqual(0xffff_ffff - 131_072)
})

test('a range is kept by its owner only, and free again once released', () => {
  const ranges = new UidRanges(`${dir}/ranges`)
  const [owner, other] = [instanceDir('owner'), instanceDir('other')]
  const base = ranges.claim(owner)
  expect(ranges.keep(base, owner)).toBe(true)
  expect(ranges.keep(base, other)).toBe(false)
  ranges.release(base, other)
  expect(ranges.keep(base, other)).toBe(false)
  ranges.release(base, owner)
  ranges.release(base, owner)
  expect(ranges.keep(base, other)).toBe(true)
})

test('whatever a directory has claimed is given back at once', () => {
  const ranges = new UidRanges(`${dir}/ranges`)
  const owner = instanceDir('owner')
  ranges.claim(owner)
  ranges.claim(owner)
  const kept = ranges.claim(instanceDir('other'))
  ranges.releaseAll(owner)
  expect(readdirSync(`${dir}/ranges`)).toEqual([String(kept)])
})

test('claims of directories that are gone are dropped when a platform starts', () => {
  const ranges = new UidRanges(`${dir}/ranges`)
  ranges.claim(instanceDir('gone'))
  const kept = ranges.claim(instanceDir('kept'))
  rmSync(`${dir}/gone`, { recursive: true })
  new UidRanges(`${dir}/ranges`)
  expect(readdirSync(`${dir}/ranges`)).toEqual([String(kept)])
})
