import { afterAll, describe, expect, test } from 'bun:test'
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { PlatformError } from '../errors.ts'
import { createSecretBox, openMasterKey } from './secret-box.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-secret-box-'))
let directories = 0
const newDirectory = () => {
  const path = join(root, String(directories++))
  mkdirSync(path)
  return path
}
afterAll(() => rmSync(root, { recursive: true }))

describe('a secret box', () => {
  const box = createSecretBox(new Uint8Array(32).fill(7))

  test('gives back what was sealed, for any text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), (plain, aad) => {
        expect(box.open(box.seal(plain, aad), aad)).toBe(Buffer.from(plain).toString())
      }),
    )
  })

  test('never shows the secret, nor that two are the same', () => {
    const [first, second] = [box.seal('hush-hush', 'a'), box.seal('hush-hush', 'a')]
    expect(first).not.toBe(second)
    expect(Buffer.from(first, 'base64url').includes('hush')).toBe(false)
  })

  test('opens for no other record and under no other key', () => {
    const sealed = box.seal('secret', 'record-1')
    expect(() => box.open(sealed, 'record-2')).toThrow(PlatformError)
    expect(() => createSecretBox(randomBytes(32)).open(sealed, 'record-1')).toThrow(PlatformError)
  })

  test('opens after no change of a single byte, nor when cut', () => {
    const sealed = Buffer.from(box.seal('secret', 'a'), 'base64url')
    for (let index = 0; index < sealed.length; index++) {
      const changed = Buffer.from(sealed)
      changed[index] = changed[index]! ^ 1
      expect(() => box.open(changed.toString('base64url'), 'a')).toThrow(PlatformError)
      expect(() => box.open(sealed.subarray(0, index).toString('base64url'), 'a')).toThrow(PlatformError)
    }
  })

  test('an error says nothing of the secret', () => {
    try {
      box.open(box.seal('hush-hush', 'a'), 'b')
      throw new Error('it opened')
    } catch (error) {
      expect(PlatformError.is(error) && error.code).toBe('internal')
      expect(String(error)).not.toContain('hush')
    }
  })

  test('looks secrets up by a hash that depends on the master key', () => {
    expect(box.lookupHash('bl_a')).toBe(box.lookupHash('bl_a'))
    expect(box.lookupHash('bl_a')).not.toBe(box.lookupHash('bl_b'))
    expect(box.lookupHash('bl_a')).not.toBe(createSecretBox(randomBytes(32)).lookupHash('bl_a'))
  })

  test('derives one key per purpose', () => {
    expect(box.deriveKey('jwt')).toEqual(box.deriveKey('jwt'))
    expect(box.deriveKey('jwt')).not.toEqual(box.deriveKey('cookies'))
    expect(box.deriveKey('jwt')).toHaveLength(32)
    expect(() => box.deriveKey('seal')).toThrow(RangeError)
  })
})

describe('the master key', () => {
  test('is made once, private, and read back', () => {
    const dataDir = newDirectory()
    const umask = process.umask(0)
    const key = openMasterKey(dataDir)
    process.umask(umask)
    expect(key).toHaveLength(32)
    expect(statSync(join(dataDir, 'secret.key')).mode & 0o777).toBe(0o600)
    expect(openMasterKey(dataDir)).toEqual(key)
    expect(readdirSync(dataDir)).toEqual(['secret.key'])
    expect(openMasterKey(newDirectory())).not.toEqual(key)
  })

  test('is the same for processes that start at once', async () => {
    const dataDir = newDirectory()
    const program = `const { openMasterKey } = await import(${JSON.stringify(join(import.meta.dir, 'secret-box.ts'))})
      console.log(Buffer.from(openMasterKey(${JSON.stringify(dataDir)})).toString('hex'))`
    const keys = await Promise.all(
      Array.from({ length: 4 }, async () => {
        const child = Bun.spawn([process.execPath, '-e', program], { stdout: 'pipe', stderr: 'inherit' })
        return new Response(child.stdout).text()
      }),
    )
    expect(new Set(keys)).toEqual(new Set([`${readFileSync(join(dataDir, 'secret.key')).toString('hex')}\n`]))
  })

  test.each([
    ['0644', 0o644],
    ['0640', 0o640],
    ['0602', 0o602],
  ])('is refused with permissions %s, with the command that mends it', (shown, mode) => {
    const dataDir = newDirectory()
    openMasterKey(dataDir)
    chmodSync(join(dataDir, 'secret.key'), mode)
    expect(() => openMasterKey(dataDir)).toThrow(`permissions ${shown}`)
    expect(() => openMasterKey(dataDir)).toThrow('chmod 600')
  })

  test.each([0, 31, 33])('is refused with %d bytes, and kept', (size) => {
    const dataDir = newDirectory()
    const path = join(dataDir, 'secret.key')
    writeFileSync(path, 'x'.repeat(size), { mode: 0o600 })
    expect(() => openMasterKey(dataDir)).toThrow(`has ${size} bytes instead of 32`)
    expect(readFileSync(path)).toHaveLength(size)
  })

  test('is refused as a link or a directory', () => {
    const link = newDirectory()
    openMasterKey(link)
    const linking = newDirectory()
    symlinkSync(join(link, 'secret.key'), join(linking, 'secret.key'))
    expect(() => openMasterKey(linking)).toThrow('symbolic link')
    const directory = newDirectory()
    mkdirSync(join(directory, 'secret.key'))
    expect(() => openMasterKey(directory)).toThrow('is not a file')
  })
})
