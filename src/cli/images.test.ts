import { expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { imageRows } from './images.ts'
import { TestPlatform } from './test-platform.ts'

function image(status: string, tags: string[], last?: string) {
  const spec = { size: 0, tags: tags.map((name) => ({ name, size: 1, createdAt: '', updatedAt: '' })) }
  const events = last === undefined ? [] : [{ time: '', message: 'no such image', tag: last }]
  return { metadata: { name: 'app', resourceType: 'sandbox', status, workspace: 'main', events }, spec }
}

test('a tag that is here is not called failed because the pull of another failed', () => {
  const rows = imageRows([image('FAILED', ['v1'], 'v3'), image('BUILT', ['v2']), image('BUILDING', [])])
  expect(rows).toEqual([
    ['sandbox/app:v1', 'BUILT', '1', '-'],
    ['sandbox/app:v3', 'FAILED', '-', '-'],
    ['sandbox/app:v2', 'BUILT', '1', '-'],
    ['sandbox/app', 'BUILDING', '-', '-'],
  ])
})

test('a file that is no image is named, with what would be one', async () => {
  using platform = new TestPlatform()
  const directory = mkdtempSync(join(tmpdir(), 'hutch-images-'))
  const refused = (message: string) =>
    Response.json({ error: 'bad_request', code: 400, message }, { status: 400 })
  platform.answer = ({ path }) =>
    path.includes('name=A')
      ? refused('name "A" is not an image name')
      : refused('the archive ends in the middle of an entry')
  const imported = async (content: string, name: string) => {
    const file = join(directory, 'app.tar')
    writeFileSync(file, content)
    const { stderr } = await platform.run(['images', 'import', file, '--name', name])
    return stderr.replaceAll(`${directory}/`, '')
  }
  try {
    const said = 'app.tar cannot be taken in as an OCI archive, or as what docker save writes'
    expect(await imported('x', 'app')).toContain(`${said}: the archive ends in the middle of an entry`)
    expect(await imported('', 'app')).toContain(`${said}: it is empty`)
    expect(await imported('x', 'A')).toContain('--name "A" is not an image name')
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})
