import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../../lib/clock.ts'
import { randomText } from '../../../lib/ids.ts'
import { silentLogger } from '../../../lib/log.ts'
import { Network } from '../../../network/index.ts'
import type { Instance, InstanceSpec, RootMount, Runtime } from '../../../spec/runtime.ts'
import { openNamespaceRuntime, probeNamespace } from '../index.ts'
import {
  control,
  hostImage,
  instancesDir,
  makeUsr,
  mountsOfUsr,
  options,
  osErrno,
  probePath,
  secret,
  secretPath,
  usrPath,
  usrSecrets,
  work,
} from './test-host.ts'
import { othersOutOfReach } from './test-others.ts'

/** What the resolver says to every name. */
let rebound: string[] = []
const network = new Network({
  allow: [],
  registryNames: [],
  dir: join(work, 'network'),
  clock: systemClock,
  log: silentLogger,
  resolver: { addresses: async () => rebound, records: async () => [] },
})
network.useDoors({ open: () => null, hasPlatform: () => false, close: () => {} })
const state = await probeNamespace(options)
const asRoot = process.getuid?.() === 0
const possible = state.usable && asRoot
if (!possible)
  console.log(`skipped: escape suite: ${state.usable ? 'needs root for its controls' : state.reason}`)

/** HUTCH_TEST_GOES_ON=1: from a sandbox whose programs were in another before, where CRIU is. */
const goesOn = process.env.HUTCH_TEST_GOES_ON === '1'

let runtime: Runtime
let sandbox: Instance
let neighbour: Instance
let nextProcess = 1

interface Outcome {
  output: string
  exitCode: number | null
  signal: number | null
}

async function inside(instance: Instance, ...argv: string[]): Promise<Outcome> {
  const id = nextProcess++
  await instance.guest.processes.spawn({
    id,
    argv,
    env: { PATH: '/usr/local/bin:/usr/bin:/bin', HOME: '/root' },
    workingDir: '/tmp',
    stdin: 'null',
  })
  const ended = await instance.guest.processes.wait(id, AbortSignal.timeout(60_000))
  let output = ''
  const decoder = new TextDecoder()
  for await (const records of instance.guest.processes.output(id)) {
    for (const record of records) output += decoder.decode(record.data, { stream: true })
  }
  return { output, exitCode: ended.exitCode, signal: ended.signal }
}

const shell = (instance: Instance, script: string) => inside(instance, '/bin/sh', '-c', script)
const probe = (...words: string[]) => inside(sandbox, '/tmp/probe', ...words)

async function specOf(hostname: string, mounts: RootMount[]): Promise<InstanceSpec> {
  const image = await hostImage('live').resolve()
  return {
    id: `escape${randomText(14)}`,
    hostname,
    image: { ...image, mounts: [...image.mounts, ...mounts] },
    memoryMb: 512,
    storageMb: 128,
    pidsMax: 128,
    env: {},
    workingDir: '/blaxel',
  }
}

async function startInstance(hostname: string, mounts: RootMount[] = []): Promise<Instance> {
  const instance = await runtime.create(await specOf(hostname, mounts))
  await instance.guest.files.write('/tmp/probe', new Uint8Array(await Bun.file(probePath).arrayBuffer()), {
    mode: 0o755,
  })
  return instance
}

/** Another in its place, in which a program of it goes on. */
async function goneOn(instance: Instance, mounts: RootMount[]): Promise<Instance> {
  const { snapshots } = runtime
  const snapshotId = `escape${randomText(14)}`
  await inside(instance, '/bin/sh', '-c', 'sleep 100000 & exit 0')
  await instance.freeze?.()
  expect(await snapshots?.capture(instance.id, snapshotId)).toEqual({ kept: true })
  await snapshots?.complete(snapshotId)
  await runtime.destroy(instance.id)
  const spec = await specOf('attacker', mounts)
  const other = await runtime.create({ ...spec, snapshotId, withMemory: true })
  expect(other.memory).toEqual({ kept: true })
  await snapshots?.remove(snapshotId)
  return other
}

beforeAll(async () => {
  if (!possible) return
  const built = Bun.spawnSync(['cc', '-static', '-O1', '-o', probePath, join(import.meta.dir, 'probe.c')])
  if (built.exitCode !== 0) throw new Error(`the probe does not build: ${built.stderr.toString()}`)
  writeFileSync(secretPath, secret)
  runtime = await openNamespaceRuntime({ ...options, egress: network })
  makeUsr()
  const mounts = await mountsOfUsr()
  sandbox = await startInstance('attacker', mounts)
  if (goesOn) sandbox = await goneOn(sandbox, mounts)
  neighbour = await startInstance('neighbour')
  await neighbour.guest.files.write('/root/private', new TextEncoder().encode(secret))
}, 120_000)

afterAll(async () => {
  if (possible) {
    for (const instance of [sandbox, neighbour]) {
      await instance?.[Symbol.asyncDispose]()
      if (instance) await runtime.destroy(instance.id)
    }
    await runtime[Symbol.asyncDispose]()
  }
  network.close()
  rmSync(work, { recursive: true, force: true })
}, 120_000)

describe.skipIf(!possible)(
  'system calls that reach beyond a sandbox are refused inside and work outside',
  () => {
    test.each([
      'mount',
      'remount',
      'umount',
      'fsopen',
      'open-tree',
      'mknod-block',
      'mknod-memory',
      'unshare-user',
      'unshare-mount',
      'unshare-net',
      'clone-user',
      'clone-mount',
      'clone3-user',
      'vm-write',
      'steal-descriptor',
      'add-key',
      'keyctl',
      'bpf',
      'perf',
      'userfaultfd',
      'io-uring',
      'packet-socket',
      'vsock',
      'hostname',
      'kernel-log',
      'set-clock',
    ])('%s', async (attempt) => {
      expect(control(attempt)).toBe('done')
      const outcome = await probe(attempt)
      expect(outcome.exitCode).toBe(1)
      expect(outcome.output).toStartWith('errno ')
    })

    test('opening a file by its handle', async () => {
      // On a file system that gives out handles at all, which an overlay does not.
      const path = `/dev/shm/hutch-probe-${randomText(8)}`
      writeFileSync(path, '')
      expect(control('by-handle', path)).toBe('done')
      rmSync(path)
      await shell(sandbox, `touch ${path}`)
      expect((await probe('by-handle', path)).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
    })

    test('entering a namespace', async () => {
      expect(control('setns', '/proc/self/ns/net')).toBe('done')
      expect((await probe('setns', '/proc/self/ns/net')).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
    })

    test('pivoting the root', async () => {
      expect((await probe('pivot')).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
    })
  },
)

describe.skipIf(!possible)('files of the host stay out of reach', () => {
  const ways = (path: string) => [
    path,
    `/proc/1/root${path}`,
    `/proc/1/cwd${path}`,
    `/proc/self/root/../../..${path}`,
    `/../../../..${path}`,
    `/proc/self/cwd/../../../..${path}`,
  ]

  test('by path, by .. and through /proc', async () => {
    expect(control('read', secretPath)).toBe('done')
    for (const way of ways(secretPath)) expect((await probe('read', way)).output).toStartWith('errno ')
  })

  test('those in its /usr that not everybody may read, nor what is in its /usr/local', async () => {
    for (const path of usrSecrets) expect(control('read', join(usrPath, path))).toBe('done')
    await shell(sandbox, 'mv /srv/renamed/share /srv/renamed/moved; rm -r /srv/live/share/deep/directory')
    for (const place of ['/srv/live', '/srv/frozen']) {
      expect((await probe('read', `${place}/share/deep/open`)).output.trim()).toBe('done')
      for (const path of usrSecrets) {
        expect((await probe('read', `${place}/${path}`)).output.trim()).toBe(`errno ${osErrno('ENOENT')}`)
      }
      expect((await shell(sandbox, `cd ${place}/local && echo * && touch bin/mine && ls bin`)).output).toBe(
        'bin etc games include lib man sbin share src\nmine\n',
      )
    }
    expect((await probe('read', '/srv/renamed/moved/deep/open')).output.trim()).toBe('done')
    const found = await shell(sandbox, `mkdir /srv/live/share/directory; grep -rl ${secret} /srv; echo none`)
    expect(found.output).toBe('none\n')
    expect((await shell(sandbox, 'ls /srv/renamed/moved; ls -A /usr/local/bin')).output).toBe('deep\n')
  })

  test('by climbing out of a chroot', async () => {
    expect(control('climb', secretPath)).toBe('done')
    rmSync('/tmp/below', { recursive: true, force: true })
    expect((await probe('climb', secretPath)).output).toStartWith('errno ')
  })

  test('by a hard link', async () => {
    expect(control('link', secretPath)).toBe('done')
    rmSync('/tmp/probe-link', { force: true })
    expect((await probe('link', secretPath)).output).toStartWith('errno ')
  })

  test('by a symbolic link that the file API is asked to follow', async () => {
    const linkOutside = join(work, 'link-outside')
    symlinkSync(secretPath, linkOutside)
    expect(await Bun.file(linkOutside).text()).toBe(secret)
    await shell(sandbox, `ln -s ${secretPath} /tmp/link; ln -s / /tmp/rootlink`)
    await expect(sandbox.guest.files.read('/tmp/link')).rejects.toMatchObject({ code: 'not_found' })
    await expect(sandbox.guest.files.read(`/tmp/rootlink${secretPath}`)).rejects.toMatchObject({
      code: 'not_found',
    })
  })

  test('a write through a link of the sandbox lands in the sandbox', async () => {
    await shell(sandbox, `mkdir -p ${work} && ln -sf ${secretPath} /tmp/write-link`)
    await sandbox.guest.files.write('/tmp/write-link', new TextEncoder().encode('overwritten'))
    expect(await Bun.file(secretPath).text()).toBe(secret)
    await shell(sandbox, `rm -rf ${work}`)
  })

  test('the data directory is not there, and neither are its sockets', async () => {
    expect((await probe('read', instancesDir)).output.trim()).toBe(`errno ${osErrno('ENOENT')}`)
    const socket = join(instancesDir, sandbox.id, 'run', 'guest.sock')
    expect((await probe('connect-unix', socket)).output).toStartWith('errno ')
  })

  test('disks of the host have no device inside, and the memory of the machine neither', async () => {
    const outcome = await shell(
      sandbox,
      'ls /dev; cat /dev/mem /dev/kmsg /dev/sda /dev/vda /dev/loop0 2>&1 | head -c 100',
    )
    expect(outcome.output).not.toMatch(/^(mem|kmem|kmsg|port|sd.|vd.|loop\d*|fuse|kvm)$/m)
  })
})

describe.skipIf(!possible)('process 1 and the kernel settings are closed', () => {
  test.each(['/proc/1/mem', '/proc/1/environ', '/proc/1/maps', '/proc/1/auxv', '/proc/kcore', '/proc/kmsg'])(
    'reading %s',
    async (path) => {
      const outcome = await probe('read', path)
      expect(outcome.output).toMatch(/^errno |^done$/m)
      const bytes = await shell(sandbox, `head -c 64 ${path} 2>/dev/null | wc -c`)
      expect(bytes.output.trim()).toBe('0')
    },
  )

  test('its descriptors', async () => {
    expect(control('list-fds', '/proc/self/fd')).toBe('done')
    expect((await probe('list-fds', '/proc/1/fd')).output).toStartWith('errno ')
    expect((await probe('readlink', '/proc/1/exe')).output).toStartWith('errno ')
  })

  test('tracing it', async () => {
    expect(control('trace-child')).toBe('done')
    expect((await probe('trace', '1')).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
  })

  test('changing its limits', async () => {
    expect(control('limit-init')).toBe('done')
    expect((await probe('limit-init')).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
  })

  test('its arguments do not tell where on the host it is', async () => {
    const { output } = await shell(sandbox, 'tr "\\0" " " < /proc/1/cmdline')
    expect(output).toStartWith('hutch-helper ')
    expect(output).not.toContain('/')
  })

  test('its workers, which act for the platform with the ids of the sandbox', async () => {
    const { promise: finished, resolve: finish } = Promise.withResolvers<void>()
    const slow = new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(new Uint8Array(100_000)),
      pull: async (controller) => {
        await finished
        controller.close()
      },
    })
    const written = sandbox.guest.files.write('/tmp/slow', slow)
    const find =
      'for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = hutch-guest ] && basename $p; done; true'
    const found = (await shell(sandbox, find)).output.trim().split('\n')
    const workers = found.filter((pid) => pid !== '1')
    expect(workers.length).toBeGreaterThan(0)
    for (const pid of workers) {
      expect((await probe('trace', pid)).output.trim()).toBe(`errno ${osErrno('EPERM')}`)
      expect((await probe('list-fds', `/proc/${pid}/fd`)).output).toStartWith('errno ')
      for (const file of ['root', 'cwd', 'exe', 'ns/mnt'])
        expect((await probe('readlink', `/proc/${pid}/${file}`)).output).toStartWith('errno ')
      for (const file of ['mem', 'maps', 'environ'])
        expect((await probe('read', `/proc/${pid}/${file}`)).output).toStartWith('errno ')
    }
    finish()
    expect((await written).size).toBe(100_000)
  })

  test('a signal does not end it', async () => {
    await shell(sandbox, 'kill -9 1; kill -TERM 1; kill -STOP 1')
    expect((await shell(sandbox, 'echo alive')).output).toBe('alive\n')
  })

  test.each([
    '/proc/sys/kernel/core_pattern',
    '/proc/sys/kernel/modprobe',
    '/proc/sys/vm/overcommit_memory',
    '/proc/sys/fs/suid_dumpable',
    '/proc/sysrq-trigger',
    '/proc/sys/user/max_user_namespaces',
  ])('writing %s', async (path) => {
    expect((await probe('write', path, '0')).output).toStartWith('errno ')
  })

  test('no cgroup file can be written', async () => {
    const outcome = await shell(
      sandbox,
      'find /sys -name "memory.max" -o -name "cgroup.procs" -o -name "tasks" 2>/dev/null | head',
    )
    expect(outcome.output).toBe('')
  })
})

describe.skipIf(!possible)('the platform and other sandboxes are out of reach', () =>
  othersOutOfReach({
    sandbox: () => sandbox,
    neighbour: () => neighbour,
    probe,
    shell,
    resolvesTo(addresses) {
      rebound = addresses
    },
  }),
)

describe.skipIf(!possible)('greed stays inside while a neighbour and the platform go on writing', () => {
  async function neighbourWorks(): Promise<void> {
    const body = new TextEncoder().encode(randomText(1000))
    await neighbour.guest.files.write('/tmp/still-here', body)
    const { body: back } = await neighbour.guest.files.read('/tmp/still-here')
    expect(await new Response(back).text()).toBe(new TextDecoder().decode(body))
    expect((await shell(neighbour, 'echo works')).output).toBe('works\n')
    await Bun.write(join(work, 'platform-file'), body)
  }

  test('a fork bomb', async () => {
    const bomb = shell(
      sandbox,
      'i=0; while [ $i -lt 500 ]; do sleep 30 >/dev/null 2>&1 & i=$((i+1)); done 2>&1 | tail -c 300; true',
    )
    await neighbourWorks()
    const outcome = await bomb
    expect(outcome.output).toMatch(/fork|resource|Resource/i)
    expect((await sandbox.stats()).processes).toBeLessThanOrEqual(128)
    await neighbourWorks()
    await killAllInside()
  }, 120_000)

  test('a memory bomb', async () => {
    const bomb = shell(
      sandbox,
      'python3 -c "b=bytearray(1<<30)\nfor i in range(0,len(b),4096): b[i]=1" 2>&1 || tail /dev/zero',
    )
    await neighbourWorks()
    const outcome = await bomb
    expect(outcome.signal === constants.signals.SIGKILL || (outcome.exitCode ?? 0) !== 0).toBe(true)
    await neighbourWorks()
    expect((await shell(sandbox, 'echo back')).output).toBe('back\n')
  }, 120_000)

  test('a full disk', async () => {
    const fill = shell(sandbox, 'dd if=/dev/zero of=/tmp/fill bs=1M count=4096 2>&1; sync')
    await neighbourWorks()
    const outcome = await fill
    expect(outcome.output).toMatch(/No space left on device|File too large|quota/i)
    await neighbourWorks()
    await shell(sandbox, 'rm -f /tmp/fill')
    expect((await shell(sandbox, 'echo back > /tmp/after && cat /tmp/after')).output).toBe('back\n')
  }, 120_000)
})

async function killAllInside(): Promise<void> {
  const running = (await sandbox.guest.processes.list()).filter((process) => process.running)
  for (const process of running) await sandbox.guest.processes.signal(process.id, 9, 'tree').catch(() => {})
  await shell(sandbox, 'kill -9 -1')
}
