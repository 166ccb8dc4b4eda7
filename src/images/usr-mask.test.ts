import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildHelper } from '../../scripts/build-helper.ts'
import { HelperLayers } from '../guest/index.ts'
import { UsrMask } from './usr-mask.ts'

setDefaultTimeout(120_000)
const possible = process.getuid?.() === 0
if (!possible) console.log('skipped: masks of /usr: only root makes them')

let base: string
let usr: string
let imageDir: string
let layers: HelperLayers
let count = 0

beforeAll(async () => {
  base = mkdtempSync(join(tmpdir(), 'hutch-usr-mask-'))
  layers = new HelperLayers((await buildHelper()).path)
})
afterAll(() => rmSync(base, { recursive: true, force: true }))
beforeEach(() => {
  usr = join(base, `usr-${++count}`)
  imageDir = join(base, `images-${count}`)
  mkdirSync(imageDir)
  for (const name of ['bin', 'local/bin', 'share/doc', 'share/rules'])
    mkdirSync(join(usr, name), { recursive: true })
  for (const path of [
    'bin/tool',
    'bin/keys',
    'local/bin/tool',
    'local/keys',
    'share/doc/open',
    'share/rules/one',
  ])
    writeFileSync(join(usr, path), path)
  chmodSync(join(usr, 'bin/keys'), 0o4711)
  chmodSync(join(usr, 'local/keys'), 0o600)
  chmodSync(join(usr, 'share'), 0o2775)
  chmodSync(join(usr, 'share/rules'), 0o711)
  utimesSync(join(usr, 'share'), 1_700_000_000, 1_700_000_000)
})

const mask = (withoutLocal = true) => new UsrMask({ usr, imageDir, layers, withoutLocal })
const isWhiteout = (path: string) => lstatSync(path).isCharacterDevice() && lstatSync(path).rdev === 0

describe.skipIf(!possible)('a mask of /usr', () => {
  test('hides what not everybody may read, and nothing beside it', async () => {
    const path = await mask().of('one')
    expect(readdirSync(path).sort()).toEqual(['bin', 'local', 'share'])
    expect(readdirSync(join(path, 'bin'))).toEqual(['keys'])
    expect(readdirSync(join(path, 'share'))).toEqual(['rules'])
    for (const hidden of ['bin/keys', 'share/rules']) expect(isWhiteout(join(path, hidden))).toBe(true)
    const share = lstatSync(join(path, 'share'))
    expect([share.mode & 0o7777, share.mtimeMs]).toEqual([0o2775, 1_700_000_000_000])
  })

  test('has an empty /usr/local, or the one of the host without its private files', async () => {
    const empty = join(await mask().of('one'), 'local')
    expect(readdirSync(empty).sort()).toEqual([
      'bin',
      'etc',
      'games',
      'include',
      'lib',
      'man',
      'sbin',
      'share',
      'src',
    ])
    expect(lstatSync(empty).mode & 0o7777).toBe(0o755)
    const theirs = join(await mask(false).of('two'), 'local')
    expect(readdirSync(theirs)).toEqual(['keys'])
    expect(isWhiteout(join(theirs, 'keys'))).toBe(true)
  })

  test('is found again by the state of the host, and looked at anew for a state that is new', async () => {
    const first = await mask().of('one')
    chmodSync(join(usr, 'bin/tool'), 0o640)
    expect(await mask().of('one')).toBe(first)
    const second = await mask().of('two')
    expect(second).not.toBe(first)
    expect(readdirSync(join(second, 'bin')).sort()).toEqual(['keys', 'tool'])
  })

  test('notices modes that changed when it is refreshed', async () => {
    const made = mask()
    const first = await made.of('one')
    expect(await made.refresh('one')).toBe(false)
    expect(await made.of('one')).toBe(first)
    chmodSync(join(usr, 'bin/tool'), 0o640)
    expect(await made.refresh('one')).toBe(true)
    const second = await made.of('one')
    expect(isWhiteout(join(second, 'bin/tool'))).toBe(true)
    expect(await mask().of('one')).toBe(second)
  })

  test('goes a day after nothing needs it any more', async () => {
    const made = mask()
    const first = await made.of('one')
    writeFileSync(join(usr, 'bin/more'), '', { mode: 0o600 })
    const second = await made.of('two')
    const later = Date.now() + 25 * 60 * 60 * 1000
    await made.dropOld('two', new Set([first]), later)
    await made.dropOld('two', new Set(), Date.now())
    expect(readdirSync(imageDir).length).toBe(3)
    await made.dropOld('two', new Set(), later)
    expect(readdirSync(imageDir).map((name) => join(imageDir, name))).toContain(second)
    expect(readdirSync(imageDir).length).toBe(2)
  })

  test('is refused for a /usr that not everybody may read at all, and when it cannot be looked at', async () => {
    chmodSync(usr, 0o700)
    await expect(mask().of('one')).rejects.toThrow('not everybody may read it')
    rmSync(usr, { recursive: true })
    await expect(mask().of('one')).rejects.toThrow()
    expect(readdirSync(imageDir)).toEqual([])
  })

  test('is called off when it closes, and leaves nothing', async () => {
    const made = mask()
    const asked = made.of('one').catch((error) => error)
    await made.close(new Error('closing'))
    expect(readdirSync(imageDir)).toEqual([])
    expect(String(await asked)).toContain('closing')
    await expect(made.of('two')).rejects.toThrow('closing')
  })

  test('names are bytes', async () => {
    const name = Buffer.concat([Buffer.from(join(usr, 'bin/a\n')), Buffer.from([0xff, 0xe9])])
    writeFileSync(name, '', { mode: 0o600 })
    const path = await mask().of('one')
    const names = readdirSync(join(path, 'bin'), { encoding: 'buffer' }).map((one) => one.toString('latin1'))
    expect(names.sort()).toEqual(['a\n\xff\xe9', 'keys'])
  })
})
