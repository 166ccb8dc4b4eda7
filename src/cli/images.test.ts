import { expect, test } from 'bun:test'
import { imageRows } from './images.ts'

function image(status: string, tags: string[]) {
  const spec = { size: 0, tags: tags.map((name) => ({ name, size: 1, createdAt: '', updatedAt: '' })) }
  return { metadata: { name: 'app', resourceType: 'sandbox', status, workspace: 'main' }, spec }
}

test('a tag that is here is not called failed because the pull of another failed', () => {
  const rows = imageRows([image('FAILED', ['v1']), image('BUILT', ['v2']), image('BUILDING', [])])
  expect(rows).toEqual([
    ['sandbox/app:v1', 'BUILT', '1', '-'],
    ['sandbox/app', 'FAILED', '-', '-'],
    ['sandbox/app:v2', 'BUILT', '1', '-'],
    ['sandbox/app', 'BUILDING', '-', '-'],
  ])
})
