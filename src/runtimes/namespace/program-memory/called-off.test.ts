import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../../lib/clock.ts'
import { randomText } from '../../../lib/ids.ts'
import { silentLogger } from '../../../lib/log.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import type { Runtime } from '../../../spec/runtime.ts'
import { bootId } from '../../helper-process.ts'
import { testHelperPath, testImage } from '../../test-host.ts'
import { openNamespaceRuntime, probeNamespace } from '../index.ts'
import { NamespaceInstance } from '../instance.ts'
import { type MemoryLimits, ProgramMemory } from './index.ts'

/** What a CRIU does that goes wrong, without one: its programs are none the worse for it, and nothing of it is left. */

setDefaultTimeout(120_000)

const dir = realpathSync(mkdtempSync(`${tmpdir()}/hutch-called-off-`))
mkdirSync(`${dir}/image`)
mkdirSync(`${dir}/scripted`)
const helperPath = await testHelperPath()
const options = {
  instancesDir: `${dir}/instances`,
  helperPath,
  log: silentLogger,
  clock: systemClock,
  criuPath: 'none',
}
const state = await probeNamespace(options)
const base = `${dir}/scripted/base`
const built = Bun.spawnSync(['cc', '-static', '-O1', '-o', base, join(import.meta.dir, 'scripted-criu.c')])
const why = !state.usable
  ? state.reason
  : process.getuid?.() !== 0
    ? 'needs root'
    : state.notes.some(({ subject, ok }) => subject === 'standby' && !ok)
      ? 'no control group can freeze here'
      : !built.success
        ? `the scripted CRIU cannot be built: ${built.stderr.toString().slice(0, 200)}`
        : ''
if (why) console.warn(`skipped: ${why}`)

/** Short, for what is going to be called off; long, for what is not. */
const limits: MemoryLimits = {
  settleMsMax: 60_000,
  dumpMsMax: 300,
  restoreMsMax: 300,
  callOffMsMax: 200,
  imagesMbSpare: 2,
  imagesMax: 50,
}
const patient: MemoryLimits = { ...limits, dumpMsMax: 100_000, restoreMsMax: 100_000 }

const describeHere = why === '' ? describe : describe.skip
describeHere(`a dump that goes wrong${why === '' ? '' : ` (skipped: ${why})`}`, () => {
  let runtime: Runtime
  let instance: NamespaceInstance
  let typed = 0

  beforeAll(async () => {
    runtime = await openNamespaceRuntime(options)
    const made = await runtime.create({
      ...{ id: `calledoff${randomText(12)}`, hostname: 'box-1', image: testImage(`${dir}/image`) },
      ...{ memoryMb: 256, storageMb: 64, pidsMax: 128, env: {}, workingDir: '/root' },
    })
    if (!(made instanceof NamespaceInstance)) throw new Error('of another kind')
    instance = made
    await start(1, counter)
    // A second tree, with threads of its own kind: two processes.
    await start(2, 'sleep 100000 & wait')
  })
  afterAll(async () => {
    await runtime.destroy(instance.id)
    await runtime[Symbol.asyncDispose]()
    rmSync(dir, { recursive: true, force: true })
  })
  afterEach(async () => {
    // Whatever went wrong: it is thawed by who froze it, and all of it goes on.
    expect(instance.group.frozen).toBe(true)
    await instance.thaw?.()
    typed++
    await instance.guest.processes.writeStdin(1, Buffer.from('word\n'))
    await eventually('the programs go on', async () => (await said(1)).endsWith(`${typed} word\n`))
    for (const pid of programs()) {
      const status = readFileSync(`/proc/${pid}/status`, 'utf8')
      expect(status).toContain('TracerPid:\t0\n')
      expect(status).not.toMatch(/^State:\t[Tt]/m)
    }
    await eventually('nothing of it runs', () => scripted().length === 0)
    expect(readdirSync(`${options.instancesDir}/${instance.id}`).sort()).toEqual([...kept()].sort())
  })

  const counter = 'n=0; while read -r word; do n=$((n+1)); echo "$n $word"; done'
  const start = (id: number, script: string) =>
    instance.guest.processes.spawn({
      ...{ id, argv: ['sh', '-c', script], env: { PATH: '/usr/bin:/bin' }, workingDir: '/root' },
      stdin: 'pipe',
    })
  const said = async (id: number) => {
    let text = ''
    for await (const records of instance.guest.processes.output(id))
      for (const { data } of records) text += Buffer.from(data).toString()
    return text
  }
  const kept = () =>
    readdirSync(`${options.instancesDir}/${instance.id}`).filter((name) => !/stopped|criu/.test(name))
  const programs = () =>
    readFileSync(`/proc/${instance.process1.pid}/task/${instance.process1.pid}/children`, 'utf8')
      .split(' ')
      .filter(Boolean)
  /** Processes of this test's CRIU, and of the helper for it. */
  const scripted = () =>
    readdirSync('/proc').filter((name) => {
      if (!/^\d+$/.test(name)) return false
      try {
        const exe = readlinkSync(`/proc/${name}/exe`)
        const words = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0')
        return exe.startsWith(`${dir}/scripted`) || words.some((word) => word.startsWith(`${dir}/scripted`))
      } catch {
        return false
      }
    })
  const memoryThat = (script: string, bounds: MemoryLimits, freeBytesMin = 0) => {
    const criuPath = `${dir}/scripted/${randomText(8)}`
    copyFileSync(base, criuPath)
    appendFileSync(criuPath, `${'\0'.repeat(256)}\n${script}`)
    return new ProgramMemory({
      ...{ helperPath, criuPath, clock: systemClock, log: silentLogger, limits: bounds, freeBytesMin },
    })
  }
  const uidBase = () => (instance.handle.state as { uidBase: number }).uidBase
  const machineOf = (of: NamespaceInstance) => ({
    ...{ dir: `${options.instancesDir}/${of.id}`, process1: of.process1, guest: of.guest, group: of.group },
    ...{ uidBase: uidBase(), memoryMb: 256 },
  })
  const capture = async (memory: ProgramMemory, signal?: AbortSignal) => {
    const into = mkdtempSync(`${dir}/memory-`)
    await instance.freeze?.()
    let copied = 0
    const copyFiles = async () => {
      copied++
      expect(instance.group.frozen).toBe(true)
    }
    try {
      const answer = await memory.capture(machineOf(instance), into, copyFiles, signal)
      expect(copied).toBe(1)
      return answer
    } finally {
      rmSync(into, { recursive: true, force: true })
    }
  }

  for (const [what, script, reason] of [
    ['hangs before it does anything', 'hang', 'was not kept within'],
    ['works without an end', 'spin', 'was not kept within'],
    ['was stopped', 'stop', 'was not kept within'],
    ['hangs with all programs held', 'hold hang', 'was not kept within'],
    ['hangs with all programs running', 'thaw hang', 'was not kept within'],
    ['hangs together with a child', 'child hold hang', 'was not kept within'],
    ['writes files without an end', 'files hang', 'takes more than 50 files'],
  ] as const) {
    test(`one that ${what} is called off`, async () => {
      const bounds = reason === 'was not kept within' ? limits : patient
      const memory = await capture(memoryThat(script, bounds))
      expect(memory).toEqual({ kept: false, reason: expect.stringContaining(reason) })
    })
  }

  for (const [what, script] of [
    ['fails', 'fail'],
    ['is killed', 'die'],
    ['fails with all programs held', 'hold fail'],
    ['is killed with all programs held', 'hold die'],
    ['leaves a child', 'child hold fail'],
    ['writes a log without an end', 'log fail'],
    ['makes something else of its log', 'link fail'],
    ['talks without an end', 'loud fail'],
    ['writes an image without an end', 'hold fill fail'],
    ['says that all is well without having done anything', ''],
  ] as const) {
    test(`one that ${what} leaves files only, and programs as they were`, async () => {
      const memory = await capture(memoryThat(script, patient))
      expect(memory).toEqual({ kept: false, reason: expect.stringMatching(/^.{1,300}$/) })
      // Nothing of where its log led to.
      expect(JSON.stringify(memory)).not.toContain('Cap')
    })
  }

  test('a host without room for it is not filled', async () => {
    const memory = await capture(memoryThat('hold fill hang', patient, Number.MAX_SAFE_INTEGER))
    expect(memory).toEqual({ kept: false, reason: expect.stringContaining('too little disk') })
  })

  test('who does not want it any more need not wait for it', async () => {
    const stop = new AbortController()
    const capturing = capture(memoryThat('hold hang', patient), stop.signal)
    await eventually('it hangs', () => scripted().length > 1)
    stop.abort(new Error('not wanted'))
    const error = await capturing.then(
      () => null,
      (failure) => failure,
    )
    expect(String(error)).toContain('not wanted')
  })

  test('putting back that does not end is called off, and nothing of it is left', async () => {
    const other = await runtime.create({
      ...{
        id: `calledoff${randomText(12)}`,
        hostname: 'box-1',
        image: testImage(mkdtempSync(`${dir}/image-`)),
      },
      ...{ memoryMb: 64, storageMb: 16, pidsMax: 64, env: {}, workingDir: '/root' },
    })
    if (!(other instanceof NamespaceInstance)) throw new Error('of another kind')
    const images = mkdtempSync(`${dir}/memory-`)
    mkdirSync(`${images}/20`)
    const record = {
      ...{ version: 1 as const, bootId: bootId(), lastPid: 100, mark: 0, trees: [20], stopped: [] },
      processes: [],
    }
    const machine = { ...machineOf(other), uidBase: (other.handle.state as { uidBase: number }).uidBase }
    for (const script of ['hang', 'child hang', 'stop']) {
      const memory = memoryThat(script, limits)
      const error = await memory.restore(machine, images, record).then(
        () => null,
        (failure) => failure,
      )
      // What an earlier one left runs on inside until the instance ends, as it does then.
      expect(String(error)).toMatch(/were not put back within|do not stand still/)
    }
    await runtime.destroy(other.id)
    await eventually('nothing of it runs', () => scripted().length === 0)
    expect(existsSync(`${options.instancesDir}/${other.id}`)).toBe(false)
    await instance.freeze?.()
  })
})
