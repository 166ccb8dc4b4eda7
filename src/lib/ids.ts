import { randomBytes } from 'node:crypto'

const alphabet = '0123456789abcdefghijklmnopqrstuvwxyz'

/** `length` random characters of [0-9a-z], without modulo bias. */
export function randomText(length: number): string {
  let text = ''
  while (text.length < length) {
    for (const byte of randomBytes(length)) {
      if (byte < 252 && text.length < length) text += alphabet[byte % 36]
    }
  }
  return text
}

/** 256 random bits as base64url: for everything that is a secret by being unguessable. */
export function randomSecret(): string {
  return randomBytes(32).toString('base64url')
}

/** When a `sortableId` was made, in milliseconds since the epoch; null for what is none. */
export function sortableIdMs(id: string): number | null {
  return /^[0-9a-z]{20}$/.test(id) ? Number.parseInt(id.slice(0, 9), 36) : null
}

let lastMs = 0
let sequence = 0

/** A unique id that sorts by creation within this process: 9 characters of time, 3 of sequence, 8 random. */
export function sortableId(nowMs: number): string {
  if (nowMs <= lastMs) {
    sequence++
    if (sequence >= 36 ** 3) {
      lastMs++
      sequence = 0
    }
  } else {
    lastMs = nowMs
    sequence = 0
  }
  return lastMs.toString(36).padStart(9, '0') + sequence.toString(36).padStart(3, '0') + randomText(8)
}
