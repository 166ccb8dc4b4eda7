import { afterAll, beforeAll, expect, test } from 'bun:test'
import { createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { randomText } from '../../../lib/ids.ts'
import type { Instance } from '../../../spec/runtime.ts'
import { control, hostAddresses, hostPidOf, instancesDir, osErrno, probePath, secret } from './test-host.ts'

export interface Escaping {
  sandbox(): Instance
  neighbour(): Instance
  /** An attempt from inside the sandbox. */
  probe(...words: string[]): Promise<{ output: string }>
  shell(instance: Instance, script: string): Promise<{ output: string }>
  /** From now on, whatever name is asked for. */
  resolvesTo(addresses: string[]): void
}

/** What is on the network, and next door. */
export function othersOutOfReach(context: Escaping): void {
  const { probe, shell } = context
  let server: Server
  let abstractServer: Server
  let port = 0
  const abstractName = `hutch-escape-${randomText(8)}`

  beforeAll(async () => {
    server = createServer((socket) => socket.end())
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    port = (server.address() as { port: number }).port
    abstractServer = createServer((socket) => socket.end())
    await new Promise<void>((resolve) => abstractServer.listen(`\0${abstractName}`, resolve))
  })
  afterAll(() => {
    server?.close()
    abstractServer?.close()
  })

  test('a port of the host, by whatever address it has', async () => {
    const dial = Bun.spawn([probePath, 'connect-tcp', '127.0.0.1', String(port)])
    expect((await new Response(dial.stdout).text()).trim()).toBe('done')
    const addresses = ['127.0.0.1', '::1', '::ffff:127.0.0.1', '0.0.0.0', '10.201.0.1', '10.201.0.3']
    for (const address of [...addresses, ...hostAddresses()]) {
      expect([address, (await probe('connect-tcp', address, String(port))).output]).toEqual([
        address,
        expect.stringMatching(/^errno /),
      ])
    }
  })

  test('a port of the host by an address of its own', async () => {
    const own = hostAddresses()
    if (own.length === 0) return void console.log('skipped: this host has no address but loopback')
    const open = createServer((socket) => socket.end())
    await new Promise<void>((resolve) => open.listen(0, '::', resolve))
    const openPort = String((open.address() as { port: number }).port)
    for (const address of own) {
      const dial = Bun.spawn([probePath, 'connect-tcp', address, openPort])
      expect([address, (await new Response(dial.stdout).text()).trim()]).toEqual([address, 'done'])
      expect([address, (await probe('connect-tcp', address, openPort)).output.trim()]).toEqual([
        address,
        `errno ${osErrno('ECONNRESET')}`,
      ])
    }
    open.close()
  })

  test('addresses that are not public, in every spelling', async () => {
    for (const address of [
      ...['169.254.169.254', '10.0.0.1', '172.16.0.1', '192.168.0.1', '100.64.0.1', '198.18.0.1'],
      ...['::ffff:10.0.0.1', '64:ff9b::a00:1', '2002:a00:1::', 'fd00::1', 'fe80::1', '::10.0.0.1'],
    ]) {
      expect([address, (await probe('connect-tcp', address, '80')).output]).toEqual([
        address,
        expect.stringMatching(/^errno /),
      ])
    }
  })

  test('a name that an attacker has pointed here, also a moment after it pointed elsewhere', async () => {
    // What the resolver says is not what the verdict is on.
    context.resolvesTo(['8.8.8.8'])
    expect((await resolveInside('rebind.example')).output.trim()).toBe('8.8.8.8')
    const inward = ['127.0.0.1', '169.254.169.254', ...hostAddresses()]
    context.resolvesTo(inward)
    for (const address of inward.slice(1)) {
      expect((await probe('connect-tcp', address, String(port))).output).toStartWith('errno ')
    }
  })

  test("the relay's own port, asked directly", async () => {
    for (const address of ['127.0.0.1', '::1', '10.201.0.2']) {
      expect((await probe('connect-tcp', address, '1')).output.trim()).toBe(`errno ${osErrno('ECONNRESET')}`)
    }
  })

  test('from an address of somebody else', async () => {
    const dial = Bun.spawn([probePath, 'connect-spoofed', '127.0.0.1', String(port)])
    expect((await new Response(dial.stdout).text()).trim()).toBe('done')
    for (const address of [
      '10.201.0.3',
      '169.254.169.254',
      ...hostAddresses().filter((own) => !own.includes(':')),
    ]) {
      expect((await probe('connect-spoofed', address, String(port))).output).toStartWith('errno ')
    }
  })

  test('by datagrams other than DNS', async () => {
    const echo = await Bun.udpSocket({
      hostname: '127.0.0.1',
      socket: { data: (socket, data, from, address) => void socket.send(data, from, address) },
    })
    const dial = Bun.spawn([probePath, 'send-udp', '127.0.0.1', String(echo.port)])
    expect((await new Response(dial.stdout).text()).trim()).toBe('done')
    for (const address of ['10.201.0.3', '8.8.8.8', ...hostAddresses().filter((own) => !own.includes(':'))]) {
      expect((await probe('send-udp', address, String(echo.port))).output).toStartWith('errno ')
    }
    echo.close()
  })

  test.each(['raw-socket', 'raw-socket-6', 'add-address'])('%s', async (attempt) => {
    const outside = Bun.spawnSync(['unshare', '--net', probePath, attempt])
    expect(outside.stdout.toString().trim()).toBe('done')
    expect((await probe(attempt)).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
  })

  test('the rules that redirect what leaves', async () => {
    const outside = Bun.spawnSync(['unshare', '--net', probePath, 'netfilter'])
    expect(outside.stdout.toString().trim()).toBe('done')
    expect((await probe('netfilter')).output).toStartWith('errno ')
    expect((await probe('write', '/proc/sys/net/ipv4/ip_unprivileged_port_start', '1')).output).toStartWith(
      'errno ',
    )
  })

  test('the sockets of its keeper, which is not inside', async () => {
    const run = join(instancesDir, context.sandbox().id, 'run')
    // From there, for the way to it may be longer than an address.
    const dial = Bun.spawn([probePath, 'connect-unix', 'keeper.sock'], { cwd: run })
    expect((await new Response(dial.stdout).text()).trim()).toBe('done')
    for (const name of ['keeper.sock', 'egress.sock', 'guest.sock']) {
      expect((await probe('connect-unix', join(run, name))).output).toStartWith('errno ')
    }
    const found = await shell(
      context.sandbox(),
      'for p in /proc/[0-9]*; do cat $p/comm; done 2>/dev/null | sort -u',
    )
    expect(found.output).not.toMatch(/keeper|dialler/)
  })

  test('an abstract socket of the host', async () => {
    const dial = Bun.spawn([probePath, 'connect-abstract', abstractName])
    expect((await new Response(dial.stdout).text()).trim()).toBe('done')
    expect((await probe('connect-abstract', abstractName)).output.trim()).toBe(
      `errno ${osErrno('ECONNREFUSED')}`,
    )
  })

  test('processes of a neighbour', async () => {
    const pid = String(hostPidOf(context.neighbour()))
    expect(control('kill', pid)).toBe('done')
    expect((await probe('kill', pid)).output.trim()).toBe(`errno ${osErrno('ESRCH')}`)
    expect((await shell(context.sandbox(), 'ls -d /proc/[0-9]* | wc -l')).output.trim()).toMatch(/^[1-9]$/)
  })

  test('files of a neighbour', async () => {
    const pid = hostPidOf(context.neighbour())
    expect(await Bun.file(`/proc/${pid}/root/root/private`).text()).toBe(secret)
    for (const path of [
      `/proc/${pid}/root/root/private`,
      '/root/private',
      join(instancesDir, context.neighbour().id),
    ]) {
      expect((await probe('read', path)).output).toStartWith('errno ')
    }
  })

  test('the network has no interface but lo', async () => {
    expect((await shell(context.sandbox(), 'tail -n +3 /proc/net/dev | cut -d: -f1')).output.trim()).toBe(
      'lo',
    )
  })

  const resolveInside = (name: string) =>
    shell(context.sandbox(), `python3 -c "import socket; print(socket.gethostbyname('${name}'))"`)
}
