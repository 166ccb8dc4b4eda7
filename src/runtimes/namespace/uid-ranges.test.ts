import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { rangesPerBlock, UidRanges } from './uid-ranges.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(`${tmpdir()}/hutch-uids-`)
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const blocks = () => readdirSync(`${dir}/ranges`)
function platform(name: string, inUse?: ConstructorParameters<typeof UidRanges>[2]): UidRanges {
  mkdirSync(`${dir}/${name}`, { recursive: true })
  return new UidRanges(`${dir}/ranges`, `${dir}/${name}`, inUse)
}

test('no two claims overlap, also not those of another platform', () => {
  const [one, two] = [platform('one'), platform('two')]
  const bases = Array.from({ length: 3 * rangesPerBlock }, (_, at) =>
    (at % 2 ? one : two).claim(`${dir}/instance-${at}`),
  )
  const sorted = bases.sort((a, b) => a - b)
  expect(sorted.every((base, at) => at === 0 || base - (sorted[at - 1] ?? 0) >= 131_072)).toBe(true)
  expect(sorted[0]).toBeGreaterThanOrEqual(0x4000_0000)
  expect(sorted.at(-1)).toBeLessThanOrEqual(0xffff_ffff - 131_072)
})

test('every range of the host can be claimed, and one more is refused', () => {
  const ranges = platform('one')
  const all = new Set<number>()
  const claim = () => all.add(ranges.claim('owner'))
  for (let count = 1; ; count++) {
    try {
      claim()
    } catch (error) {
      expect((error as Error).message).toContain('uid ranges of this host are in use')
      expect(count - 1).toBe(all.size)
      break
    }
  }
  expect(all).not.toContain(undefined)
  expect(all.size % rangesPerBlock).toBe(0)
  expect(all.size).toBeGreaterThan(20_000)
})

test('a range is kept by its owner only, and free again once released', () => {
  const ranges = platform('one')
  const base = ranges.claim('owner')
  expect(ranges.keep(base, 'owner')).toBe(true)
  expect(ranges.keep(base, 'other')).toBe(false)
  ranges.release(base, 'other')
  expect(ranges.keep(base, 'other')).toBe(false)
  ranges.release(base, 'owner')
  ranges.release(base, 'owner')
  expect(ranges.keep(base, 'other')).toBe(true)
  expect(ranges.keep(base + 1, 'other')).toBe(false)
})

test('a range of another platform is not to be had', () => {
  const base = platform('one').claim('owner')
  expect(platform('two').keep(base, 'owner')).toBe(false)
})

test('whatever a directory has claimed is given back at once', () => {
  const ranges = platform('one')
  const claimed = [ranges.claim('owner'), ranges.claim('owner')]
  const other = ranges.claim('other')
  ranges.releaseAll('owner')
  expect(claimed.map((base) => ranges.keep(base, 'new'))).toEqual([true, true])
  expect(ranges.keep(other, 'new')).toBe(false)
})

test('a platform that starts again leaves its running instances their ranges', () => {
  const base = platform('one').claim('owner')
  const again = platform('one', () => [{ base, instanceDir: 'owner' }])
  expect(blocks()).toHaveLength(1)
  const others = Array.from({ length: rangesPerBlock - 1 }, (_, at) => again.claim(`other-${at}`))
  expect(others).not.toContain(base)
  expect(blocks()).toHaveLength(1)
  again.claim('one more')
  expect(blocks()).toHaveLength(2)
})

test('blocks without a range in use go back when a platform ends', () => {
  const ranges = platform('one')
  const bases = Array.from({ length: rangesPerBlock + 1 }, () => ranges.claim('owner'))
  ranges.release(bases.at(-1)!, 'owner')
  ranges[Symbol.dispose]()
  expect(blocks()).toHaveLength(1)
  ranges.releaseAll('owner')
  ranges[Symbol.dispose]()
  expect(blocks()).toEqual([])
})

test('blocks of platforms that are gone are dropped when another one starts', () => {
  platform('gone').claim('owner')
  platform('kept').claim('owner')
  rmSync(`${dir}/gone`, { recursive: true })
  platform('third')
  expect(blocks()).toHaveLength(1)
})
