import { expect, test } from 'bun:test'
import { merged } from './merged.ts'

async function* of(items: string[], left: string[] = [], gate?: Promise<void>): AsyncGenerator<string> {
  try {
    for (const item of items) {
      await gate
      yield item
    }
  } finally {
    left.push(items[0]!)
  }
}

test('each gives its items in their order, and none waits for another', async () => {
  const gate = Promise.withResolvers<void>()
  const seen: string[] = []
  for await (const item of merged(of(['slow', 'last'], [], gate.promise), of(['a', 'b', 'c']))) {
    seen.push(item)
    if (item === 'c') gate.resolve()
  }
  expect(seen).toEqual(['a', 'b', 'c', 'slow', 'last'])
})

test('leaving it leaves all, and what one throws ends it', async () => {
  const left: string[] = []
  for await (const _ of merged(of(['a', 'b'], left), of(['x', 'y'], left))) break
  await new Promise(setImmediate)
  expect(left.sort()).toEqual(['a', 'x'])
  async function* broken(): AsyncGenerator<string> {
    yield 'one'
    throw new Error('broken')
  }
  const all = async () => {
    for await (const _ of merged(broken(), of(['a'], left)));
  }
  await expect(all()).rejects.toThrow('broken')
})
