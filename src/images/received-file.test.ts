import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { ReceivedFile } from '../lib/received-file.ts'
import { openArchive } from './archive.ts'
import { digestOf, tar } from './test-image.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-received-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const openFiles = () =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(dir)
    } catch {
      return false
    }
  })
const full = async () => {
  throw new PlatformError('insufficient_storage', 'no room')
}

test('is what was written, with its size and digest', async () => {
  const path = join(dir, 'whole')
  const bytes = crypto.getRandomValues(new Uint8Array(60_000))
  await using file = await ReceivedFile.open(path, full)
  for (let at = 0; at < bytes.length; at += 7000) await file.write(bytes.subarray(at, at + 7000))
  expect(file.size).toBe(60_000)
  expect(file.digest()).toBe(digestOf(bytes))
  expect(readFileSync(path).equals(bytes)).toBe(true)
})

test('a disk without room, and one that cannot be written, are told apart', async () => {
  await using file = await ReceivedFile.open('/dev/full', async () => {})
  await expect(file.write(new Uint8Array(1))).rejects.toMatchObject({ code: 'insufficient_storage' })
  const nowhere = ReceivedFile.open(join(dir, 'missing', 'file'), async () => {})
  await expect(nowhere).rejects.toMatchObject({ code: 'internal' })
})

test('an import that runs out of room, or breaks off, leaves no file open', async () => {
  const whole = tar([{ path: 'large', content: Buffer.alloc(80 << 20) }])
  const importing = (bytes: Uint8Array, checkSpace: () => Promise<void>) =>
    openArchive(new Blob([bytes as Uint8Array<ArrayBuffer>]).stream(), {
      dir: mkdtempSync(join(dir, 'import-')),
      limits: { bytesMax: 1 << 30, checkSpace },
    })
  let checks = 0
  // The first is for the archive's entry, the second while it is written.
  const fullLater = async () => void (++checks > 1 && (await full()))
  await expect(importing(whole, fullLater)).rejects.toMatchObject({ code: 'insufficient_storage' })
  await expect(importing(whole.subarray(0, 1 << 20), async () => {})).rejects.toThrow()
  expect(openFiles()).toEqual([])
})
