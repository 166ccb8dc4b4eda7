import { afterAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname } from 'node:path'
import { allocatedBytes, DiskImages, findMkfs, isClosed } from './disk.ts'

const mkfs = findMkfs()
const fsck = Bun.which('e2fsck', { PATH: `${process.env.PATH}:/usr/sbin:/sbin` })
const dir = mkdtempSync(`${tmpdir()}/hutch-disk-`)
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const able = mkfs !== null && fsck !== null
describe.skipIf(!able)(`disk images${able ? '' : ' (skipped: needs e2fsprogs)'}`, () => {
  const images = new DiskImages(dir, mkfs ?? '')

  test('are sound file systems of the wanted size that take little room', async () => {
    for (const storageMb of [16, 100, 2048, 20_480]) {
      const path = await images.template(storageMb)
      expect(statSync(path).size).toBe(storageMb * 1024 * 1024)
      expect(allocatedBytes(path)).toBeLessThan(2 * 1024 * 1024)
      const check = Bun.spawnSync([fsck ?? '', '-f', '-n', path])
      expect([check.exitCode, check.stdout.toString()]).toEqual([0, expect.stringContaining('files')])
    }
  })

  test('are made once a size, also over a restart, and leave nothing else', async () => {
    const [one, other] = await Promise.all([images.template(32), images.template(32)])
    expect(other).toBe(one)
    const madeAt = statSync(one).mtimeMs
    const again = new DiskImages(dir, '/bin/false')
    expect(statSync(await again.template(32)).mtimeMs).toBe(madeAt)
    expect(readdirSync(dir).filter((name) => !name.endsWith('.img'))).toEqual([])
  })

  test('of another version, and half made, are dropped', async () => {
    const kept = await images.template(16)
    await Bun.write(`${dir}/00000000-64.img`, 'of another version')
    await Bun.write(`${dir}/.made-x/image`, 'half made')
    const again = new DiskImages(dir, '/bin/false')
    expect(readdirSync(dir).filter((name) => name.startsWith('.') || name.startsWith('0000'))).toEqual([])
    expect(await again.template(16)).toBe(kept)
  })

  test('that were in use when the host went down are repaired', async () => {
    const path = `${dir}/dirty.img`
    await Bun.write(path, Bun.file(await images.template(16)))
    // As an image is left: not cleanly unmounted, with errors seen.
    const debugfs = `${dirname(fsck ?? '')}/debugfs`
    Bun.spawnSync([debugfs, '-w', '-R', 'set_super_value state 2', path])
    expect(Bun.spawnSync([fsck ?? '', '-n', path]).stdout.toString()).toContain(
      'contains a file system with errors',
    )
    expect(await images.repair(path)).toBe(true)
    expect(Bun.spawnSync([fsck ?? '', '-n', path]).stdout.toString()).toContain('clean')
    await Bun.write(`${dir}/no.img`, 'not a file system')
    expect(await images.repair(`${dir}/no.img`)).toBe(false)
  })

  test('that cannot be made say so', async () => {
    const broken = new DiskImages(dir, '/bin/false')
    const error = await broken.template(17).catch((error) => error)
    expect([error.code, error.message]).toEqual(['unavailable', 'A disk image cannot be made'])
  })
})

test('a file system is closed to writes by its own word, in the words of older and newer kernels', () => {
  expect(isClosed('rw\nbsddf\nerrors=remount-ro\n')).toBe(false)
  expect(isClosed('ro\nbsddf\n')).toBe(true)
  expect(isClosed('rw\nemergency_ro\nbsddf\n')).toBe(true)
  expect(isClosed('')).toBe(false)
})
