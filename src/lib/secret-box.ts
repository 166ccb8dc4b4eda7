import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  fsyncSync,
  linkSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'

const masterKeyBytes = 32
const nonceBytes = 12
const tagBytes = 16
const formatVersion = 1

/** Reads a platform's secrets back, and finds a secret that was shown without keeping it. */
export interface SecretBox {
  /** Encrypts for one record: `aad` is its id, and only with it the box opens again. */
  seal(plain: string, aad: string): string
  /** @throws internal when the box was changed, is another record's, or was sealed under another key */
  open(box: string, aad: string): string
  /** The same for the same secret, of no use without the master key: what a key is stored and looked up by. */
  lookupHash(secret: string): string
  /** A key for another purpose, such as signing tokens; the same at every start. */
  deriveKey(purpose: string): Uint8Array
}

export function createSecretBox(masterKey: Uint8Array): SecretBox {
  if (masterKey.length !== masterKeyBytes) throw new RangeError(`a master key has ${masterKeyBytes} bytes`)
  const derive = (purpose: string) =>
    new Uint8Array(hkdfSync('sha256', masterKey, '', `hutch/${purpose}`, masterKeyBytes))
  const sealKey = derive('seal')
  const lookupKey = derive('lookup')

  return {
    seal(plain, aad) {
      const nonce = randomBytes(nonceBytes)
      const cipher = createCipheriv('aes-256-gcm', sealKey, nonce, { authTagLength: tagBytes })
      cipher.setAAD(Buffer.from(aad))
      const text = Buffer.concat([cipher.update(plain, 'utf8'), cipher.final()])
      return Buffer.concat([Buffer.of(formatVersion), nonce, cipher.getAuthTag(), text]).toString('base64url')
    },

    open(box, aad) {
      try {
        const bytes = Buffer.from(box, 'base64url')
        const textAt = 1 + nonceBytes + tagBytes
        if (bytes[0] !== formatVersion || bytes.length < textAt) throw new Error('not a box of this format')
        const decipher = createDecipheriv('aes-256-gcm', sealKey, bytes.subarray(1, 1 + nonceBytes), {
          authTagLength: tagBytes,
        })
        decipher.setAAD(Buffer.from(aad))
        decipher.setAuthTag(bytes.subarray(1 + nonceBytes, textAt))
        return Buffer.concat([decipher.update(bytes.subarray(textAt)), decipher.final()]).toString('utf8')
      } catch (cause) {
        throw new PlatformError(
          'internal',
          'a stored secret cannot be read: it was changed, or secret.key is not the one it was written under',
          { cause },
        )
      }
    },

    // On the way of every request: several times as fast as node:crypto's.
    lookupHash: (secret) => new Bun.CryptoHasher('sha256', lookupKey).update(secret).digest('base64url'),

    deriveKey(purpose) {
      if (purpose === 'seal' || purpose === 'lookup') throw new RangeError(`${purpose} is the box's own`)
      return derive(purpose)
    },
  }
}

/**
 * The data directory's master key, made at the first call; of concurrent first calls all get the same one.
 * @throws conflict when the file is not a private file of the right size
 */
export function openMasterKey(dataDir: string): Uint8Array {
  const path = join(dataDir, 'secret.key')
  return readMasterKey(path) ?? makeMasterKey(dataDir, path)
}

function readMasterKey(path: string): Uint8Array | null {
  let file: number
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (cause) {
    const code = (cause as { code?: string }).code
    if (code === 'ENOENT') return null
    if (code === 'ELOOP') throw refused(path, 'is a symbolic link', 'put the file itself there')
    throw refused(path, `cannot be read (${code})`, 'run hutch as the user it belongs to', cause)
  }
  try {
    const { mode, size, uid } = fstatSync(file)
    if ((mode & constants.S_IFMT) !== constants.S_IFREG) throw refused(path, 'is not a file', 'remove it')
    if ((mode & 0o077) !== 0) {
      const permissions = (mode & 0o777).toString(8).padStart(4, '0')
      throw refused(path, `has permissions ${permissions}, so that others may read it`, `chmod 600 ${path}`)
    }
    const self = process.getuid?.()
    if (self !== undefined && uid !== self && uid !== 0) {
      throw refused(path, `belongs to user ${uid}`, `it must belong to user ${self}, who runs hutch`)
    }
    if (size !== masterKeyBytes) {
      throw refused(
        path,
        `has ${size} bytes instead of ${masterKeyBytes}`,
        'restore it from a backup: without it the stored secrets cannot be read',
      )
    }
    const key = new Uint8Array(masterKeyBytes)
    if (readSync(file, key) !== masterKeyBytes) throw refused(path, 'changed while it was read', 'try again')
    return key
  } finally {
    closeSync(file)
  }
}

function makeMasterKey(dataDir: string, path: string): Uint8Array {
  const draft = join(dataDir, `secret.key.${randomBytes(8).toString('hex')}`)
  const file = openSync(draft, 'wx', 0o600)
  try {
    try {
      // Whatever the umask.
      fchmodSync(file, 0o600)
      if (writeSync(file, randomBytes(masterKeyBytes)) !== masterKeyBytes) {
        throw new PlatformError('insufficient_storage', `the disk of ${dataDir} is full`)
      }
      fsyncSync(file)
    } finally {
      closeSync(file)
    }
    try {
      // Unlike a rename this fails when another process was first, whose key then counts.
      linkSync(draft, path)
      syncDirectory(dataDir)
    } catch (error) {
      if ((error as { code?: string }).code !== 'EEXIST') throw error
    }
  } finally {
    rmSync(draft, { force: true })
  }
  const key = readMasterKey(path)
  if (!key) throw refused(path, 'vanished while it was made', 'try again')
  return key
}

function syncDirectory(path: string): void {
  const directory = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    fsyncSync(directory)
  } finally {
    closeSync(directory)
  }
}

function refused(path: string, what: string, remedy: string, cause?: unknown): PlatformError {
  return new PlatformError('conflict', `the master key ${path} ${what}: ${remedy}`, { cause })
}
