import { expect, test } from 'bun:test'
import type { Mutation } from './protocol.ts'
import { WaitingWrites } from './waiting-writes.ts'

const MiB = 1024 * 1024

function lines() {
  const waiting = new WaitingWrites<{ mutation: Mutation; bytes: number; name: string }>()
  const asked = (name: string, bytes = 1) =>
    waiting.push({
      name,
      bytes,
      mutation: [{ op: 'remove', kind: 'k', workspace: 'w', name, expectedVersion: null }],
    })
  const own = (name: string, bytes = 1) =>
    waiting.push({ name, bytes, mutation: [{ op: 'work-remove', id: name }] })
  const names = (mutationsMax?: number) => waiting.take(mutationsMax).map(({ name }) => name)
  return { waiting, asked, own, names }
}

test('what was asked for passes by all but a few of the ends that wait, and none of them waits for ever', () => {
  const { waiting, asked, own, names } = lines()
  for (let index = 0; index < 100; index++) own(`end${index}`)
  asked('accept')
  const first = names()
  expect([first.length, first[0], first.at(-1)]).toEqual([65, 'accept', 'end63'])
  for (let index = 0; index < 300; index++) asked(`accept${index}`)
  const second = names()
  expect([second.length, second[0], second.at(-1)]).toEqual([256, 'accept0', 'end99'])
  expect(second.filter((name) => name.startsWith('end'))).toHaveLength(36)
  expect([names().length, waiting.length, waiting.bytes]).toEqual([80, 0, 0])
})

test('what is large leaves the next group to the other line', () => {
  const { asked, own, names } = lines()
  for (const name of ['end0', 'end1']) own(name, 20 * MiB)
  for (const name of ['accept0', 'accept1']) asked(name, 5 * MiB)
  expect([names(), names(), names(), names()]).toEqual([['end0'], ['accept0'], ['end1'], ['accept1']])
})

test('one by one both lines come, and what is put back comes first', () => {
  const { waiting, asked, own, names } = lines()
  for (const name of ['end0', 'end1']) own(name)
  for (const name of ['accept0', 'accept1']) asked(name)
  const group = waiting.take()
  expect(group.map(({ name }) => name)).toEqual(['accept0', 'accept1', 'end0', 'end1'])
  asked('accept2')
  waiting.putBack(group)
  expect(waiting.bytes).toBe(5)
  const order = [names(1), names(1), names(1), names(1), names(1)].flat()
  expect(order.filter((name) => name.startsWith('a'))).toEqual(['accept0', 'accept1', 'accept2'])
  expect(order.filter((name) => name.startsWith('e'))).toEqual(['end0', 'end1'])
  expect([names(), waiting.bytes]).toEqual([[], 0])
})
