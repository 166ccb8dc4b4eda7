import { ptr } from 'bun:ffi'
import { readdirSync } from 'node:fs'
import { parseAddress } from './addresses.ts'
import { libc } from './libc.ts'

const afInet = 2
const afInet6 = 10
const shutBoth = 2
const ipprotoTcp = 6
const tcpCongestion = 13
const reno = new TextEncoder().encode('reno')

interface Endpoint {
  address: string
  port: number
}

/**
 * Ends the TCP connection of this process that `peer` has to its port `localPort`, if there is one: for where only the
 * addresses are known. Looks at every open descriptor.
 */
export function shutdownConnection(localPort: number, peer: Endpoint): boolean {
  const found = findSocket((name) => sameEndpoint(name.peer(), peer) && name.local()?.port === localPort)
  return found !== null && libc()?.shutdown(found, shutBoth) === 0
}

/**
 * Has this process's listener on `local` accept connections with the simplest congestion control, which every kernel
 * has, instead of the host's default. For loopback: a default like BBR paces what is sent by timers, for a wire that is
 * not there, and so takes twice as long. Looks at every open descriptor.
 */
export function unpaceListener(local: Endpoint): boolean {
  const found = findSocket((name) => sameEndpoint(name.local(), local) && name.peer() === null)
  return found !== null && libc()?.setsockopt(found, ipprotoTcp, tcpCongestion, ptr(reno), reno.length) === 0
}

interface SocketNames {
  local(): SocketName | null
  peer(): SocketName | null
}

function findSocket(fits: (names: SocketNames) => boolean): number | null {
  const symbols = libc()
  if (!symbols) return null
  const name = new Uint8Array(new ArrayBuffer(128))
  const length = new Uint32Array(new ArrayBuffer(4))
  const named = (get: typeof symbols.getpeername, descriptor: number) => {
    length[0] = name.length
    return get(descriptor, ptr(name), ptr(length)) === 0 ? socketName(name) : null
  }
  for (const entry of readdirSync('/proc/self/fd')) {
    const descriptor = Number(entry)
    const names = {
      local: () => named(symbols.getsockname, descriptor),
      peer: () => named(symbols.getpeername, descriptor),
    }
    if (fits(names)) return descriptor
  }
  return null
}

function sameEndpoint(name: SocketName | null, { address, port }: Endpoint): boolean {
  if (name?.port !== port) return false
  const bytes = addressBytes(address)
  return bytes !== null && name.address.equals(bytes)
}

interface SocketName {
  port: number
  /** 16 bytes, IPv4 mapped into IPv6. */
  address: Buffer
}

function socketName(name: Uint8Array): SocketName | null {
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
  const address = parseAddress(text.replace(/%.*$/, ''))
  if (address === null) return null
  return address.length === 4 ? mapped([...address]) : Buffer.from(address)
}
