import { ptr } from 'bun:ffi'
import { readdirSync } from 'node:fs'
import { libc } from './libc.ts'

const afInet = 2
const afInet6 = 10
const shutBoth = 2

/**
 * Ends the TCP connection of this process that `peer` has to its port `localPort`, if there is one: for where only the
 * addresses are known. Looks at every open descriptor.
 */
export function shutdownConnection(localPort: number, peer: { address: string; port: number }): boolean {
  const wanted = addressBytes(peer.address)
  const symbols = libc()
  if (wanted === null || !symbols) return false
  const name = new Uint8Array(128)
  const length = new Uint32Array(1)
  const endOf = (get: typeof symbols.getpeername, descriptor: number) => {
    length[0] = name.length
    return get(descriptor, ptr(name), ptr(length)) === 0 ? socketName(name) : null
  }
  for (const entry of readdirSync('/proc/self/fd')) {
    const descriptor = Number(entry)
    const remote = endOf(symbols.getpeername, descriptor)
    if (remote?.port !== peer.port || !remote.address.equals(wanted)) continue
    if (endOf(symbols.getsockname, descriptor)?.port !== localPort) continue
    return symbols.shutdown(descriptor, shutBoth) === 0
  }
  return false
}

/** Address as 16 bytes, IPv4 mapped into IPv6. */
function socketName(name: Uint8Array): { port: number; address: Buffer } | null {
  const view = new DataView(name.buffer)
  const family = view.getUint16(0, true)
  if (family === afInet) return { port: view.getUint16(2), address: mapped([...name.subarray(4, 8)]) }
  if (family !== afInet6) return null
  return { port: view.getUint16(2), address: Buffer.from(name.subarray(8, 24)) }
}

function mapped(ipv4: number[]): Buffer {
  return Buffer.from([...new Array(10).fill(0), 0xff, 0xff, ...ipv4])
}

function addressBytes(text: string): Buffer | null {
  const bare = text.replace(/%.*$/, '')
  const ipv4 = /^(?:::ffff:)?(\d+)\.(\d+)\.(\d+)\.(\d+)$/i.exec(bare)
  if (ipv4) return mapped(ipv4.slice(1).map(Number))
  const [head = '', tail] = bare.split('::')
  const groups = (part: string) =>
    part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16))
  const front = groups(head)
  const back = tail === undefined ? [] : groups(tail)
  const middle = tail === undefined ? [] : new Array(Math.max(0, 8 - front.length - back.length)).fill(0)
  const all = [...front, ...middle, ...back]
  if (all.length !== 8 || all.some((group) => !(group >= 0 && group <= 0xffff))) return null
  return Buffer.from(all.flatMap((group) => [group >> 8, group & 0xff]))
}
