import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { systemClock } from '../../lib/clock.ts'
import { randomText } from '../../lib/ids.ts'
import { openCgroupHost } from './cgroup-hosts.ts'
import { Cgroups, type InstanceCgroup } from './cgroups.ts'

const name = `hutch-test-${randomText(8)}`
const host = new Cgroups(name, systemClock)
const limited = host.limit('memory') !== 'none' && host.limit('pids') !== 'none'
const describeHost = limited ? describe : describe.skip

describeHost(`control groups of this host${limited ? '' : ` (skipped: ${host.notes[0]?.detail})`}`, () => {
  const cgroups = new Cgroups(name, systemClock)
  const limits = { memoryMb: 64, pidsMax: 20 }
  afterEach(async () => {
    for (const id of cgroups.list()) {
      await cgroups.find(id).kill()
      await cgroups.find(id).remove()
    }
    cgroups.close()
  })
  beforeEach(() => {
    // The platform's own groups go when nothing is in them: make them again.
    openCgroupHost(name)
  })

  /** A process that stays in every group of the instance. */
  async function inhabit(id: string) {
    const group = cgroups.find(id)
    const child = Bun.spawn(['sh', '-c', 'read go; while :; do sleep 60 & wait; done'], { stdin: 'pipe' })
    for (const { dir } of group.parts) writeFileSync(`${dir}/cgroup.procs`, String(child.pid))
    child.stdin.write('go\n')
    await child.stdin.flush()
    return child
  }

  test('are made with their limits, listed, and removed', async () => {
    const group = cgroups.create('instance0001', limits)
    expect(cgroups.list()).toEqual(['instance0001'])
    const values = group.dirs.flatMap((dir) =>
      ['memory.limit_in_bytes', 'memory.max', 'pids.max', 'cpu.cfs_quota_us', 'cpu.max']
        .filter((file) => existsSync(`${dir}/${file}`))
        .map((file) => readFileSync(`${dir}/${file}`, 'utf8').trim().split(' ')[0]),
    )
    expect(values).toContain(String(64 * 1024 * 1024))
    expect(values).toContain('20')
    // What programs may use, and with what process 1 needs to answer.
    expect(values).toContain('3125')
    expect(values.filter((value) => ['25000', 'max'].includes(value ?? '')).length).toBeGreaterThan(0)
    const sockets = group.dirs
      .map((dir) => `${dir}/memory.kmem.tcp.limit_in_bytes`)
      .find((file) => existsSync(file))
    if (sockets) expect(readFileSync(sockets, 'utf8').trim()).toBe(String(16 * 1024 * 1024))
    // Process 1 has room beside the programs, however much of theirs they take.
    const whole = group.parts
      .map(({ dir }) => `${dir}/memory.limit_in_bytes`)
      .find((file) => existsSync(file))
    if (group.programsMemoryFile) {
      expect(readFileSync(whole ?? '', 'utf8').trim()).toBe(String(128 * 1024 * 1024))
      expect(existsSync(group.programsMemoryStatFile ?? '')).toBe(true)
    }
    await group.remove()
    await group.remove()
    expect(cgroups.list()).toEqual([])
  })

  test('are known to who made them, and looked up where they are found again', async () => {
    const filesOf = (group: InstanceCgroup) => [
      group.programsFile,
      group.programsStatFile,
      group.programsMemoryFile,
      group.programsMemoryStatFile,
    ]
    const group = cgroups.create('instance0005', limits)
    const found = filesOf(cgroups.find('instance0005'))
    for (const file of found) if (file !== null) expect(existsSync(file)).toBe(true)
    // The memory that sockets hold is limited where programs are, and only there.
    const socketLimits = group.dirs
      .map((dir) => `${dir}/memory.kmem.tcp.limit_in_bytes`)
      .filter((file) => existsSync(file))
      .map((file) => readFileSync(file, 'utf8').trim())
    expect(socketLimits.filter((limit) => Number(limit) < 1024 ** 3).length).toBe(
      socketLimits.length > 0 ? 1 : 0,
    )
    await group.remove()
    expect(filesOf(group)).toEqual(found)
    expect(filesOf(cgroups.find('instance0005'))).toEqual([null, null, null, null])
  })

  test('end what is inside, frozen or not', async () => {
    for (const frozen of [false, true]) {
      const group = cgroups.create('instance0002', limits)
      const child = await inhabit('instance0002')
      if (frozen && group.freezes) await group.freeze()
      await group.kill()
      await child.exited
      expect(child.signalCode).toBe('SIGKILL')
      await group.remove()
    }
  })

  test('have more memory for as long as others work on what is inside', async () => {
    const group = cgroups.create('instance0006', limits)
    const files = () =>
      group.dirs
        .flatMap((dir) => [`${dir}/memory.limit_in_bytes`, `${dir}/memory.max`])
        .filter((file) => existsSync(file))
        .map((file) => Number(readFileSync(file, 'utf8')))
    const before = files()
    const error = await group
      .withSpare(limits.memoryMb, async () => {
        for (const [index, bytes] of files().entries()) expect(bytes).toBeGreaterThan(before[index] ?? 0)
        throw new Error('it went wrong')
      })
      .catch((failure) => failure)
    expect(String(error)).toContain('it went wrong')
    expect(files()).toEqual(before)
    await group.remove()
  })

  test('let what is to end use the whole processor', async () => {
    const group = cgroups.create('instance0004', limits)
    const quota = () =>
      group.dirs
        .flatMap((dir) => [`${dir}/cpu.cfs_quota_us`, `${dir}/cpu.max`])
        .filter((file) => existsSync(file))
        .map((file) => readFileSync(file, 'utf8').trim().split(' ')[0] ?? '')
    // Of programs, in version 1 of process 1, of the whole.
    expect([
      ['3125', '25000', '-1'],
      ['3125', 'max'],
    ]).toContainEqual(quota())
    await group.kill()
    expect(quota().filter((value) => value !== '-1' && value !== 'max')).toEqual([])
    group.setCpuLimit(2048)
    expect([
      ['100000', '100000', '-1'],
      ['100000', 'max'],
    ]).toContainEqual(quota())
    await group.remove()
  })

  test('count what is inside', async () => {
    const group = cgroups.create('instance0003', limits)
    await inhabit('instance0003')
    // Memory counts from what is taken after the move.
    const deadline = performance.now() + 60_000
    while (!group.stats().memoryBytes && performance.now() < deadline) await Bun.sleep(2)
    expect(group.stats().memoryBytes).toBeGreaterThan(0)
    expect(group.stats().processes).toBeGreaterThan(0)
    expect(group.oomKills()).toBe(0)
  })
})

describe('the place for control groups', () => {
  let root: string
  beforeEach(() => {
    root = mkdtempSync(`${tmpdir()}/hutch-cgroups-`)
  })
  afterEach(() => rmSync(root, { recursive: true, force: true }))

  /** A group of a v2 hierarchy, as files. */
  function group(path: string, controllers: string, enabled: string) {
    mkdirSync(`${root}${path}`, { recursive: true })
    writeFileSync(`${root}${path}/cgroup.controllers`, controllers)
    writeFileSync(`${root}${path}/cgroup.subtree_control`, enabled)
    writeFileSync(`${root}${path}/cgroup.procs`, '')
  }
  const v2 = (mountRoot = '/') => `30 1 0:27 ${mountRoot} ${root} rw,nosuid - cgroup2 cgroup2 rw\n`
  const all = 'cpu memory pids'

  test('is the own group where its controllers can be passed on', () => {
    group('', all, all)
    group('/service', all, all)
    group('/service/hutch', all, all)
    const host = openCgroupHost('hutch', { mountinfo: v2(), own: '0::/service\n' })
    expect(host.layout).toBe('v2')
    expect(host.hierarchies).toMatchObject([{ version: 2, dir: `${root}/service/hutch` }])
    expect(host.hierarchies[0]?.controllers).toEqual(['memory', 'cpu', 'pids'])
    expect(host.notes[0]?.ok).toBe(true)
  })

  test('is the nearest ancestor that has the controllers when the own group has not', () => {
    group('', all, all)
    group('/hutch', all, all)
    group('/user', '', '')
    group('/user/session', '', '')
    const host = openCgroupHost('hutch', { mountinfo: v2(), own: '0::/user/session\n' })
    expect(host.hierarchies).toMatchObject([{ dir: `${root}/hutch` }])
  })

  test('is found below the root of a mount that shows only a part', () => {
    group('', all, all)
    group('/hutch', all, all)
    const host = openCgroupHost('hutch', { mountinfo: v2('/docker/abc'), own: '0::/docker/abc\n' })
    expect(host.hierarchies).toMatchObject([{ dir: `${root}/hutch` }])
  })

  test('is several where controllers are on the old hierarchies', () => {
    mkdirSync(`${root}/v1/memory/box`, { recursive: true })
    mkdirSync(`${root}/v1/pids`, { recursive: true })
    group('', 'hugetlb', '')
    group('/hutch', 'hugetlb', '')
    const mountinfo = `${v2()}31 1 0:28 / ${root}/v1/memory rw - cgroup cgroup rw,memory
32 1 0:29 / ${root}/v1/pids rw - cgroup cgroup rw,pids\n`
    const host = openCgroupHost('hutch', { mountinfo, own: '2:memory:/box\n1:pids:/\n0::/\n' })
    expect(host.layout).toBe('hybrid')
    expect(host.hierarchies.map(({ dir, controllers }) => [dir.slice(root.length), controllers])).toEqual([
      ['/hutch', []],
      ['/v1/memory/box/hutch', ['memory']],
      ['/v1/pids/hutch', ['pids']],
    ])
    expect(host.notes[0]).toMatchObject({ ok: false, detail: expect.stringContaining('cpu') })
  })

  test('may be nowhere, which is said with what to do', () => {
    const host = openCgroupHost('hutch', { mountinfo: '', own: '' })
    expect(host).toMatchObject({ layout: 'none', hierarchies: [] })
    expect(host.notes[0]).toMatchObject({
      ok: false,
      detail: 'no limit for memory, cpu; processes only limited by rlimit',
    })
    expect(host.notes[0]?.remedy).toBeString()
  })
})

host.close()
