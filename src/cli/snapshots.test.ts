import { expect, test } from 'bun:test'
import { TestPlatform } from './test-platform.ts'

test('a list of snapshots says what each takes, and whether memory is in it', async () => {
  using platform = new TestPlatform()
  const snapshot = (name: string, more: object) => ({
    id: `snap_${name}`,
    name,
    ...{ sandboxName: 'box', source: { name: 'box', deleted: false }, status: 'ready' },
    ...{ spec: { image: 'blaxel/base-image:latest' }, createdAt: new Date().toISOString(), ...more },
  })
  platform.answer = () =>
    Response.json([
      snapshot('one', { size: 29 * 1024 ** 2, memoryKept: true }),
      snapshot('two', { size: 1024, memoryKept: false }),
      snapshot('three', { status: 'pending' }),
    ])
  const { stdout } = await platform.run(['snapshots', 'ls'])
  expect(stdout.split('\n').map((line) => line.split(/ {2,}/).slice(3, 6))).toEqual([
    ['STATUS', 'SIZE', 'MEMORY'],
    ['ready', '29 MiB', 'kept'],
    ['ready', '1.0 KiB', 'not kept'],
    ['pending', '-', '-'],
    [],
  ])
})
