import { afterAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname } from 'node:path'
import { allocatedBytes, DiskImages, findMkfs } from './disk.ts'

const mkfs = findMkfs()
const fsck = Bun.which('e2fsck', { PATH: `${process.env.PATH}:/usr/sbin:/sbin` })
const dir = mkdtempSync(`${tmpdir()}/hutch-disk-`)
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const able = mkfs !== null && fsck !== null
describe.skipIf(!able)(`disk images${able ? '' : ' (skipped: needs e2fsprogs)'}`, () => {
  const images = new DiskImages(dir, mkfs ?? '')

  test('are sound file systems of the wanted size that take little room', async () => {
    for (const storageMb of [16, 100, 2048, 20_480]) {
      const path = `${dir}/${storageMb}.img`
      await images.create(path, storageMb)
      expect(statSync(path).size).toBe(storageMb * 1024 * 1024)
      expect(allocatedBytes(path)).toBeLessThan(2 * 1024 * 1024)
      const check = Bun.spawnSync([fsck ?? '', '-f', '-n', path])
      expect([check.exitCode, check.stdout.toString()]).toEqual([0, expect.stringContaining('files')])
    }
  })

  test('leave nothing else, and never replace what is there', async () => {
    const path = `${dir}/once.img`
    await Promise.all([images.create(`${dir}/a.img`, 32), images.create(`${dir}/b.img`, 32)])
    await images.create(path, 16)
    await expect(images.create(path, 16)).rejects.toThrow('EEXIST')
    expect(statSync(path).size).toBe(16 * 1024 * 1024)
    expect(readdirSync(dir).filter((name) => !name.endsWith('.img'))).toEqual([])
  })

  test('that were in use when the host went down are repaired', async () => {
    const path = `${dir}/dirty.img`
    await images.create(path, 16)
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
    const error = await broken.create(`${dir}/c.img`, 16).catch((error) => error)
    expect([error.code, error.message]).toEqual(['unavailable', 'A disk image cannot be made'])
  })
})
