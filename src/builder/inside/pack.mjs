// Runs inside the machine of a build, by `bun`. Notes what a directory holds (`note`), or packs what came of it into a
// tar archive: whole directories (`pack`), or what is other than it was noted (`changes`).
import {
  closeSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'

const options = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const pieceBytes = 1024 * 1024

/** Names are bytes: texts here have one byte a character. */
function bytesOf(path) {
  return Buffer.from(path, 'latin1')
}

/** Everything below a directory, parents first, by path; `enter` says whether a directory is looked into. */
function* walk(path, enter) {
  for (const entry of readdirSync(bytesOf(path), { encoding: 'buffer' }).sort(Buffer.compare)) {
    const child = `${path}/${entry.toString('latin1')}`
    const status = lstatSync(bytesOf(child), { bigint: true, throwIfNoEntry: false })
    if (status === undefined) continue
    yield [child, status]
    if (status.isDirectory() && enter(child)) yield* walk(child, enter)
  }
}

class Archive {
  #file = openSync(options.out, 'w', 0o600)
  #parts = []
  #bytes = 0

  #write(bytes) {
    this.#parts.push(bytes)
    this.#bytes += bytes.length
    if (this.#bytes >= pieceBytes) this.#flush()
  }

  #flush() {
    let rest = Buffer.concat(this.#parts)
    this.#parts = []
    this.#bytes = 0
    while (rest.length > 0) rest = rest.subarray(writeSync(this.#file, rest))
  }

  add(path, status) {
    const isFile = status.isFile()
    const type = isFile ? '0' : status.isDirectory() ? '5' : status.isSymbolicLink() ? '2' : null
    // Sockets, pipes: of programs that ran, not of what they made.
    if (type === null) return
    const target = type === '2' ? readlinkSync(bytesOf(path), { encoding: 'buffer' }).toString('latin1') : ''
    const size = isFile ? Number(status.size) : 0
    this.#header(path.slice(1), type, target, Number(status.mode) & 0o777, size, status.mtimeNs / 1000000000n)
    if (isFile) this.#content(path, size)
  }

  /** What an upper layer says of a name that is gone. */
  gone(path) {
    const slash = path.lastIndexOf('/')
    this.#header(`${path.slice(1, slash)}/.wh.${path.slice(slash + 1)}`, '0', '', 0o644, 0, 0n)
  }

  #content(path, size) {
    const file = openSync(bytesOf(path), 'r')
    try {
      for (let left = size; left > 0; ) {
        const piece = Buffer.alloc(Math.min(left, pieceBytes))
        const read = readSync(file, piece, 0, piece.length, null)
        // One that became shorter while it was read.
        if (read === 0) {
          this.#write(Buffer.alloc(left))
          break
        }
        this.#write(piece.subarray(0, read))
        left -= read
      }
    } finally {
      closeSync(file)
    }
    this.#pad(size)
  }

  #header(path, type, target, mode, size, seconds) {
    const records = []
    if (path.length > 100) records.push(['path', path])
    if (target.length > 100) records.push(['linkpath', target])
    if (records.length > 0) {
      const content = Buffer.from(records.map(([key, value]) => record(key, value)).join(''), 'latin1')
      this.#write(block('pax', 'x', '', 0o644, content.length, 0n))
      this.#write(content)
      this.#pad(content.length)
    }
    this.#write(block(path, type, target, mode, size, seconds))
  }

  #pad(size) {
    if (size % 512 !== 0) this.#write(Buffer.alloc(512 - (size % 512)))
  }

  end() {
    this.#write(Buffer.alloc(1024))
    this.#flush()
    closeSync(this.#file)
  }
}

function block(path, type, target, mode, size, seconds) {
  const header = Buffer.alloc(512)
  header.write(path.slice(0, 100), 0, 'latin1')
  header.write(`${mode.toString(8).padStart(7, '0')}\0`, 100)
  header.write('0000000\0' + '0000000\0', 108)
  if (size < 8 ** 11) header.write(`${size.toString(8).padStart(11, '0')}\0`, 124)
  else {
    header[124] = 0x80
    header.writeBigUInt64BE(BigInt(size), 128)
  }
  header.write(`${(seconds > 0n ? seconds : 0n).toString(8).padStart(11, '0')}\0`, 136)
  header.write('        ', 148)
  header.write(type, 156)
  header.write(target.slice(0, 100), 157, 'latin1')
  header.write('ustar\0' + '00', 257)
  let sum = 0
  for (const byte of header) sum += byte
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return header
}

function record(key, value) {
  const rest = ` ${key}=${value}\n`
  let length = rest.length
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return `${length}${rest}`
}

function lookOf(status) {
  if (status.isDirectory()) return `d${Number(status.mode)}`
  return `${status.mode} ${status.size} ${status.mtimeNs} ${status.ctimeNs}`
}

const below = (path) => path.slice(options.root.length + 1)
const isSkipped = (path) =>
  options.skip.some((name) => below(path) === name) ||
  (!below(path).split('/').includes('node_modules') &&
    below(path)
      .split('/')
      .some((name) => name.startsWith('.env')))

if (options.mode === 'note') {
  const noted = {}
  for (const [path, status] of walk(options.root, () => true)) noted[path] = lookOf(status)
  writeFileSync(options.out, JSON.stringify(noted))
} else if (options.mode === 'pack') {
  // Directories by one of the names, wherever they are.
  const archive = new Archive()
  const wanted = new Set(options.names)
  const isWanted = (path) => wanted.has(path.slice(path.lastIndexOf('/') + 1))
  for (const [path, status] of walk(options.root, (path) => !isWanted(path))) {
    if (!status.isDirectory() || !isWanted(path)) continue
    archive.add(path, status)
    for (const [child, childStatus] of walk(path, () => true)) archive.add(child, childStatus)
  }
  archive.end()
} else {
  const before = new Map(Object.entries(JSON.parse(readFileSync(options.noted, 'utf8'))))
  const archive = new Archive()
  const entered = (path) => !isSkipped(path)
  for (const [path, status] of walk(options.root, entered)) {
    const was = before.get(path)
    before.delete(path)
    if (isSkipped(path) || was === lookOf(status)) continue
    // What is a directory now and was none hides what stood there by being one.
    archive.add(path, status)
  }
  // The topmost of what is gone takes along what was in it.
  let last = null
  for (const path of [...before.keys()].sort()) {
    if (isSkipped(path) || [...parents(path)].some(isSkipped)) continue
    if (last !== null && path.startsWith(`${last}/`)) continue
    if (lstatSync(bytesOf(path), { throwIfNoEntry: false }) !== undefined) continue
    // Under something that is no directory any more there is nothing to say.
    const parent = lstatSync(bytesOf(path.slice(0, path.lastIndexOf('/'))), { throwIfNoEntry: false })
    if (!parent?.isDirectory()) continue
    last = path
    archive.gone(path)
  }
  archive.end()
}

function* parents(path) {
  for (
    let slash = path.lastIndexOf('/');
    slash > options.root.length;
    slash = path.lastIndexOf('/', slash - 1)
  )
    yield path.slice(0, slash)
}
