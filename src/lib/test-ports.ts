import { networkInterfaces } from 'node:os'

/** Below the ports that kernels give to connections, above those of known services. */
const firstPort = 20_000
const portsInReach = 12_000
const attemptsMax = 100

/** For tests: the first of `count` neighbouring ports of this host that nobody listens on. */
export function unusedPorts(count = 1): number {
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    const first = firstPort + Math.floor(Math.random() * (portsInReach - count))
    if (Array.from({ length: count }, (_, at) => first + at).every(isUnused)) return first
  }
  throw new Error(`no ${count} neighbouring ports are free`)
}

function isUnused(port: number): boolean {
  try {
    Bun.listen({ hostname: '0.0.0.0', port, socket: { data() {} } }).stop(true)
    return true
  } catch {
    return false
  }
}

/** Whether this host listens on ::1. */
export const hasIpv6 = Object.values(networkInterfaces()).some((all) =>
  all?.some(({ address }) => address === '::1'),
)
