import { dlopen, ptr } from 'bun:ffi'
import { expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { shutdownConnection, unpaceListener } from './tcp-connections.ts'
import { hasIpv6 } from './test-ports.ts'

for (const host of ['127.0.0.1', '::1', '::']) {
  // Without IPv6 there is nothing to listen on.
  const run = hasIpv6 || !host.includes(':') ? test : test.skip
  run(`of the connections to ${host} exactly the one asked for ends`, async () => {
    const dialled = host === '::' ? '127.0.0.1' : host
    using server = Bun.serve({
      hostname: host,
      port: 0,
      fetch: (request, self) => Response.json(self.requestIP(request)),
    })
    const ended: number[] = []
    const socketOf = async (index: number) => {
      const answered = Promise.withResolvers<{ address: string; port: number }>()
      const closed = Promise.withResolvers<void>()
      const socket = await Bun.connect({
        hostname: dialled,
        port: server.port!,
        socket: {
          data: (_, chunk) => answered.resolve(JSON.parse(chunk.toString().split('\r\n\r\n')[1]!)),
          close: () => {
            ended.push(index)
            closed.resolve()
          },
        },
      })
      const ask = () =>
        socket.write(`GET / HTTP/1.1\r\nHost: ${dialled.includes(':') ? `[${dialled}]` : dialled}\r\n\r\n`)
      ask()
      return { socket, ask, peer: await answered.promise, closed: closed.promise }
    }
    const sockets = [await socketOf(0), await socketOf(1), await socketOf(2)]
    const { peer, closed } = sockets[1]!
    expect(shutdownConnection(server.port! + 1, peer)).toBe(false)
    expect(shutdownConnection(server.port!, { ...peer, address: '10.0.0.1' })).toBe(false)
    expect(shutdownConnection(server.port!, { ...peer, address: 'nonsense' })).toBe(false)
    expect(shutdownConnection(server.port!, peer)).toBe(true)
    await closed
    expect(ended).toEqual([1])
    for (const { socket } of sockets) socket.terminate()
  })
}

for (const host of ['127.0.0.1', '::1']) {
  const run = hasIpv6 || !host.includes(':') ? test : test.skip
  run(`a listener on ${host} is told how to send, and its connections with it`, async () => {
    const before = controls()
    using other = Bun.serve({ hostname: host, port: 0, fetch: () => new Response() })
    using server = Bun.serve({ hostname: host, port: 0, fetch: () => new Response() })
    expect(unpaceListener({ address: host, port: 1 })).toBe(false)
    expect(unpaceListener({ address: host === '::1' ? '127.0.0.1' : '127.0.0.2', port: server.port! })).toBe(
      false,
    )
    expect(unpaceListener({ address: host, port: server.port! })).toBe(true)
    const authority = host.includes(':') ? `[${host}]` : host
    await (await fetch(`http://${authority}:${server.port}/`)).text()
    await (await fetch(`http://${authority}:${other.port}/`)).text()
    const added = (name: string) => (controls()[name] ?? 0) - (before[name] ?? 0)
    // The listener and what it accepted; not the other listener, what that accepted, or the clients. Those of other
    // tests may end meanwhile.
    const standard = Object.keys(controls()).find((name) => name !== 'reno')
    if (standard !== undefined) expect(added('reno')).toBe(2)
    else expect(added('reno')).toBe(6)
  })
}

/** How many TCP sockets of this process have which congestion control. */
function controls(): Record<string, number> {
  const { symbols } = dlopen('libc.so.6', {
    getsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'ptr'], returns: 'i32' },
  })
  const found: Record<string, number> = {}
  for (const entry of readdirSync('/proc/self/fd')) {
    const name = new Uint8Array(new ArrayBuffer(16))
    const length = new Uint32Array(new ArrayBuffer(4)).fill(16)
    if (symbols.getsockopt(Number(entry), 6, 13, ptr(name), ptr(length)) !== 0) continue
    const text = new TextDecoder().decode(name).replace(/\0.*$/s, '')
    found[text] = (found[text] ?? 0) + 1
  }
  return found
}
