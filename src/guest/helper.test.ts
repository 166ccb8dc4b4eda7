import { afterAll, describe, expect, test } from 'bun:test'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statSync,
} from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { compileHelper, findCompilers } from '../../scripts/build-helper.ts'
import { capture } from '../../scripts/capture.ts'
import { PlatformError } from '../errors.ts'
import { eventually } from '../lib/test-eventually.ts'
import {
  isRunning,
  type LaunchedInstance,
  namespaceOf,
  read,
  status,
  TestHost,
  uidRange,
} from './test-launch.ts'

const isRoot = process.getuid?.() === 0
const reason = isRoot ? '' : ' (skipped: takes root)'
const suite = isRoot ? describe : describe.skip
const host = new TestHost()
afterAll(() => host.close())

const open = (path: string): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = connect({ path, allowHalfOpen: true }, () => resolve(socket))
    socket.once('error', reject)
  })

/** All that comes until the other side ends. */
const drain = async (socket: Socket): Promise<Buffer> => {
  const chunks: Buffer[] = []
  for await (const chunk of socket) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

const portSocket = async (instance: LaunchedInstance, port: number): Promise<string> => {
  await eventually(`port ${port}`, () => instance.keeper.probe(port))
  await instance.keeper.listen(port)
  return instance.run(`p${port}`)
}

/** A connection by a socket that the keeper handed over. */
async function reach(keeper: LaunchedInstance['keeper'], port: number, says: string, address?: Uint8Array) {
  const fd = await (address === undefined ? keeper.reach(port) : keeper.depart(address, port))
  if (fd === null) throw new Error('the keeper handed nothing over')
  let [text, ended] = ['', false]
  const connect = Bun.connect as unknown as (options: Bun.FdSocketOptions) => Promise<Bun.Socket>
  const socket = await connect({
    fd,
    socket: {
      data: (_, bytes) => {
        text += bytes
      },
      close: () => {
        ended = true
      },
    },
  })
  if (says !== '') socket.write(says)
  return { text: () => text, ended: () => ended, close: () => socket.end() }
}

suite(`an instance launched by root${reason}`, () => {
  test('has namespaces, ids, privileges and a keeper as promised', async () => {
    const { guestPid, keeperPid, dir } = await host.launch()
    const own = ['cgroup', 'ipc', 'mnt', 'net', 'pid', 'user', 'uts']
    for (const name of own) expect(namespaceOf(guestPid, name)).not.toBe(namespaceOf('self', name))
    const base = Number(/^\s*0\s+(\d+)\s+65536$/m.exec(read(`/proc/${guestPid}/uid_map`))?.[1])
    expect(read(`/proc/${guestPid}/gid_map`)).toBe(read(`/proc/${guestPid}/uid_map`))
    expect(status(guestPid, 'Uid')).toBe([base, base, base, base].join(' '))
    expect(status(guestPid, 'Groups')).toBe('')
    expect(status(guestPid, 'NSpid')).toBe(`${guestPid} 1`)
    expect(status(guestPid, 'NoNewPrivs')).toBe('1')
    expect(status(guestPid, 'Seccomp')).toBe('2')
    for (const set of ['CapPrm', 'CapEff', 'CapBnd']) expect(status(guestPid, set)).toBe('00000000a00425fb')
    for (const set of ['CapInh', 'CapAmb']) expect(status(guestPid, set)).toBe('0000000000000000')

    const keeper = base + uidRange
    expect(status(keeperPid, 'Uid')).toBe([base, keeper, keeper, keeper].join(' '))
    expect(status(keeperPid, 'Gid')).toBe([keeper, keeper, keeper, keeper].join(' '))
    expect(status(keeperPid, 'NoNewPrivs')).toBe('1')
    for (const set of ['CapPrm', 'CapEff', 'CapBnd']) expect(status(keeperPid, set)).toBe('0000000000000000')
    expect(namespaceOf(keeperPid, 'net')).toBe(namespaceOf(guestPid, 'net'))
    for (const name of ['mnt', 'pid', 'user'])
      expect(namespaceOf(keeperPid, name)).toBe(namespaceOf('self', name))
    expect(readlinkSync(`/proc/${keeperPid}/root`)).toBe(join(dir, 'run'))
    expect(status(keeperPid, 'NSsid')).toBe(`${keeperPid}`)
  })

  test('keeps no descriptor of the host and no environment of the launcher', async () => {
    const { guestPid, keeperPid } = await host.launch()
    for (const pid of [guestPid, keeperPid]) {
      const links = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))
      const others = links.filter(
        (link) => !/^(\/null|\/dev\/null|\/|anon_inode:.*|socket:.*|\/proc\/\d+\/net\/tcp6?)$/.test(link),
      )
      expect(others.filter((link) => !link.endsWith('/run'))).toEqual([])
      expect(read(`/proc/${pid}/environ`).replaceAll('\0', '')).toBe('')
    }
  })

  test('gives root inside its whole file system, and nothing else', async () => {
    const instance = await host.launch({
      entries: ['workdir=/srv/place'],
      script: `exec > /tmp/report 2>&1
        id -u; hostname; pwd; stat -c '%u %a %n' / /usr /etc /tmp /srv/place /dev/null
        touch /usr/new /etc/new && chown 1000:65535 /etc/new && mv /usr/share /usr/moved && rm -r /usr/include && echo writable
        ls /proc/1/root /proc/1/fd >/dev/null 2>&1 || echo hidden
        mount -t tmpfs none /tmp 2>/dev/null || echo no mount
        unshare -U true 2>/dev/null || echo no namespaces
        mknod /tmp/disk b 8 0 2>/dev/null || echo no devices
        hostname other 2>/dev/null || echo no hostname
        kill -9 1 2>/dev/null; (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo no sysctl
        cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' '
        echo done`,
    })
    expect((await instance.report('tmp/report')).split('\n')).toEqual([
      '0',
      'box',
      '/srv/place',
      '0 755 /',
      '0 755 /usr',
      '0 755 /etc',
      '0 1777 /tmp',
      '0 755 /srv/place',
      '0 666 /dev/null',
      'writable',
      'hidden',
      'no mount',
      'no namespaces',
      'no devices',
      'no hostname',
      'no sysctl',
      'lo',
      'done',
      '',
    ])
    expect(isRunning(instance.guestPid)).toBe(true)
    const made = statSync(join(instance.dir, 'disk/root/upper/etc/new'))
    expect([made.uid, made.gid]).toEqual([1000, 65535])
  }, 120_000)

  test('with mounts of its own stacks file systems on its disk, and changes no mount of the host', async () => {
    const instance = await host.launch({
      entries: ['ownmounts=/own', `bind=${process.execPath}:/opt/given`],
      script: `exec > /tmp/report 2>&1
        cd /own && mkdir lower upper work merged && echo below > lower/file
        mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work merged && cat merged/file
        rm merged/file && [ -c upper/file ] && echo removed
        unshare -m -u sh -c 'hostname other && mount --bind /own/lower /root && cat /root/file && hostname'
        hostname other 2>/dev/null || echo it keeps its name
        mount -o remount,bind,rw /opt/given 2>/dev/null || echo read-only
        umount /opt/given /proc/keys 2>/dev/null || echo locked
        umount -l /usr 2>/dev/null || echo locked as well
        mount -t proc proc /root 2>/dev/null || echo no proc
        mount -t sysfs sysfs /root 2>/dev/null || echo no sysfs
        mount -t cgroup2 cgroup2 /root 2>/dev/null || echo no cgroup
        mount -t ext4 /dev/null /root 2>/dev/null || echo no disk
        mknod /own/disk b 8 0 2>/dev/null || echo no devices
        unshare -U true 2>/dev/null || echo no user namespace
        unshare -n true 2>/dev/null || echo no network
        unshare -p true 2>/dev/null || echo no processes
        (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo no sysctl
        echo done`,
    })
    expect((await instance.report('tmp/report')).split('\n')).toEqual([
      'below',
      'removed',
      'below',
      'other',
      'it keeps its name',
      'read-only',
      'locked',
      'locked as well',
      'no proc',
      'no sysfs',
      'no cgroup',
      'no disk',
      'no devices',
      'no user namespace',
      'no network',
      'no processes',
      'no sysctl',
      'done',
      '',
    ])
    for (const name of ['cgroup', 'ipc', 'net', 'pid', 'uts'])
      expect(namespaceOf(instance.guestPid, name)).not.toBe(namespaceOf('self', name))
    for (const set of ['CapPrm', 'CapEff', 'CapBnd'])
      expect(status(instance.guestPid, set)).toBe('00000000a02425fb')
    expect(existsSync(join(instance.dir, 'disk/own/upper/file'))).toBe(true)
  }, 120_000)

  test('starts again with its files in another uid range', async () => {
    const first = await host.launch({
      script: 'echo one > /root/kept; chmod 600 /root/kept; echo done > /tmp/first',
    })
    await first.report('tmp/first')
    await first.destroy()
    const second = await host.launch({
      dir: first.dir,
      uidBase: 0x3100_0000 + uidRange * (process.pid % 1024),
      script: 'cat /root/kept > /tmp/second; echo two >> /root/kept && echo done >> /tmp/second',
    })
    expect(await second.report('tmp/second')).toBe('one\ndone\n')
  })

  test('relays bytes both ways, half-close included', async () => {
    const instance = await host.launch({
      javascript: `require('net').createServer({ allowHalfOpen: true }, (socket) => {
        let bytes = 0
        socket.on('data', (chunk) => { bytes += chunk.length; if (!socket.write(chunk)) { socket.pause(); socket.once('drain', () => socket.resume()) } })
        socket.on('end', () => socket.end('end after ' + bytes))
      }).listen(80, '127.0.0.1')`,
    })
    const path = await portSocket(instance, 80)
    const sent = Buffer.alloc(
      24 << 20,
      (await crypto.subtle.digest('SHA-512', Buffer.from('x'))) as unknown as string,
    )
    for (let i = 0; i < sent.length; i += 4096) sent.writeUInt32LE(i, i)
    const answers = await Promise.all(
      [sent, sent.subarray(0, 1), sent.subarray(0, 70_000)].map(async (bytes) => {
        const socket = await open(path)
        socket.end(bytes)
        const got = await drain(socket)
        const end = `end after ${bytes.length}`
        return (
          got.length === bytes.length + end.length &&
          got.subarray(0, bytes.length).equals(bytes) &&
          got.subarray(bytes.length).toString() === end
        )
      }),
    )
    expect(answers).toEqual([true, true, true])
  }, 120_000)

  test('holds a sender back when the receiver does not read', async () => {
    const instance = await host.launch({
      javascript: `require('net').createServer((socket) => {
        let bytes = 0
        const more = () => { while (bytes < 64 << 20) { bytes += 65536; if (!socket.write(Buffer.alloc(65536))) return socket.once('drain', more) } socket.end() }
        setInterval(() => require('fs').writeFileSync('/tmp/sent', String(bytes)), 10)
        more()
      }).listen(80)`,
    })
    const socket = await open(await portSocket(instance, 80))
    socket.pause()
    const settled = async () => {
      let last = ''
      return eventually('the sender to stop', async () => {
        const before = last
        await Bun.sleep(200)
        last = instance.inside('tmp/sent')
        return Number(last) > 0 && last === before && last
      })
    }
    expect(Number(await settled())).toBeLessThan(32 << 20)
    socket.resume()
    expect((await drain(socket)).length).toBe(64 << 20)
  }, 120_000)

  test('reaches servers on ::1 only, and closes a refused connection without a byte', async () => {
    const instance = await host.launch({
      javascript: `require('net').createServer((socket) => socket.end('six')).listen(81, '::1')`,
    })
    const six = await open(await portSocket(instance, 81))
    expect((await drain(six)).toString()).toBe('six')
    six.destroy()
    expect(await instance.keeper.probe(82)).toBe(false)
    await instance.keeper.listen(82)
    // The close may come while the client still connects, which Node reports as an error of the connection.
    const received = await open(instance.run('p82')).then(drain, (error: NodeJS.ErrnoException) => {
      expect(error.code).toBe('ECONNRESET')
      return Buffer.alloc(0)
    })
    expect(received.length).toBe(0)
  }, 120_000)

  test('leaves the port of the own API to programs where it is asked to', async () => {
    const listens = `require('net').createServer((socket) => socket.end('mine')).listen(8080, '0.0.0.0')`
    const instance = await host.launch({ entries: ['api=no'], javascript: listens })
    const socket = await open(await portSocket(instance, 8080))
    expect((await drain(socket)).toString()).toBe('mine')
    socket.destroy()
  }, 120_000)

  test('hands over sockets that are connected to ports inside, and keeps nothing of them', async () => {
    const instance = await host.launch({
      javascript: `
        const { createServer } = require('net')
        const told = (name, text) => require('fs').writeFileSync('/tmp/' + name, text)
        createServer((socket) => {
          socket.on('data', (bytes) => socket.write('you said ' + bytes))
          socket.on('error', () => {})
          socket.on('close', () => told('closed', 'yes'))
        }).listen(80, '127.0.0.1')
        createServer((socket) => socket.end('six')).listen(81, '::1')`,
    })
    const { keeper } = instance
    await eventually('the servers', async () => (await keeper.probe(80)) && (await keeper.probe(81)))
    const descriptors = () => readdirSync(`/proc/${instance.keeperPid}/fd`).length
    const before = descriptors()
    const reached = await Promise.all(Array.from({ length: 20 }, (_, at) => reach(keeper, 80, `${at}`)))
    for (const [at, { text }] of reached.entries()) {
      await eventually('an answer', () => text() === `you said ${at}`)
    }
    expect(descriptors()).toBe(before)
    for (const { close } of reached) close()
    await eventually('the server to see them go', () => instance.inside('tmp/closed') === 'yes')
    const six = await reach(keeper, 81, '')
    await eventually('its end', () => six.ended())
    expect(six.text()).toBe('six')
    // By address, of either family, as programs inside dial it.
    const loopback6 = Uint8Array.from({ length: 16 }, (_, at) => (at === 15 ? 1 : 0))
    const sixth = await reach(keeper, 81, '', loopback6)
    await eventually('its end', () => sixth.ended())
    expect(sixth.text()).toBe('six')
    const four = await reach(keeper, 80, 'four', Uint8Array.of(127, 0, 0, 1))
    await eventually('an answer', () => four.text() === 'you said four')
    four.close()
  }, 120_000)

  test('says where nothing accepts connections, and dials no port 0', async () => {
    const { keeper } = await host.launch()
    const loopback = Uint8Array.of(127, 0, 0, 1)
    for (const port of [82, 0]) {
      for (const ask of [() => keeper.reach(port), () => keeper.depart(loopback, port)]) {
        const failure = await ask().catch((error) => error)
        expect(failure).toBeInstanceOf(PlatformError)
        expect(failure.code).toBe('unavailable')
      }
    }
    const noAddress = await keeper.depart(Uint8Array.of(1, 2, 3), 80).catch((error) => error)
    expect(noAddress).toBeInstanceOf(PlatformError)
    expect(await keeper.open()).toMatchObject({ state: 'running' })
  })

  test('lets go of both sides when a client goes away', async () => {
    const instance = await host.launch({
      javascript: `let open = 0; require('net').createServer((socket) => {
        open++; socket.on('close', () => { open--; require('fs').writeFileSync('/tmp/open', 'open ' + open) })
        socket.on('error', () => {}); socket.resume()
      }).listen(80)`,
    })
    const path = await portSocket(instance, 80)
    const descriptors = () => readdirSync(`/proc/${instance.keeperPid}/fd`).length
    const before = descriptors()
    const sockets = await Promise.all(Array.from({ length: 20 }, () => open(path)))
    await eventually('the relays', () => descriptors() >= before + 40)
    for (const socket of sockets) socket.destroy()
    await eventually('the server to see it', () => instance.inside('tmp/open') === 'open 0')
    await eventually('the relays to be over', () => descriptors() <= before + 8)
  }, 120_000)

  test('keeps at most 256 ports, dropping the one that was not used for longest', async () => {
    const instance = await host.launch()
    for (let port = 1000; port < 1256; port++) await instance.keeper.listen(port)
    expect(existsSync(instance.run('p1000'))).toBe(true)
    await instance.keeper.listen(2000)
    expect(existsSync(instance.run('p1000'))).toBe(false)
    expect(existsSync(instance.run('p2000'))).toBe(true)
    expect(readdirSync(join(instance.dir, 'run')).filter((name) => /^p\d+$/.test(name)).length).toBe(256)
  })

  test('tells of its end, writes it down and removes its sockets', async () => {
    const instance = await host.launch()
    await instance.keeper.listen(80)
    expect(await instance.keeper.open()).toMatchObject({ state: 'running' })
    await instance.keeper.kill()
    expect(await instance.ended).toEqual({ state: 'signaled', code: 9 })
    await eventually('the keeper to end', () => !isRunning(instance.keeperPid))
    expect(readdirSync(join(instance.dir, 'run'))).toEqual(['exit'])
    expect(read(instance.run('exit'))).toBe('signaled 9\n')
    expect(isRunning(instance.guestPid)).toBe(false)
  })

  test('dies with its keeper', async () => {
    const instance = await host.launch({ script: 'sleep 1000' })
    process.kill(instance.keeperPid, 'SIGKILL')
    await eventually('the guest to die', () => !isRunning(instance.guestPid))
  })

  test('dies with its launcher when it is only to be tried', async () => {
    const { guestPid, keeperPid } = await host.launch({ entries: ['transient=yes'], script: 'sleep 1000' })
    await eventually('both to die', () => !isRunning(guestPid) && !isRunning(keeperPid))
  })

  test('joins the cgroups it is given, and sees itself at their root', async () => {
    const all = [...read('/proc/mounts').matchAll(/^\S+ (\S+) cgroup(2?) (\S+)/gm)]
    const made: string[] = []
    const entries: string[] = []
    for (const [, at, version, mountOptions] of all) {
      if (!version && !/\b(pids|freezer)\b/.test(mountOptions ?? '')) continue
      const dir = `${at}/hutch-test-${process.pid}`
      mkdirSync(dir)
      made.push(dir)
      entries.push(`cgroup${version || 1}=${dir}`)
    }
    try {
      const instance = await host.launch({
        entries,
        script: 'cat /proc/self/cgroup > /tmp/cgroup; echo done >> /tmp/cgroup; sleep 1000',
      })
      for (const dir of made)
        expect(read(`${dir}/cgroup.procs`).split('\n')).toContain(`${instance.guestPid}`)
      expect(await instance.report('tmp/cgroup')).not.toContain('hutch-test')
      await instance.destroy()
    } finally {
      for (const dir of made) await eventually(`${dir} to be empty`, () => !read(`${dir}/cgroup.procs`))
      for (const dir of made) rmdirSync(dir)
    }
  })

  test('without a pids controller bounds its processes all together', async () => {
    const { guestPid } = await host.launch({
      entries: ['pidsmax=40'],
      script:
        'for i in $(seq 200); do setpriv --reuid $((1000 + i)) --regid 1000 --clear-groups sleep 1000 & done',
    })
    const namespace = namespaceOf(guestPid, 'pid')
    const inside = () =>
      readdirSync('/proc').filter((name) => {
        try {
          return /^\d+$/.test(name) && namespaceOf(Number(name), 'pid') === namespace
        } catch {
          return false
        }
      })
    // The shell gives up when it is refused a process.
    const shells = () =>
      inside().filter(
        (pid) => status(Number(pid), 'PPid') === `${guestPid}` && read(`/proc/${pid}/comm`) === 'sh\n',
      )
    await eventually('the processes', () => inside().length >= 30)
    await eventually('the shell to be refused another one', () => shells().length === 0)
    expect(inside().length).toBeLessThan(42)
    expect(new Set(inside().map((pid) => status(Number(pid), 'Uid').split(' ')[0])).size).toBeGreaterThan(30)
  }, 120_000)

  const loop = existsSync('/dev/loop-control') && Bun.which('mkfs.ext4') !== null
  const loopTest = loop ? test : test.skip
  loopTest(
    `writes to a disk of its own that ends when it is full${loop ? '' : ' (skipped: needs /dev/loop-control and mkfs.ext4)'}`,
    async () => {
      const dir = host.newDir()
      const image = join(dir, 'disk.img')
      await capture(['truncate', '-s', '64M', image])
      await capture(['mkfs.ext4', '-q', '-b', '4096', '-O', '^has_journal', image])
      const instance = await host.launch({
        dir,
        entries: ['disk=loop'],
        script: `head -c 200000000 /dev/zero > /root/full 2>/dev/null; stat -c %s /root/full > /dev/shm/size
          rm /root/full; mkdir /result; sleep 1000`,
      })
      const inside = `/proc/${instance.guestPid}/root`
      await eventually('the disk to be full', () => existsSync(`${inside}/result`))
      const bytes = Number(read(`${inside}/dev/shm/size`))
      expect(bytes).toBeGreaterThan(32 << 20)
      expect(bytes).toBeLessThan(64 << 20)
      const backing = () =>
        readdirSync('/sys/block').filter((name) => read(`/sys/block/${name}/loop/backing_file`).includes(dir))
      expect(backing().length).toBe(1)
      await instance.destroy()
      await eventually('the loop device to be free', () => backing().length === 0)
    },
    120_000,
  )

  test('is refused in one line that names the stage, and leaves nothing', async () => {
    const dir = host.newDir()
    const cases: [string[], RegExp][] = [
      [['colour=red'], /^error stage=spec errno=22 colour: unknown key/],
      [['disk=tape'], /^error stage=spec errno=22 disk: loop or dir is wanted/],
      [['mask=/etc:/elsewhere'], /^error stage=spec errno=22 mask: an overlay with this target is wanted/],
      [['mask=/etc:/usr', 'mask=/etc:/usr'], /^error stage=spec errno=22 mask: given twice/],
      [['layer=/nowhere/at/all'], /^error stage=layers errno=2 \/nowhere\/at\/all/],
      [['overlay=/nowhere/at/all:/opt'], /^error stage=mounts errno=2 /],
      [['cgroup2=/nowhere/at/all'], /^error stage=cgroup errno=2 /],
      [['cgroup1=/nowhere/at/all'], /^error stage=cgroup errno=2 /],
      [['disk=loop'], /^error stage=disk errno=2 disk\.img/],
      [['workdir=relative'], /^error stage=spec errno=22 workdir/],
      [[`hostname=${'x'.repeat(100)}`], /^error stage=spec errno=22 hostname: given twice/],
    ]
    for (const [entries, expected] of cases) expect(await host.tryLaunch(dir, { entries })).toMatch(expected)
    expect(readdirSync(join(dir, 'run'))).toEqual([])
    const inDir = () =>
      readdirSync('/proc')
        .filter((name) => /^\d+$/.test(name) && read(`/proc/${name}/comm`).startsWith('hutch-'))
        .filter((pid) => {
          try {
            return readlinkSync(`/proc/${pid}/cwd`).startsWith(dir)
          } catch {
            return false
          }
        })
    // What a launch has forked ends right behind it.
    await eventually('the end of every process of a refused launch', () => inDir().length === 0)
    expect(read('/proc/mounts')).not.toContain(dir)
    await host.launch({ dir })
  })

  test('cannot be started twice', async () => {
    const instance = await host.launch()
    expect(await host.tryLaunch(instance.dir)).toMatch(/^error stage=dir errno=16 the instance runs already/)
    expect(await instance.keeper.open()).toMatchObject({ state: 'running' })
  })

  test('is not given to an ordinary user with a range of ids, nor to root without', async () => {
    const user = { uid: 5000, gid: 5000 }
    expect(await host.tryLaunch(host.newDir(user), { user, entries: ['uidbase=1000000'] })).toMatch(
      /^error stage=spec errno=1 uidbase/,
    )
    expect(await host.tryLaunch(host.newDir(), { uidBase: null })).toMatch(
      /^error stage=spec errno=22 uidbase: missing/,
    )
  })

  test('refuses frames that are none, and a version it does not speak', async () => {
    const instance = await host.launch()
    const hello = (version: number) =>
      Buffer.from([13, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, version, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    for (const bytes of [
      Buffer.alloc(12, 255),
      Buffer.concat([hello(1), Buffer.from([0, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0])]),
    ]) {
      const socket = await open(instance.run('keeper.sock'))
      socket.write(bytes)
      await drain(socket)
      socket.destroy()
    }
    const newer = await open(instance.run('keeper.sock'))
    newer.end(hello(2))
    expect((await drain(newer))[4]).toBe(3)
    await expect(instance.keeper.listen(0)).rejects.toBeInstanceOf(PlatformError)
    expect(await instance.keeper.open()).toMatchObject({ state: 'running' })
  })
})

const userNamespaces = Number(read('/proc/sys/user/max_user_namespaces') || '0') > 0
const unprivileged = isRoot && userNamespaces && Bun.which('setpriv') !== null ? describe : describe.skip
unprivileged(
  `an instance launched by an ordinary user${isRoot ? '' : ' (skipped: the test changes its uid, which takes root)'}`,
  () => {
    const user = { uid: 5000, gid: 5000 }

    test('has namespaces of its own and a writable root over a /usr that is readable', async () => {
      const instance = await host.launch({
        user,
        script: `exec > /tmp/report 2>&1
        id -u; echo x > /root/file && cat /root/file; touch /usr/new 2>/dev/null || echo usr is read-only
        mount -t tmpfs none /tmp 2>/dev/null || echo no mount; unshare -U true 2>/dev/null || echo no namespaces
        echo x > /dev/null && ls /dev/pts; echo done`,
      })
      expect((await instance.report('tmp/report')).split('\n')).toEqual([
        '0',
        'x',
        'usr is read-only',
        'no mount',
        'no namespaces',
        'ptmx',
        'done',
        '',
      ])
      for (const name of ['cgroup', 'ipc', 'mnt', 'net', 'pid', 'user', 'uts']) {
        expect(namespaceOf(instance.guestPid, name)).not.toBe(namespaceOf('self', name))
      }
      expect(status(instance.guestPid, 'CapEff')).toBe('00000000a00425fb')
      expect(status(instance.guestPid, 'Seccomp')).toBe('2')
      expect(status(instance.keeperPid, 'CapEff')).toBe('0000000000000000')
      await instance.keeper.kill()
      expect(await instance.ended).toEqual({ state: 'signaled', code: 9 })
    }, 120_000)

    test('dies with its keeper, and is reached through it', async () => {
      const instance = await host.launch({
        user,
        javascript: `require('net').createServer((socket) => socket.end('hello')).listen(80)`,
      })
      const socket = await open(await portSocket(instance, 80))
      expect((await drain(socket)).toString()).toBe('hello')
      process.kill(instance.keeperPid, 'SIGKILL')
      await eventually('the guest to die', () => !isRunning(instance.guestPid))
    }, 120_000)
  },
)

describe('the build', () => {
  test('is free of warnings, small and works the way of older kernels, with every compiler here', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'hutch-build-'))
    try {
      for (const compiler of findCompilers()) {
        const path = join(dir, compiler.command.join('-'))
        await compileHelper(compiler, path, ['-Werror', '-DHUTCH_TEST_OVERLAY_BY_PATH'])
        expect(statSync(path).size).toBeLessThan(1_100_000)
        if (!isRoot) continue
        const instance = await host.launch({
          helper: path,
          script: 'touch /usr/new /etc/new && rm -r /usr/include && echo done > /tmp/report',
        })
        await instance.report('tmp/report')
      }
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
  }, 120_000)
})
