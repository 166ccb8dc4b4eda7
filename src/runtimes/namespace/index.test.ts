import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { type Clock, systemClock } from '../../lib/clock.ts'
import { randomText } from '../../lib/ids.ts'
import { silentLogger } from '../../lib/log.ts'
import { eventually } from '../../lib/test-eventually.ts'
import { refusalCodeOf } from '../../lib/test-refusal.ts'
import { runtimeContract } from '../../spec/runtime.contract.ts'
import type { Instance, InstanceSpec, Runtime } from '../../spec/runtime.ts'
import { testHelperPath, testImage } from '../test-host.ts'
import { hasErrors } from './disk.ts'
import { diskSettleAfterMs } from './disk-settling.ts'
import { openNamespaceRuntime, probeNamespace } from './index.ts'
import { recordFile } from './record.ts'

// The memory and process limits of an instance are slow to reach on a busy host.
setDefaultTimeout(120_000)

const dir = realpathSync(mkdtempSync(`${tmpdir()}/hutch-namespace-`))
mkdirSync(`${dir}/image`)
const image = testImage(`${dir}/image`)
const options = {
  instancesDir: `${dir}/instances`,
  helperPath: await testHelperPath(),
  log: silentLogger,
  clock: systemClock,
}
const state = await probeNamespace(options)

/** The loop device of an instance's disk; null when there is none. */
function loopOf(id: string): { name: string; direct: string } | null {
  for (const name of readdirSync('/sys/block').filter((block) => block.startsWith('loop'))) {
    const read = (file: string) => readFileSync(`/sys/block/${name}/loop/${file}`, 'utf8').trim()
    try {
      if (read('backing_file').includes(id)) return { name, direct: read('dio') }
    } catch {
      // Nothing is on this one.
    }
  }
  return null
}

const directWrites =
  Bun.spawnSync(['dd', 'if=/dev/zero', `of=${dir}/direct`, 'bs=4096', 'count=1', 'oflag=direct']).exitCode ===
  0

const isRoot = process.getuid?.() === 0
const env = { PATH: '/usr/bin:/bin' }

afterAll(() => rmSync(dir, { recursive: true, force: true }))

await runtimeContract(
  'namespace',
  async () => {
    if (!state.usable) return { skip: state.reason }
    let runtime = await openNamespaceRuntime(options)
    return {
      runtime,
      image,
      scratchDir: '/tmp',
      workingDir: '/blaxel',
      port: 8123,
      reopen: async () => {
        runtime = await openNamespaceRuntime(options)
        return runtime
      },
      [Symbol.asyncDispose]: () => runtime[Symbol.asyncDispose](),
    }
  },
  { isolation: 'kernel-shared' },
)

const why = state.usable ? (isRoot ? '' : 'needs root') : state.reason
const describeRoot = why === '' ? describe : describe.skip
describeRoot(`namespace, as root${why === '' ? '' : ` (skipped: ${why})`}`, () => {
  let runtime: Runtime
  let instance: Instance
  let nextProcessId = 1
  const specOf = (more: Partial<InstanceSpec> = {}): InstanceSpec => ({
    id: `namespace${randomText(12)}`,
    hostname: 'box-1',
    image,
    memoryMb: 128,
    storageMb: 64,
    pidsMax: 64,
    env: {},
    workingDir: '/blaxel',
    ...more,
  })

  beforeAll(async () => {
    runtime = await openNamespaceRuntime(options)
    instance = await runtime.create(specOf())
  })
  afterAll(async () => {
    for (const id of await runtime.list()) await runtime.destroy(id)
    await runtime[Symbol.asyncDispose]()
  })

  const shell = async (script: string, on = instance, readOutput = true) => {
    const id = nextProcessId++
    const argv = ['sh', '-c', script]
    await on.guest.processes.spawn({ id, argv, env, workingDir: '/blaxel', stdin: 'null' })
    const ended = await on.guest.processes.wait(id, AbortSignal.timeout(100_000))
    let text = ''
    for await (const records of readOutput ? on.guest.processes.output(id) : []) {
      for (const { data } of records) text += Buffer.from(data).toString()
    }
    return { ...ended, text }
  }

  test('a frozen instance gives cached files back to the host, and goes on as if nothing was', async () => {
    if (!runtime.capabilities.reclaim) return expect(instance.reclaim).toBeUndefined()
    await shell(
      'head -c 8000000 /dev/urandom > /root/cached; cat /root/cached > /dev/null; sync /root/cached',
    )
    const before = (await instance.stats()).memoryBytes
    expect(before).toBeGreaterThan(7_000_000)
    await instance.freeze?.()
    const bytes = (await instance.reclaim?.()) ?? 0
    expect(bytes).toBeGreaterThan(5_000_000)
    expect((await instance.stats()).memoryBytes).toBeLessThan(before - 5_000_000)
    expect(await instance.reclaim?.()).toBeLessThan(bytes)
    await instance.thaw?.()
    expect((await shell('wc -c < /root/cached; rm /root/cached')).text).toBe('8000000\n')
  })

  test('of files that take most of the disk another is made when they may be spent for it, and only then', async () => {
    const part = new Uint8Array(8 * 1024 * 1024).fill(7)
    const parts = Array.from({ length: 5 }, (_, at) => `/root/parts/${at}`)
    const { files } = instance.guest
    for (const path of parts) await files.write(path, part)
    expect(await refusalCodeOf(files.concatenate(parts, '/root/whole'))).toBe('insufficient_storage')
    for (const path of parts) expect((await files.stat(path)).size).toBe(part.length)
    expect(await files.concatenate(parts, '/root/whole', { spend: true })).toMatchObject({
      size: 5 * part.length,
    })
    await files.remove('/root/whole')
    await files.remove('/root/parts')
  })

  test('a disk that the kernel closed to writes is told of, and is sound once its machine is started again', async () => {
    const spec = specOf()
    const box = await runtime.create(spec)
    const loop = loopOf(box.id)
    // Without a disk of its own there is nothing to close.
    if (!loop) return expect((await box.stats()).diskClosed).toBe(false)
    await shell('echo kept > /root/kept; sync', box)
    expect((await box.stats()).diskClosed).toBe(false)
    writeFileSync(`/sys/fs/ext4/${loop.name}/trigger_fs_error`, 'as if the host were full')
    expect((await shell('echo late > /root/late', box)).text).toContain('Read-only file system')
    expect((await box.stats()).diskClosed).toBe(true)
    await box.stop()
    const image = `${options.instancesDir}/${box.id}/disk.img`
    expect(await hasErrors(image)).toBe(true)
    const again = await runtime.restart(spec)
    expect((await again.stats()).diskClosed).toBe(false)
    expect((await shell('echo late > /root/late; cat /root/kept /root/late', again)).text).toBe(
      'kept\nlate\n',
    )
    await again.stop()
    expect(await hasErrors(image)).toBe(false)
    await runtime.destroy(box.id)
  })

  test('an owner is answered however busy the programs are', async () => {
    const box = await runtime.create(specOf({ pidsMax: 400 }))
    const { processes, files } = box.guest
    const count = 100
    const start = (id: number, script: string) =>
      processes.spawn({ id, argv: ['sh', '-c', script], env, workingDir: '/', stdin: 'null' })
    for (let id = 1; id <= count; id++) await start(id, 'while :; do :; done')
    expect((await files.stat('/etc')).type).toBe('directory')
    const ends: number[] = []
    processes.onExit(({ id }) => ends.push(id))
    for (let id = 1; id <= count; id++) await processes.signal(id, 9, 'tree')
    for (let id = 1; id <= count; id++) expect(await processes.wait(id)).toMatchObject({ signal: 9 })
    expect(ends).toHaveLength(count)
    await runtime.destroy(box.id)
  })

  test('programs are in their groups from the first instruction, also while these are held up', async () => {
    const box = await runtime.create(specOf({ pidsMax: 400 }))
    const start = (id: number, script: string) =>
      box.guest.processes.spawn({ id, argv: ['sh', '-c', script], env, workingDir: '/', stdin: 'null' })
    await start(1, 'for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait')
    for (let id = 2; id <= 12; id++) await start(id, 'for i in 1 2 3 4; do sleep 600 & done; wait')
    const { guest } = box.handle.state as { guest: { pid: number } }
    const groupsOf = (pid: number) => {
      try {
        const lines = readFileSync(`/proc/${pid}/cgroup`, 'utf8').split('\n')
        const own = readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('hutch')
        return { own, groups: lines.filter((line) => line.includes(box.id)) }
      } catch {
        return { own: true, groups: [] }
      }
    }
    const { groups: ours } = groupsOf(guest.pid)
    expect(ours.length).toBeGreaterThan(0)
    expect(ours.filter((line) => line.endsWith('/programs'))).toEqual([])
    const programs = readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map((pid) => groupsOf(Number(pid)))
      .filter(({ own, groups }) => !own && groups.length > 0)
    expect(programs.length).toBeGreaterThanOrEqual(12)
    const held = /:(?:cpu|cpu,cpuacct|memory):/
    for (const { groups } of programs) {
      const apart = groups.filter((line) => held.test(line) && ours.every((our) => our !== line))
      // In version 1 each of the two is a hierarchy of its own; version 2 has one for both.
      expect(apart.filter((line) => !line.endsWith('/programs'))).toEqual([])
      expect(groups.filter((line) => line.endsWith('/guest'))).toEqual([])
      expect(groups.some((line) => line.endsWith('/programs'))).toBe(true)
    }
    if (ours.some((line) => line.includes(':memory:')))
      expect(programs.every(({ groups }) => groups.some((line) => /:memory:.*\/programs$/.test(line)))).toBe(
        true,
      )
    await runtime.destroy(box.id)
  })

  test('an instance is its own machine: name, root, processes', async () => {
    const { text } = await shell('hostname; id -u; ls -d /proc/[0-9]* | wc -l')
    const [hostname, uid, processes] = text.trim().split('\n')
    expect(hostname).toBe('box-1')
    expect(uid).toBe('0')
    expect(Number(processes)).toBeLessThan(10)
  })

  test('what is sent inside is not paced for a wire that is not there, whatever the host is set to', async () => {
    const { text } = await shell('cat /proc/sys/net/ipv4/tcp_congestion_control')
    expect(text).toBe('reno\n')
  })

  test('the disk is as large as asked for, and full is said without a part of a file', async () => {
    const path = '/blaxel/large'
    await instance.guest.files.write(path, Buffer.from('old'))
    const chunk = new Uint8Array(1024 * 1024)
    let sent = 0
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (sent++ < 200) controller.enqueue(chunk)
        else controller.close()
      },
    })
    const code = await instance.guest.files.write(path, body).catch((error) => error.code)
    expect(code).toBe('insufficient_storage')
    expect((await instance.guest.files.stat(path)).size).toBe(3)
    const left = await shell('ls -A /blaxel')
    expect(left.text.trim()).toBe('large')
  })

  test('where little is left of the disk of the host nothing new begins, and what there is is started again', async () => {
    const small = `${dir}/small`
    mkdirSync(small)
    const mount = (sizeMb: number, how: string[] = []) =>
      Bun.spawnSync(['mount', '-t', 'tmpfs', '-o', [`size=${sizeMb}m`, ...how].join(), 'none', small])
    expect(mount(600).exitCode).toBe(0)
    try {
      const there = { ...options, instancesDir: `${small}/instances` }
      const spec = specOf()
      const before = await openNamespaceRuntime(there)
      await before.create(spec)
      await before[Symbol.asyncDispose]()
      expect(mount(80, ['remount']).exitCode).toBe(0)
      expect((await probeNamespace(there)).usable).toBe(true)
      const after = await openNamespaceRuntime(there)
      const code = await after.create(specOf()).catch((error) => error.code)
      expect(code).toBe('insufficient_storage')
      const restarted = await after.restart(spec)
      expect((await shell('echo there', restarted)).text).toBe('there\n')
      await after.destroy(spec.id)
      await after[Symbol.asyncDispose]()
    } finally {
      Bun.spawnSync(['umount', '-l', small])
    }
  })

  const settling = 'a disk image begins in the page cache of the host, and later goes past it with all on it'
  const unable = directWrites ? '' : ' (skipped: the file system of this host takes no direct writes)'
  test.skipIf(unable !== '')(`${settling}${unable}`, async () => {
    const due = Promise.withResolvers<void>()
    const clock: Clock = {
      ...systemClock,
      sleep: (ms, signal) => (ms === diskSettleAfterMs ? due.promise : systemClock.sleep(ms, signal)),
    }
    await using there = await openNamespaceRuntime({ ...options, instancesDir: `${dir}/settling`, clock })
    const spec = specOf()
    const box = await there.create(spec)
    try {
      await shell('head -c 3000000 /dev/urandom > /root/early; sha256sum /root/early > /root/sums; sync', box)
      expect(loopOf(spec.id)?.direct).toBe('0')
      due.resolve()
      const deadline = Date.now() + 60_000
      while (loopOf(spec.id)?.direct !== '1' && Date.now() < deadline) await systemClock.sleep(20)
      expect(loopOf(spec.id)?.direct).toBe('1')
      await shell('head -c 3000000 /dev/urandom > /root/late; sha256sum /root/late >> /root/sums; sync', box)
      const read = 'sha256sum -c /root/sums'
      expect((await shell(read, box)).text).toBe('/root/early: OK\n/root/late: OK\n')
      await box.stop()
      // The keeper held the device until then.
      expect(loopOf(spec.id)).toBeNull()
      expect((await shell(read, await there.restart(spec))).text).toBe('/root/early: OK\n/root/late: OK\n')
    } finally {
      await there.destroy(spec.id)
    }
  })

  test('memory is bounded, and process 1 survives who takes too much', async () => {
    const bomb = await shell("python3 -c 'x = bytearray(400 << 20); print(len(x))'")
    expect(bomb.exitCode).not.toBe(0)
    expect((await shell('echo alive')).text).toBe('alive\n')
    expect((await instance.stats()).memoryBytes).toBeLessThan(128 * 1024 * 1024 + 1)
  })

  test('processes are bounded', async () => {
    const { text } = await shell(
      'for i in $(seq 200); do sleep 100 & done 2>&1; jobs | wc -l; kill $(jobs -p)',
    )
    expect(text).toMatch(/fork|temporarily unavailable/i)
  })

  test('uids of two instances have nothing in common, also over two data directories', async () => {
    const other = await runtime.create(specOf())
    await using elsewhere = await openNamespaceRuntime({ ...options, instancesDir: `${dir}/elsewhere` })
    const third = await elsewhere.create(specOf())
    const bases = [
      recordFile.read(`${options.instancesDir}/${instance.id}`)?.uidBase,
      recordFile.read(`${options.instancesDir}/${other.id}`)?.uidBase,
      recordFile.read(`${dir}/elsewhere/${third.id}`)?.uidBase,
    ]
    expect(new Set(bases).size).toBe(3)
    const { guest } = other.handle.state as { guest: { pid: number } }
    const uids = /^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${guest.pid}/status`, 'utf8'))?.[1]
    expect(Number(uids)).toBe(bases[1] as number)
    expect(bases[1]).toBeGreaterThanOrEqual(0x4000_0000)
    await Promise.all([runtime.destroy(other.id), elsewhere.destroy(third.id)])
  })

  test('destroying takes away directory, groups and processes', async () => {
    const doomed = await runtime.create(specOf())
    await shell('sleep 100 & sleep 100 & echo', doomed)
    const record = recordFile.read(`${options.instancesDir}/${doomed.id}`)
    if (!record) throw new Error('there is no record')
    const { guest, keeper } = doomed.handle.state as { guest: { pid: number }; keeper: { pid: number } }
    expect(record.groups.every((group) => existsSync(group.dir))).toBe(true)
    await runtime.destroy(doomed.id)
    expect(existsSync(`${options.instancesDir}/${doomed.id}`)).toBe(false)
    expect(record.groups.some((group) => existsSync(group.dir))).toBe(false)
    expect(existsSync(`/proc/${guest.pid}/ns`)).toBe(false)
    await eventually(() => !isRunning(keeper.pid))
  })

  test('an instance that was let go of is forgotten: the same runtime finds it anew', async () => {
    const left = await runtime.create(specOf())
    await left[Symbol.asyncDispose]()
    const found = await runtime.recover(left.handle)
    if (!found) throw new Error('it is gone')
    expect((await shell('echo here', found)).text).toBe('here\n')
    await found[Symbol.asyncDispose]()
    await runtime.destroy(found.id)
    expect(existsSync(`${options.instancesDir}/${found.id}`)).toBe(false)
  })

  test('what a killed platform left is found and destroyed by the next', async () => {
    const orphan = await runtime.create(specOf())
    await runtime[Symbol.asyncDispose]()
    runtime = await openNamespaceRuntime(options)
    const found = await runtime.recover(instance.handle)
    if (!found) throw new Error('the instance is gone')
    instance = found
    expect(await runtime.list()).toContain(orphan.id)
    const { guest } = orphan.handle.state as { guest: { pid: number } }
    await runtime.destroy(orphan.id)
    expect(existsSync(`/proc/${guest.pid}/ns`)).toBe(false)
    expect(await runtime.list()).not.toContain(orphan.id)
  })

  test('instances of a platform that no other comes after end with it, however it ends', async () => {
    const spec = specOf()
    const script = `
      const [{ openNamespaceRuntime }, { systemClock }, { silentLogger }] = await Promise.all(
        ['${import.meta.dir}/index.ts', '${import.meta.dir}/../../lib/clock.ts', '${import.meta.dir}/../../lib/log.ts'].map((path) => import(path)),
      )
      const { options, spec } = JSON.parse(process.argv.at(-1))
      const runtime = await openNamespaceRuntime({ ...options, clock: systemClock, log: silentLogger, temporary: true })
      const { handle } = await runtime.create(spec)
      console.log(JSON.stringify(handle.state))
      await new Promise(() => setInterval(() => {}, 1000))`
    const { helperPath } = options
    const own = { instancesDir: `${dir}/temporary`, helperPath }
    const child = Bun.spawn([process.execPath, '-e', script, JSON.stringify({ options: own, spec })], {
      stdout: 'pipe',
      stderr: 'inherit',
    })
    let said = ''
    for await (const chunk of child.stdout) {
      said += Buffer.from(chunk).toString()
      if (said.includes('\n')) break
    }
    const { guest, keeper } = JSON.parse(said) as Record<'guest' | 'keeper', { pid: number }>
    expect([isRunning(guest.pid), isRunning(keeper.pid)]).toEqual([true, true])
    child.kill('SIGKILL')
    await eventually(() => !isRunning(guest.pid) && !isRunning(keeper.pid))
    const next = await openNamespaceRuntime({ ...options, ...own })
    await next.destroy(spec.id)
    await next[Symbol.asyncDispose]()
  })

  test('an instance ends whose directory was removed while no platform was there', async () => {
    const own = { ...options, instancesDir: `${dir}/removed` }
    const first = await openNamespaceRuntime(own)
    const spec = specOf()
    const { handle } = await first.create(spec)
    const { guest, keeper } = handle.state as Record<'guest' | 'keeper', { pid: number }>
    await first[Symbol.asyncDispose]()
    expect([isRunning(guest.pid), isRunning(keeper.pid)]).toEqual([true, true])
    rmSync(`${own.instancesDir}/${spec.id}`, { recursive: true })
    await eventually(() => !isRunning(guest.pid) && !isRunning(keeper.pid))
    const next = await openNamespaceRuntime(own)
    await next.destroy(spec.id)
    await next[Symbol.asyncDispose]()
  })

  test('half an instance, as a crash in the middle of creating leaves, is destroyed', async () => {
    const id = specOf().id
    const halfDir = `${options.instancesDir}/${id}`
    mkdirSync(halfDir)
    expect(await runtime.list()).toContain(id)
    await runtime.destroy(id)
    expect(await runtime.list()).not.toContain(id)
    expect(existsSync(halfDir)).toBe(false)
  })

  test('what a crash left of a trial is gone after the next start', async () => {
    const instancesDir = `${dir}/after-crash`
    mkdirSync(`${instancesDir}/.layer-abcdef`, { recursive: true })
    await using opened = await openNamespaceRuntime({ ...options, instancesDir })
    expect(opened.name).toBe('namespace')
    expect(readdirSync(instancesDir)).toEqual([])
  })

  test('output of ended processes is kept over a restart, until it is forgotten', async () => {
    const spec = specOf()
    const first = await runtime.create(spec)
    const { id } = await shell('echo before', first)
    await first.stop()
    const second = await runtime.restart(spec)
    const { processes } = second.guest
    expect(await processes.list()).toEqual([])
    const records = (await Array.fromAsync(processes.output(id, { follow: true }))).flat()
    expect(records.map(({ kind, data }) => [kind, Buffer.from(data).toString()])).toEqual([
      ['stdout', 'before\n'],
    ])
    await processes.forget(id)
    expect(readdirSync(`${options.instancesDir}/${spec.id}/log`)).toEqual([])
    const code = await Array.fromAsync(processes.output(id)).catch((error) => error.code)
    expect(code).toBe('not_found')
    await runtime.destroy(spec.id)
  })

  test('output of all processes together is bounded, and the oldest goes first', async () => {
    const chatty = await runtime.create(specOf({ memoryMb: 1024 }))
    const logDir = `${options.instancesDir}/${chatty.id}/log`
    const bytesOf = (id: number) =>
      readdirSync(`${logDir}/${id}`).reduce((sum, name) => sum + statSync(`${logDir}/${id}/${name}`).size, 0)
    const ids: number[] = []
    for (let at = 0; at < 10; at++) ids.push((await shell('head -c 33000000 /dev/zero', chatty, false)).id)
    const sizes = ids.map(bytesOf)
    const total = sizes.reduce((sum, bytes) => sum + bytes, 0)
    expect(total).toBeLessThanOrEqual(256 * 1024 * 1024)
    expect(total).toBeGreaterThan(200 * 1024 * 1024)
    expect(sizes[0]).toBe(0)
    expect(sizes.at(-1)).toBeGreaterThan(24 * 1024 * 1024)
    await runtime.destroy(chatty.id)
  })

  test('where programs have used up all processes, files and new programs still work', async () => {
    const crowded = await runtime.create(specOf())
    const argv = ['python3', '-c', 'import os, time\nwhile True:\n  if os.fork() == 0: time.sleep(100)']
    const id = nextProcessId++
    await crowded.guest.processes.spawn({ id, argv, env, workingDir: '/', stdin: 'null' })
    const { exitCode } = await crowded.guest.processes.wait(id, AbortSignal.timeout(100_000))
    expect(exitCode).toBe(1)
    expect((await crowded.stats()).processes).toBeLessThanOrEqual(48)
    await crowded.guest.files.write('/blaxel/note', Buffer.from('written'))
    expect((await shell('read -r note < /blaxel/note; echo $note; kill -9 -1', crowded)).text).toBe(
      'written\n',
    )
    // Those that were killed count until they have ended.
    const deadline = Date.now() + 60_000
    let counted = await shell('ls / | wc -l', crowded)
    while (counted.exitCode !== 0 && Date.now() < deadline) counted = await shell('ls / | wc -l', crowded)
    expect(counted.exitCode).toBe(0)
    await runtime.destroy(crowded.id)
  })

  test('listeners of programs that nobody may look into are theirs: they gave up their user, or are not dumped', async () => {
    const box = await runtime.create(specOf())
    const opened = async (code: string) => {
      const id = nextProcessId++
      const program = `import os, socket, time\n${code}\nprint('open', flush=True)\ntime.sleep(1000)`
      const argv = ['python3', '-c', program]
      await box.guest.processes.spawn({ id, argv, env, workingDir: '/', stdin: 'null' })
      const gone = new AbortController()
      for await (const _ of box.guest.processes.output(id, { follow: true, signal: gone.signal })) break
      gone.abort()
      return id
    }
    const listen = (at: number) => `s${at} = socket.create_server(('0.0.0.0', ${at}))`
    const asUser = 'os.setgid(1000)\nos.setuid(1000)'
    const dropped = await opened([listen(3001), asUser, listen(3002)].join('\n'))
    const other = await opened(listen(3003))
    const undumped = await opened(`import ctypes\nctypes.CDLL(None).prctl(4, 0)\n${listen(3004)}`)
    const portsOf = async (id: number) => {
      const { sockets } = await box.guest.processes.descent(id)
      return sockets.map(({ localPort, state }) => `${localPort} ${state}`).sort()
    }
    expect(await portsOf(other)).toEqual(['3003 LISTEN'])
    expect(await portsOf(dropped)).toContainValues(['3001 LISTEN', '3002 LISTEN'])
    expect(await portsOf(dropped)).not.toContain('3003 LISTEN')
    expect(await portsOf(undumped)).toContain('3004 LISTEN')
    expect(await portsOf(undumped)).not.toContain('3002 LISTEN')
    await runtime.destroy(box.id)
  })

  test('/dev/shm takes half of the memory at most, so that filling it ends nothing', async () => {
    const filled = await runtime.create(specOf())
    const { text } = await shell(
      'dd if=/dev/zero of=/dev/shm/fill bs=1M count=100 2>&1; stat -c %s /dev/shm/fill',
      filled,
    )
    expect(text).toContain('No space left on device')
    expect(text).toEndWith(`${64 * 1024 * 1024}\n`)
    expect((await shell('rm /dev/shm/fill; echo alive', filled)).text).toBe('alive\n')
    await runtime.destroy(filled.id)
  })

  test('programs have the usual priority, process 1 a higher one', async () => {
    const other = await runtime.create(specOf())
    expect((await shell('nice; cut -d" " -f19 /proc/1/stat', other)).text).toBe('0\n-20\n')
    await runtime.destroy(other.id)
  })

  test('a create that the helper refuses leaves nothing', async () => {
    const spec = specOf({ image: { ...image, layers: [`${dir}/no-such-layer`] } })
    const code = await runtime.create(spec).catch((error) => error.code)
    expect(code).toBe('unavailable')
    expect(await runtime.list()).not.toContain(spec.id)
  })

  test('the end of process 1 from outside is told', async () => {
    const victim = await runtime.create(specOf())
    const { guest } = victim.handle.state as { guest: { pid: number } }
    process.kill(guest.pid, 'SIGKILL')
    expect(await victim.exited).toEqual({ reason: 'killed', exitCode: null, signal: 9 })
    expect(await runtime.recover(victim.handle)).toBeNull()
    await runtime.destroy(victim.id)
  })

  test('an instance whose keeper is gone is lost, and cleaned up', async () => {
    const victim = await runtime.create(specOf())
    const { keeper } = victim.handle.state as { keeper: { pid: number } }
    process.kill(keeper.pid, 'SIGKILL')
    expect((await victim.exited).reason).toBe('lost')
    await runtime.destroy(victim.id)
    expect(await runtime.list()).not.toContain(victim.id)
  })

  test('a handle of another boot leads to nothing', async () => {
    const handle = { ...instance.handle, id: specOf().id }
    const state = { ...(instance.handle.state as object), bootId: 'another' }
    expect(await runtime.recover({ ...handle, state })).toBeNull()
  })

  test('links in an instance are never followed when it is destroyed', async () => {
    const outside = `${dir}/outside`
    mkdirSync(outside)
    const victim = await runtime.create(specOf())
    await shell(`ln -s ${outside} /blaxel/link; mkdir -p /blaxel/a/b; ln -s / /blaxel/a/b/root`, victim)
    await runtime.destroy(victim.id)
    expect(statSync(outside).isDirectory()).toBe(true)
  })

  test('a spec that cannot be honoured names what is wrong', async () => {
    const tries: [Partial<InstanceSpec>, string][] = [
      [{ hostname: 'not a name' }, 'hostname'],
      [{ memoryMb: 1 }, 'memoryMb'],
      [{ storageMb: 0 }, 'storageMb'],
      [{ pidsMax: 1.5 }, 'pidsMax'],
      [{ workingDir: 'relative' }, 'workingDir'],
      [{ image: { ...image, layers: ['/a/../b'] } }, 'image'],
    ]
    for (const [more, field] of tries) {
      const error = await runtime.create(specOf(more)).catch((error) => error)
      expect([error.code, error.message.split(' ')[0]]).toEqual(['bad_request', field])
    }
  })
})

function isRunning(pid: number): boolean {
  try {
    return !/^State:\t[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}
