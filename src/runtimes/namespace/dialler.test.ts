import { dlopen, ptr } from 'bun:ffi'
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from 'bun:test'
import { closeSync, mkdtempSync, openSync, readdirSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { systemClock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { eventually } from '../../lib/test-eventually.ts'
import { testHelperPath } from '../test-host.ts'
import { Dialler } from './dialler.ts'

/** The one process that dials for all instances: what one of them does to it no other may feel. */

setDefaultTimeout(120_000)
const helperPath = await testHelperPath()
const calls = open()
const why = calls === null ? 'the C library is not to be had' : ''
if (why) console.warn(`skipped: ${why}`)

function open() {
  try {
    return dlopen('libc.so.6', {
      socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
      bind: { args: ['i32', 'ptr', 'i32'], returns: 'i32' },
      listen: { args: ['i32', 'i32'], returns: 'i32' },
      getsockname: { args: ['i32', 'ptr', 'ptr'], returns: 'i32' },
    }).symbols
  } catch {
    return null
  }
}

const [unixFamily, internetFamily] = [1, 2]
const [streams, datagrams] = [1, 2]

let dir: string
let dialler: Dialler
const descriptors: number[] = []

beforeEach(() => {
  dir = mkdtempSync(`${tmpdir()}/hutch-dials-`)
  dialler = new Dialler({
    helperPath,
    instancesDir: dir,
    socketDir: dir,
    log: silentLogger,
    clock: systemClock,
  })
})
afterEach(() => {
  dialler.close()
  for (const descriptor of descriptors.splice(0)) closeSync(descriptor)
  rmSync(dir, { recursive: true, force: true })
})

/** As a keeper has one. What comes in stays there. */
function mailbox(name: string): string {
  const fd = calls!.socket(unixFamily, datagrams, 0)
  const directory = openSync(dir, 'r')
  descriptors.push(fd, directory)
  // However long the way to the directory is.
  const path = `/proc/self/fd/${directory}/${name}`
  const address = Buffer.alloc(2 + path.length + 1)
  address.writeUInt16LE(unixFamily)
  address.write(path, 2)
  expect(calls!.bind(fd, ptr(address), address.length)).toBe(0)
  return name
}

/** A port of the loopback where nobody ever accepts, so that most who knock hear nothing. */
function blackHole(): number {
  const fd = calls!.socket(internetFamily, streams, 0)
  descriptors.push(fd)
  const address = Buffer.alloc(16)
  address.writeUInt16LE(internetFamily)
  address.set([127, 0, 0, 1], 4)
  expect(calls!.bind(fd, ptr(address), 16)).toBe(0)
  expect(calls!.listen(fd, 0)).toBe(0)
  const length = new Int32Array([16])
  expect(calls!.getsockname(fd, ptr(address), ptr(length))).toBe(0)
  return address.readUInt16BE(2)
}

test.skipIf(why !== '')('a mailbox that nobody empties keeps nobody else waiting', async () => {
  using server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: () => new Response() })
  const target = { address: '127.0.0.1', port: server.port! }
  const full = mailbox('full')
  const answered: string[] = []
  // More than the kernel keeps for one that does not read, however this host is set up.
  const qlen = Number(await Bun.file('/proc/sys/net/unix/max_dgram_qlen').text()) + 1
  const filled = Promise.withResolvers<void>()
  for (let i = 0; i < qlen + 3; i++) {
    void dialler.dial('stuck', { ...target, mailbox: full, connection: i }).then((errno) => {
      answered.push(`stuck ${errno}`)
      if (answered.length === qlen) filled.resolve()
    })
  }
  await filled.promise
  const other = await dialler.dial('other', { ...target, mailbox: mailbox('empty'), connection: 1 })
  answered.push(`other ${other}`)
  expect(answered.slice(0, qlen)).toEqual(Array(qlen).fill('stuck null'))
  expect(answered.slice(qlen)).toEqual(['other null'])
})

test.skipIf(why !== '')(
  'an instance that dials where nobody answers leaves room for the others',
  async () => {
    using server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: () => new Response() })
    const hole = { address: '127.0.0.1', port: blackHole() }
    const box = mailbox('box')
    for (let i = 0; i < 6000; i++)
      void dialler.dial(`greedy ${i % 6}`, { ...hole, mailbox: box, connection: i })
    const target = { address: '127.0.0.1', port: server.port!, mailbox: mailbox('other'), connection: 1 }
    expect(await dialler.dial('other', target)).toBe(null)
  },
)

test.skipIf(why !== '')('one that was killed is started again, for whoever dials next', async () => {
  using server = Bun.serve({ hostname: '127.0.0.1', port: 0, fetch: () => new Response() })
  const target = { address: '127.0.0.1', port: server.port!, mailbox: mailbox('box') }
  for (let connection = 1; connection <= 3; connection++) {
    await eventually(
      'a dial works',
      async () => (await dialler.dial('one', { ...target, connection })) === null,
    )
    const [killed, ...others] = running()
    expect(others).toEqual([])
    process.kill(killed!, 'SIGKILL')
    await eventually('it is gone', () => !running().includes(killed!))
  }
})

/** Process ids of the diallers that stand in the test's directory. */
function running(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/cwd`) === dir
      } catch {
        return false
      }
    })
    .map(Number)
}
