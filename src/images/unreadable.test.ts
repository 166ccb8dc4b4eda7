import { afterAll, expect, test } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { unreadableBelow } from './unreadable.ts'

const base = mkdtempSync(join(tmpdir(), 'hutch-unreadable-'))
afterAll(() => rmSync(base, { recursive: true, force: true }))
const { signal } = new AbortController()
/** Alone and in parts, which is to make no difference. */
const ways = [['nice'], []]

function tree(name: string, files: string[], modes: Record<string, number>): string {
  const root = join(base, name)
  for (const path of files) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), path)
  }
  for (const [path, mode] of Object.entries(modes)) chmodSync(join(root, path), mode)
  return root
}

const files = Array.from({ length: 60 }, (_, at) => `share/part-${at}/deep/er/file-${at}`)

test('what not everybody may read is found at every depth, and not what is below it', async () => {
  const all = [
    ...files,
    'key',
    'bin/key',
    'bin/open',
    'lib/x/y/key',
    'lib/x/secret/inner',
    'sealed/a/b/key',
    'local/key',
  ]
  const modes: Record<string, number> = {
    key: 0o600,
    'bin/key': 0o4711,
    'lib/x/y/key': 0o640,
    'lib/x/secret': 0o750,
    'lib/x/secret/inner': 0o600,
    sealed: 0o711,
    'sealed/a/b/key': 0o600,
    'local/key': 0o600,
  }
  for (const at of [0, 17, 59]) modes[`share/part-${at}/deep/er/file-${at}`] = 0o600
  for (const at of [3, 58]) modes[`share/part-${at}/deep`] = 0o700
  modes['share/part-30'] = 0o700
  const root = tree('many', all, modes)
  symlinkSync('key', join(root, 'bin/link'))
  const expected = ['bin/key', 'key', 'lib/x/secret', 'lib/x/y/key', 'sealed', 'share/part-30']
  for (const at of [0, 17, 59]) expected.push(`share/part-${at}/deep/er/file-${at}`)
  for (const at of [3, 58]) expected.push(`share/part-${at}/deep`)
  for (const how of ways) {
    const found = await unreadableBelow(root, { how, without: 'local', signal })
    expect(found.toSorted()).toEqual(expected.toSorted())
    expect(await unreadableBelow(root, { how, signal })).toContain('local/key')
  }
})

test('directories whose names are no text are looked into', async () => {
  const root = tree('bytes', [...files, 'bin/open'], {})
  const odd = Buffer.concat([Buffer.from(join(root, 'share/odd ')), Buffer.from([0xff, 0xe9])])
  mkdirSync(odd)
  writeFileSync(Buffer.concat([odd, Buffer.from('/key')]), '', { mode: 0o600 })
  for (const how of ways) {
    expect(await unreadableBelow(root, { how, signal })).toEqual(['share/odd \xff\xe9/key'])
  }
})

test('a directory that is closed itself is all that is told', async () => {
  const root = tree('closed', ['a/b/key'], { 'a/b/key': 0o600, '': 0o700 })
  for (const how of ways) expect(await unreadableBelow(root, { how, signal })).toEqual(['.'])
})

test('nothing is told of a directory that is not there, or once it is called off', async () => {
  const gone = new AbortController()
  gone.abort(new Error('called off'))
  for (const how of ways) {
    await expect(unreadableBelow(join(base, 'none'), { how, signal })).rejects.toThrow()
    await expect(unreadableBelow(base, { how, signal: gone.signal })).rejects.toThrow('called off')
  }
})
