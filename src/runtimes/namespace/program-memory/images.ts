import { readdir, readFile, stat, writeFile } from 'node:fs/promises'

/**
 * The few images of CRIU that have to say something else where they are used from what they said where they were made.
 * They are protocol buffers behind one or two magic numbers and a length; whatever is not known is kept as it is.
 */

const coreMagicBytes = 8
const inventoryMagicBytes = 4
const imageBytesMax = 16 * 1024 * 1024
const imagesMax = 65_536
/** Of one tree: each is looked at inside. */
const socketsMax = 1_024

interface Field {
  number: number
  /** With its tag. */
  bytes: Uint8Array
  /** Of one that has a length. */
  content: Uint8Array | null
  value: number
}

/**
 * Programs are put back by the root of their sandbox, in its user namespace, behind its filter: to that the namespace is
 * no other than its own, and the filter is what programs inherit rather than get.
 */
export async function prepareImages(dir: string): Promise<void> {
  const names = await readdir(dir)
  if (names.length > imagesMax) throw new Error('more images than there can be')
  const userNamespaces = new Set<number>()
  for (const name of names) {
    if (!/^ids-\d+\.img$/.test(name)) continue
    const { message } = await read(`${dir}/${name}`, coreMagicBytes)
    for (const field of fieldsOf(message)) if (field.number === 10) userNamespaces.add(field.value)
  }
  const [userNamespace, ...others] = userNamespaces
  if (userNamespace === undefined || others.length > 0)
    throw new Error('programs are in several user namespaces')
  await change(`${dir}/inventory.img`, inventoryMagicBytes, (message) =>
    changed(message, 3, (ids) => [
      ...fieldsOf(ids)
        .filter(({ number }) => number !== 10)
        .map(({ bytes }) => bytes),
      Uint8Array.from([10 << 3, ...varint(userNamespace)]),
    ]),
  )
  const withoutFilter = (part: Uint8Array) =>
    fieldsOf(part)
      .filter(({ number }) => number !== 11 && number !== 12)
      .map(({ bytes }) => bytes)
  for (const name of names) {
    if (!/^core-\d+\.img$/.test(name)) continue
    await change(`${dir}/${name}`, coreMagicBytes, (message) =>
      changed(changed(message, 3, withoutFilter), 5, withoutFilter),
    )
  }
}

/** Fields of the entries of `files.img`, and of those of its sockets. */
const socketOf = 16
const nameOf = 11
const directoryOf = 14
const deletedOf = 15

/**
 * Sockets bound to paths look as if these had been unlinked, for CRIU tells files of layered file systems by the number of
 * another device. `isThere` knows better. `taken`: paths of those that were looked at before.
 */
export async function bindSockets(
  dir: string,
  isThere: (path: string) => Promise<boolean>,
  taken: Set<string>,
): Promise<void> {
  const path = `${dir}/files.img`
  if ((await stat(path)).size > imageBytesMax) throw new Error('its programs have too much open')
  const file = await readFile(path)
  const parts: Uint8Array[] = [file.subarray(0, coreMagicBytes)]
  let seen = 0
  for (let at = coreMagicBytes; at < file.length; ) {
    const end = at + 4 + (at + 4 <= file.length ? file.readUInt32LE(at) : 0)
    if (end > file.length || end < at + 4) throw new Error(`${path} is cut off`)
    const entry = new Uint8Array(file.subarray(at + 4, end))
    const bound = boundPath(entry)
    if (bound !== null && ++seen > socketsMax)
      throw new Error(`more than ${socketsMax} sockets are bound to paths`)
    if (bound !== null && (await isThere(bound))) {
      if (taken.has(bound)) throw new Error(`two sockets were bound to ${bound}`)
      taken.add(bound)
      const made = changed(entry, socketOf, (socket) =>
        fieldsOf(socket)
          .filter(({ number }) => number !== deletedOf)
          .map(({ bytes }) => bytes),
      )
      const length = Buffer.alloc(4)
      length.writeUInt32LE(made.length)
      parts.push(length, made)
    } else parts.push(file.subarray(at, end))
    at = end
  }
  await writeFile(path, Buffer.concat(parts), { mode: 0o600 })
}

/** Of a socket that seems to have been unlinked; null for all else. */
function boundPath(entry: Uint8Array): string | null {
  for (const { number, content } of fieldsOf(entry)) {
    if (number !== socketOf || content === null) continue
    const fields = fieldsOf(content)
    const text = (wanted: number) => {
      const found = fields.find((field) => field.number === wanted)?.content
      return found
        ? Buffer.from(found)
            .toString('utf8')
            .replace(/\0[\s\S]*$/, '')
        : ''
    }
    if (!fields.some((field) => field.number === deletedOf && field.value === 1)) return null
    const name = text(nameOf)
    if (name.startsWith('/')) return name
    const directory = text(directoryOf)
    return name !== '' && directory.startsWith('/') ? `${directory}/${name}` : null
  }
  return null
}

async function read(path: string, magicBytes: number) {
  const file = await readFile(path)
  if (file.length > imageBytesMax || file.length < magicBytes + 4) throw new Error(`${path} is no image`)
  const end = magicBytes + 4 + file.readUInt32LE(magicBytes)
  if (end > file.length) throw new Error(`${path} is cut off`)
  return {
    magic: file.subarray(0, magicBytes),
    message: new Uint8Array(file.subarray(magicBytes + 4, end)),
    rest: file.subarray(end),
  }
}

async function change(
  path: string,
  magicBytes: number,
  work: (message: Uint8Array) => Uint8Array,
): Promise<void> {
  const { magic, message, rest } = await read(path, magicBytes)
  const made = work(message)
  const length = Buffer.alloc(4)
  length.writeUInt32LE(made.length)
  await writeFile(path, Buffer.concat([magic, length, made, rest]), { mode: 0o600 })
}

/** The message with another content in the parts of this number. */
function changed(message: Uint8Array, number: number, work: (part: Uint8Array) => Uint8Array[]): Uint8Array {
  return joined(
    fieldsOf(message).map((field) => {
      if (field.number !== number || field.content === null) return field.bytes
      const content = joined(work(field.content))
      return joined([Uint8Array.from([...varint((number << 3) | 2), ...varint(content.length)]), content])
    }),
  )
}

function joined(parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts))
}

function fieldsOf(message: Uint8Array): Field[] {
  const fields: Field[] = []
  let at = 0
  const next = () => {
    let value = 0
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = message[at++]
      if (byte === undefined) throw new Error('an image ends within a number')
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
    throw new Error('an image has a number that is too long')
  }
  while (at < message.length) {
    const start = at
    const tag = next()
    const kind = tag % 8
    let value = 0
    let content: Uint8Array | null = null
    if (kind === 0) value = next()
    else if (kind === 1) at += 8
    else if (kind === 5) at += 4
    else if (kind === 2) {
      const length = next()
      content = message.subarray(at, at + length)
      at += length
    } else throw new Error(`an image has a field of kind ${kind}`)
    if (at > message.length) throw new Error('an image ends within a field')
    fields.push({ number: Math.floor(tag / 8), bytes: message.subarray(start, at), content, value })
  }
  return fields
}

function varint(value: number): number[] {
  const bytes: number[] = []
  let left = value
  while (left >= 0x80) {
    bytes.push((left % 0x80) + 0x80)
    left = Math.floor(left / 0x80)
  }
  return [...bytes, left]
}
