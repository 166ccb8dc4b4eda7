import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../../lib/clock.ts'
import { randomText } from '../../../lib/ids.ts'
import { silentLogger } from '../../../lib/log.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import type { Instance, InstanceSpec, Runtime } from '../../../spec/runtime.ts'
import { testHelperPath, testImage } from '../../test-host.ts'
import { openNamespaceRuntime, probeNamespace } from '../index.ts'
import { NamespaceInstance } from '../instance.ts'
import { programsOf } from './programs.ts'

/** Programs that go on in other instances, with the CRIU of this host. */

setDefaultTimeout(120_000)

const dir = realpathSync(mkdtempSync(`${tmpdir()}/hutch-program-memory-`))
mkdirSync(`${dir}/image`)
const image = testImage(`${dir}/image`)
/** Beside the root of the image, so that it is there for who wants it. */
const hostile = `${dir}/image/opt/hostile`
mkdirSync(`${dir}/image/opt`)
const built = Bun.spawnSync(['cc', '-static', '-O1', '-o', hostile, join(import.meta.dir, 'hostile.c')])
const options = {
  instancesDir: `${dir}/instances`,
  helperPath: await testHelperPath(),
  log: silentLogger,
  clock: systemClock,
}
const state = await probeNamespace(options)
const note = state.notes.find(({ subject }) => subject === 'memory snapshots')
const cannotBuild = built.success ? '' : `no C program can be built: ${built.stderr.toString().slice(0, 200)}`
const why = cannotBuild
  ? cannotBuild
  : !state.usable
    ? state.reason
    : note?.ok
      ? ''
      : (note?.detail ?? 'nothing is said of memory')
if (why) console.warn(`skipped: ${why}`)
const env = { PATH: '/usr/bin:/bin' }

afterAll(() => rmSync(dir, { recursive: true, force: true }))

const describeHere = why === '' ? describe : describe.skip
describeHere(`memory of programs${why === '' ? '' : ` (skipped: ${why})`}`, () => {
  let runtime: Runtime
  const specOf = (more: Partial<InstanceSpec> = {}): InstanceSpec => ({
    id: `memory${randomText(12)}`,
    hostname: 'box-1',
    image,
    memoryMb: 256,
    storageMb: 64,
    pidsMax: 128,
    env: {},
    workingDir: '/blaxel',
    ...more,
  })
  beforeAll(async () => {
    runtime = await openNamespaceRuntime(options)
  })
  afterAll(async () => {
    for (const id of await runtime.list()) await runtime.destroy(id)
    await runtime[Symbol.asyncDispose]()
  })

  const start = (on: Instance, id: number, script: string, stdin: 'pipe' | 'null' = 'null') =>
    on.guest.processes.spawn({ id, argv: ['sh', '-c', script], env, workingDir: '/blaxel', stdin })
  const type = (on: Instance, id: number, text: string) =>
    on.guest.processes.writeStdin(id, Buffer.from(`${text}\n`))
  const said = async (on: Instance, id: number) => {
    let text = ''
    for await (const records of on.guest.processes.output(id))
      for (const { data } of records) text += Buffer.from(data).toString()
    return text
  }
  const says = (on: Instance, id: number, text: string) =>
    eventually(`process ${id} says ${JSON.stringify(text)}`, async () => (await said(on, id)) === text)
  const capture = async (instance: Instance) => {
    const id = `snapshot${randomText(12)}`
    await instance.freeze?.()
    const memory = await runtime.snapshots?.capture(instance.id, id)
    await instance.thaw?.()
    await runtime.snapshots?.complete(id)
    return { id, memory }
  }
  const create = (snapshotId: string) => runtime.create({ ...specOf(), snapshotId, withMemory: true })
  const counter = 'n=0; while read -r word; do n=$((n+1)); echo "$n $word"; done'

  test('a program goes on where it was, with its pid, its variables, its input and its output', async () => {
    const source = await runtime.create(specOf())
    const { pid } = await start(source, 1, counter, 'pipe')
    await start(source, 2, 'echo started; exit 3')
    await source.guest.processes.wait(2)
    await start(source, 3, '(setsid sh -c "while :; do sleep 1; done" &) ; exec sleep 100000')
    await eventually('a daemon runs', async () => (await source.guest.processes.descent(3)).living >= 3)
    await type(source, 1, 'before')
    await says(source, 1, '1 before\n')
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: true })
    // The one that it was taken of has not noticed.
    await type(source, 1, 'there')
    await says(source, 1, '1 before\n2 there\n')

    const copies = await Promise.all([create(id), create(id)])
    await runtime.destroy(source.id)
    for (const copy of copies) {
      expect(copy.memory).toEqual({ kept: true })
      const processes = await copy.guest.processes.list()
      expect(processes.map((each) => [each.id, each.pid, each.running, each.exitCode])).toEqual([
        [1, pid, true, null],
        [2, expect.any(Number), false, 3],
        [3, expect.any(Number), true, null],
      ])
      expect(await said(copy, 2)).toBe('started\n')
      await type(copy, 1, 'here')
      await says(copy, 1, '1 before\n2 here\n')
      // What descends from a program is known to, though nothing but its mark leads there any more.
      expect((await copy.guest.processes.descent(3)).living).toBeGreaterThanOrEqual(3)
      if (copy === copies[1]) continue
      await copy.guest.processes.signal(3, 9, 'tree')
      await eventually('the daemon is gone', async () => (await copy.guest.processes.descent(3)).living === 0)
    }
    // And from there once more.
    const [first, second] = copies
    const again = await capture(first!)
    expect(again.memory).toEqual({ kept: true })
    const third = await create(again.id)
    await type(third, 1, 'further')
    await says(third, 1, '1 before\n2 here\n3 further\n')
    await third.guest.processes.closeStdin(1)
    expect(await third.guest.processes.wait(1)).toMatchObject({ exitCode: 0, running: false })
    // New ones have pids of their own.
    const fresh = await start(third, 4, 'exit 0')
    expect(fresh.pid).not.toBe(pid)
    for (const instance of [first!, second!, third]) await runtime.destroy(instance.id)
    for (const each of [id, again.id]) await runtime.snapshots?.remove(each)
  })

  test('what goes on has no more power than what was started, and the same filter', async () => {
    const source = await runtime.create(specOf())
    const look =
      'read -r word; grep -E "^(Cap|NoNewPrivs|Seccomp|Groups)" /proc/self/status; cat /proc/self/limits'
    await start(source, 1, look, 'pipe')
    const { id } = await capture(source)
    const copy = await create(id)
    for (const each of [source, copy]) {
      await type(each, 1, 'go')
      await each.guest.processes.wait(1)
    }
    expect(await said(copy, 1)).toBe(await said(source, 1))
    // Nor has anything inside a way to give processes their numbers.
    await start(copy, 2, 'echo 5 > /proc/sys/kernel/ns_last_pid')
    expect((await copy.guest.processes.wait(2)).exitCode).not.toBe(0)
    for (const each of [source, copy]) await runtime.destroy(each.id)
    await runtime.snapshots?.remove(id)
  })

  test('where programs share what was not kept together, there are files, and it is said why', async () => {
    const source = await runtime.create(specOf())
    await start(source, 1, '{ sleep 100000 | sleep 100000; } & exit 0')
    await source.guest.processes.wait(1)
    await start(source, 2, counter, 'pipe')
    await source.guest.files.write('/root/file', Buffer.from('kept'))
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: false, reason: expect.stringContaining('shares a pipe with one') })
    await type(source, 2, 'still')
    await says(source, 2, '1 still\n')
    const copy = await create(id)
    expect(copy.memory).toEqual({ kept: false, reason: 'it has files only' })
    expect((await copy.guest.files.stat('/root/file')).size).toBe(4)
    expect(await copy.guest.processes.list()).toEqual([])
    for (const each of [source, copy]) await runtime.destroy(each.id)
    await runtime.snapshots?.remove(id)
  })

  test('what is in memory without being of a program is not left out unsaid', async () => {
    const source = await runtime.create(specOf())
    await start(source, 1, counter, 'pipe')
    await source.guest.files.write('/dev/shm/shared', Buffer.from('shared'))
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: false, reason: 'there are files in /dev/shm' })
    await source.guest.files.remove('/dev/shm/shared')
    const without = await capture(source)
    expect(without.memory).toEqual({ kept: true })
    await runtime.destroy(source.id)
    for (const each of [id, without.id]) await runtime.snapshots?.remove(each)
  })

  test('what is on its way between programs and who reads or writes arrives, in the copy and there', async () => {
    const source = await runtime.create(specOf())
    await start(source, 1, 'while [ ! -e /root/go ]; do sleep 0.01; done; cat', 'pipe')
    await type(source, 1, 'unread')
    // More than a pipe has room for, which nobody reads while a follower has not read on.
    await start(
      source,
      2,
      'head -c 200000 /dev/zero | tr "\\0" x; echo; read -r word; echo "read $word"',
      'pipe',
    )
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: true })
    const copy = await create(id)
    expect(copy.memory).toEqual({ kept: true })
    for (const each of [copy, source]) {
      await each.guest.files.write('/root/go', Buffer.from(''))
      await says(each, 1, 'unread\n')
      await type(each, 2, 'on')
      await each.guest.processes.wait(2)
      expect(await said(each, 2)).toBe(`${'x'.repeat(200_000)}\nread on\n`)
      await each.guest.processes.closeStdin(1)
      expect(await each.guest.processes.wait(1)).toMatchObject({ exitCode: 0 })
      await runtime.destroy(each.id)
    }
    await runtime.snapshots?.remove(id)
  })

  test('a file without a name and a program that is stopped are there again', async () => {
    const source = await runtime.create(specOf())
    await start(
      source,
      1,
      'exec 3<>/root/gone; rm /root/gone; echo kept >&3; read -r word; cat /proc/self/fd/3',
      'pipe',
    )
    await start(source, 2, 'kill -STOP $$; echo went on')
    await eventually('it is stopped', async () => {
      const { body } = await source.guest.files.read(
        `/proc/${(await source.guest.processes.list())[1]?.pid}/stat`,
      )
      return (await new Response(body).text()).includes(') T ')
    })
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: true })
    await runtime.destroy(source.id)
    const copy = await create(id)
    expect(copy.memory).toEqual({ kept: true })
    await type(copy, 1, 'go')
    await says(copy, 1, 'kept\n')
    expect(await said(copy, 2)).toBe('')
    await copy.guest.processes.signal(2, 18, 'process')
    await says(copy, 2, 'went on\n')
    await runtime.destroy(copy.id)
    await runtime.snapshots?.remove(id)
  })

  test.skipIf(!existsSync('/usr/bin/perl'))(
    'servers listen at the addresses and paths where they did (skipped without perl)',
    async () => {
      const source = await runtime.create(specOf())
      const server = `use Socket; $| = 1; my $n = 0;
        socket(T, PF_INET, SOCK_STREAM, 0); bind(T, sockaddr_in(8123, INADDR_LOOPBACK)); listen(T, 5);
        socket(U, PF_UNIX, SOCK_STREAM, 0); bind(U, sockaddr_un("/root/socket")); listen(U, 5);
        print "listens\\n"; while (accept(C, U)) { $n++; syswrite(C, "$n\\n"); close(C) }`
      const client = `use Socket; socket(U, PF_UNIX, SOCK_STREAM, 0);
        connect(U, sockaddr_un("/root/socket")) or die "no $!"; print <U>`
      const perl = (on: Instance, id: number, script: string) =>
        on.guest.processes.spawn({
          ...{ id, argv: ['/usr/bin/perl', '-e', script], env, workingDir: '/root', stdin: 'null' as const },
        })
      await perl(source, 1, server)
      await says(source, 1, 'listens\n')
      await perl(source, 2, client)
      await source.guest.processes.wait(2)
      expect(await said(source, 2)).toBe('1\n')
      const { id, memory } = await capture(source)
      expect(memory).toEqual({ kept: true })
      const copy = await create(id)
      expect(copy.memory).toEqual({ kept: true })
      expect(await copy.listening(8123)).toBe(true)
      for (const each of [copy, source]) {
        await perl(each, 3, client)
        await each.guest.processes.wait(3)
        expect(await said(each, 3)).toBe('2\n')
        await runtime.destroy(each.id)
      }
      await runtime.snapshots?.remove(id)
    },
  )

  test('programs that begin others without a pause are kept as well', async () => {
    const source = await runtime.create(specOf())
    // A shell waits for each of them to be executed, and cannot be stopped before that.
    await start(source, 1, 'while :; do /usr/bin/true; done')
    for (let round = 0; round < 5; round++) {
      const { id, memory } = await capture(source)
      expect(memory).toEqual({ kept: true })
      const copy = await create(id)
      expect(copy.memory).toEqual({ kept: true })
      await runtime.destroy(copy.id)
      await runtime.snapshots?.remove(id)
    }
    await runtime.destroy(source.id)
  })

  test('children that nobody has asked after yet are there, under their pids', async () => {
    const source = await runtime.create(specOf())
    // Replaced, so that it knows nothing of its children.
    await start(source, 1, 'for n in $(seq 40); do /usr/bin/true & done; exec sleep 100000')
    let look = 10
    const ended = async (on: Instance) => {
      look++
      await start(on, look, 'cat /proc/[0-9]*/status 2>/dev/null | grep "^State:.Z" | wc -l')
      await on.guest.processes.wait(look)
      return Number(await said(on, look))
    }
    await eventually('they have ended', async () => (await ended(source)) === 40)
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: true })
    const copy = await create(id)
    expect(copy.memory).toEqual({ kept: true })
    expect(await ended(copy)).toBe(40)
    for (const each of [copy, source]) await runtime.destroy(each.id)
    await runtime.snapshots?.remove(id)
  })

  test('who calls it off, at whatever moment, leaves programs as they were', async () => {
    const source = await runtime.create(specOf())
    if (!(source instanceof NamespaceInstance)) throw new Error('of another kind')
    await start(source, 1, counter, 'pipe')
    for (const id of [2, 3, 4]) await start(source, id, 'sleep 100000 | sleep 100000 & wait')
    await type(source, 1, '0')
    await says(source, 1, '1 0\n')
    let lines = '1 0\n'
    for (const [index, afterMs] of [1, 10, 20, 30, 40, 60, 80, 120, 160, 240].entries()) {
      const stop = new AbortController()
      const id = `snapshot${randomText(12)}`
      await source.freeze?.()
      const calling = Bun.sleep(afterMs).then(() => stop.abort(new Error('called off')))
      const said = await runtime.snapshots
        ?.capture(source.id, id, stop.signal)
        .catch((error) => String(error))
      expect([`${JSON.stringify({ kept: true })}`, 'Error: called off']).toContain(
        typeof said === 'string' ? said : JSON.stringify(said),
      )
      await calling
      await source.thaw?.()
      await runtime.snapshots?.remove(id)
      await type(source, 1, `${afterMs}`)
      lines += `${index + 2} ${afterMs}\n`
      await says(source, 1, lines)
      for (const { pid } of programsOf(source.process1)) {
        // Nothing of what CRIU puts into them is left.
        expect(readFileSync(`/proc/${pid}/maps`, 'utf8')).not.toContain('memfd')
        await eventually(
          'it goes on',
          () => !/^State:\t[Tt]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')),
        )
      }
    }
    await runtime.destroy(source.id)
  })

  test('a program that undoes what stops it does not run while its memory is kept', async () => {
    const source = await runtime.create(specOf())
    await start(source, 1, 'exec /opt/hostile undo')
    await says(source, 1, 'ready\n')
    await start(source, 2, counter, 'pipe')
    for (let round = 0; round < 3; round++) {
      // Whether it lets itself be kept is its own affair.
      const { id } = await capture(source)
      await runtime.snapshots?.remove(id)
    }
    await type(source, 2, 'on')
    await says(source, 2, '1 on\n')
    await source.guest.processes.signal(1, 9, 'tree')
    await source.guest.processes.wait(1)
    expect(await said(source, 1)).toBe('ready\n')
    await runtime.destroy(source.id)
  })

  test.skipIf(process.arch !== 'x64')(
    'what looks like a worker of process 1 is a program all the same (skipped but on x86-64)',
    async () => {
      const withHelper = {
        ...image,
        mounts: [
          ...image.mounts,
          { source: options.helperPath, target: '/opt/helper', kind: 'bind' as const },
        ],
      }
      writeFileSync(`${dir}/image/opt/helper`, '')
      const source = await runtime.create({ ...specOf(), image: withHelper })
      if (!(source instanceof NamespaceInstance)) throw new Error('of another kind')
      await start(source, 1, 'exec /opt/hostile forge /opt/helper')
      await says(source, 1, 'ready\n')
      const named = programsOf(source.process1).map(({ pid }) =>
        readFileSync(`/proc/${pid}/comm`, 'utf8').trim(),
      )
      expect(named.sort()).toEqual(['hostile', 'hutch-guest'])
      await runtime.destroy(source.id)
    },
  )

  test('memory of another boot, or that is broken, is not gone on from', async () => {
    const source = await runtime.create(specOf())
    await start(source, 1, counter, 'pipe')
    const { id, memory } = await capture(source)
    expect(memory).toEqual({ kept: true })
    await runtime.destroy(source.id)
    const kept = `${options.instancesDir}.snapshots/${id}/memory`
    const record = readFileSync(`${kept}/memory.json`, 'utf8')
    writeFileSync(`${kept}/memory.json`, record.replace(/"bootId":"[^"]*"/, '"bootId":"another"'))
    const later = await create(id)
    expect(later.memory).toEqual({ kept: false, reason: 'the host was started again since' })
    expect(await later.guest.processes.list()).toEqual([])
    writeFileSync(`${kept}/memory.json`, record)
    const [tree = ''] = readdirSync(kept).filter((name) => /^\d+$/.test(name))
    const [core = ''] = readdirSync(`${kept}/${tree}`).filter((name) => name.startsWith('core-'))
    writeFileSync(`${kept}/${tree}/${core}`, 'this is no image')
    const broken = await create(id)
    expect(broken.memory?.kept).toBe(false)
    expect(await broken.guest.processes.list()).toEqual([])
    await start(broken, 1, 'echo works')
    await broken.guest.processes.wait(1)
    expect(await said(broken, 1)).toBe('works\n')
    for (const each of [later, broken]) await runtime.destroy(each.id)
    await runtime.snapshots?.remove(id)
  })

  test('programs that a platform had stopped when it was killed go on with the next', async () => {
    const source = await runtime.create(specOf())
    const mark = randomText(20)
    await start(source, 1, `: ${mark}; ${counter}`, 'pipe')
    const outside = Number(
      readdirSync('/proc').find((name) => {
        try {
          return /^\d+$/.test(name) && readFileSync(`/proc/${name}/cmdline`, 'utf8').includes(mark)
        } catch {
          // It ended meanwhile.
          return false
        }
      }),
    )
    const stat = readFileSync(`/proc/${outside}/stat`, 'utf8')
    const startTime = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19])
    const { handle } = source
    const named = JSON.stringify({ programs: [{ pid: outside, startTime }], before: [], helper: null })
    // A host that lost its power leaves half of it, or nothing.
    for (const [index, text] of [named, named.slice(0, 20), ''].entries()) {
      process.kill(outside, 'SIGSTOP')
      writeFileSync(`${options.instancesDir}/${source.id}/stopped.json`, text)
      await runtime[Symbol.asyncDispose]()
      runtime = await openNamespaceRuntime(options)
      const found = await runtime.recover(handle)
      await type(found!, 1, 'on')
      await eventually('it goes on', async () => (await said(found!, 1)).endsWith(`${index + 1} on\n`))
      expect(existsSync(`${options.instancesDir}/${source.id}/stopped.json`)).toBe(false)
    }
    await runtime.destroy(source.id)
  })
})
