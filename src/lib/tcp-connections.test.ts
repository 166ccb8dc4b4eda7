import { expect, test } from 'bun:test'
import { networkInterfaces } from 'node:os'
import { shutdownConnection } from './tcp-connections.ts'

const hasIpv6 = Object.values(networkInterfaces()).some((all) =>
  all?.some(({ address }) => address === '::1'),
)

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
