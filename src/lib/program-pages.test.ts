import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { releaseProgramPages } from './program-pages.ts'

const residentKb = () => Number(/^RssFile:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])

test('code that was mapped is let go of, and the program goes on', () => {
  const before = residentKb()
  expect(releaseProgramPages()).toBeGreaterThan(1024 * 1024)
  expect(residentKb()).toBeLessThan(before)
  expect(JSON.parse('{"still":["here"]}')).toEqual({ still: ['here'] })
})
