import { isIP } from 'node:net'

/** Whether an address is one of this machine to itself. */
export function isLoopbackAddress(address: string): boolean {
  return address === '::1' || (isIP(address) === 4 && address.startsWith('127.'))
}

/** Whether a host, with or without a port, is this machine itself. */
export function isLoopbackHost(host: string): boolean {
  const name = withoutPort(host)
  return name === 'localhost' || name.endsWith('.localhost') || isLoopbackAddress(name)
}

/** The name or address of a host as it stands in an URL. */
export function withoutPort(host: string): string {
  return host.startsWith('[') ? host.slice(1, host.indexOf(']')) : host.replace(/:\d+$/, '')
}
