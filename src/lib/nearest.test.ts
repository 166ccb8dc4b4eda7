import { expect, test } from 'bun:test'
import { nearest } from './nearest.ts'

const words = ['port', 'host', 'data-dir', 'sandbox create', 'keep-instances']

test.each([
  ['prot', 'port'],
  ['dataDir', 'data-dir'],
  ['sandbox creat', 'sandbox create'],
  ['keep_instance', 'keep-instances'],
  ['zebra', null],
  ['', null],
])('%j most likely means %j', (word, expected) => {
  expect(nearest(word, words)).toBe(expected)
})
