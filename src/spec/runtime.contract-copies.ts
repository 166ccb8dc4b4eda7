import { expect, test } from 'bun:test'
import { randomText } from '../lib/ids.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import { type ContractContext, env, exists, waitMs } from './runtime.contract-context.ts'
import type { Instance, InstanceSpec } from './runtime.ts'

/** What drivers can do with all the files of an instance, where the host can: pack them, and copy them as they are. */
export function copiesContract(context: ContractContext): void {
  const { path, specOf, workingDir } = context
  const runIn = async ({ guest }: Instance, argv: string[]) => {
    await guest.processes.spawn({ id: 1, argv, env, workingDir, stdin: 'null' })
    return (await guest.processes.wait(1, AbortSignal.timeout(waitMs))).exitCode
  }

  test('a packed instance takes little room, and comes back with its files', async () => {
    const { runtime } = context
    expect([runtime.pack !== undefined, runtime.unpack !== undefined]).toEqual(
      Array(2).fill(runtime.capabilities.archive),
    )
    if (!runtime.pack || !runtime.unpack) return
    const own = specOf()
    let packed = await runtime.create(own)
    const [file, link, other] = [path(), path(), path()]
    await packed.guest.files.write(file, Buffer.from('kept\n'), { mode: 0o640 })
    await packed.guest.files.write(other, Buffer.alloc(300_000, 'x'))
    expect(await runIn(packed, ['ln', '-s', file, link])).toBe(0)
    const called = new AbortController()
    called.abort(new Error('called off'))
    expect(
      await runtime.pack(own.id, called.signal).then(
        () => '',
        (error) => error.message,
      ),
    ).toBe('called off')
    packed = await runtime.restart(own)
    expect((await packed.guest.files.stat(file)).size).toBe(5)
    const bytes = await runtime.pack(own.id)
    expect(bytes).toBeGreaterThan(0)
    expect(await runtime.pack(own.id)).toBe(bytes)
    expect(await runtime.list()).toContain(own.id)
    expect(await refusalCodeOf(runtime.restart(own))).toBe('not_found')
    await runtime.unpack(own.id)
    await runtime.unpack(own.id)
    packed = await runtime.restart(own)
    expect(await packed.guest.files.stat(file)).toMatchObject({ size: 5, mode: 0o640 })
    expect(await packed.guest.files.realPath(link)).toBe(await packed.guest.files.realPath(file))
    const { body } = await packed.guest.files.read(other)
    expect(Buffer.from(await new Response(body).arrayBuffer()).equals(Buffer.alloc(300_000, 'x'))).toBe(true)
    await runtime.pack(own.id)
    await runtime.destroy(own.id)
    expect(await runtime.list()).not.toContain(own.id)
  })

  test('a snapshot has the files of one moment, and new instances have them', async () => {
    const { runtime } = context
    const { snapshots } = runtime
    expect(snapshots !== undefined).toBe(runtime.capabilities.snapshots)
    if (!snapshots) return
    const own = specOf()
    const source = await runtime.create(own)
    const [file, link, large] = [path(), path(), path()]
    await source.guest.files.write(file, Buffer.from('then\n'), { mode: 0o640 })
    await source.guest.files.write(large, Buffer.alloc(3_000_000, 'x'))
    expect(await runIn(source, ['ln', '-s', file, link])).toBe(0)
    const id = `snapshot${randomText(12)}`
    expect(await refusalCodeOf(snapshots.capture(own.id, id))).toBe('conflict')
    expect(await refusalCodeOf(snapshots.capture(`unknown${randomText(12)}`, id))).toBe('not_found')
    expect(await refusalCodeOf(snapshots.complete(id))).toBe('not_found')
    await source.freeze?.()
    await snapshots.capture(own.id, id)
    await source.thaw?.()
    const later = (spec: InstanceSpec) => runtime.create({ ...spec, snapshotId: id })
    expect(await refusalCodeOf(later(specOf()))).toBe('not_found')
    expect(await snapshots.list()).toContain(id)
    const bytes = await snapshots.complete(id)
    expect(bytes).toBeGreaterThanOrEqual(3_000_000)
    expect(await snapshots.complete(id)).toBe(bytes)
    await source.guest.files.write(file, Buffer.from('later\n'))
    await runtime.destroy(own.id)

    const specs = [specOf(), specOf()]
    const copies = await Promise.all(specs.map(later))
    for (const [index, { guest }] of copies.entries()) {
      expect(await guest.files.stat(file)).toMatchObject({ size: 5, mode: 0o640 })
      expect(await guest.files.realPath(link)).toBe(await guest.files.realPath(file))
      expect((await guest.files.stat(large)).size).toBe(3_000_000)
      await guest.files.write(file, Buffer.from('x'.repeat(index + 10)))
    }
    const sizes = await Promise.all(copies.map(async ({ guest }) => (await guest.files.stat(file)).size))
    expect(sizes).toEqual([10, 11])
    const [first = specOf()] = specs
    expect((await (await runtime.restart(first)).guest.files.stat(file)).size).toBe(10)

    // What is packed, or has been stopped, stands still as well.
    const another = `snapshot${randomText(12)}`
    await copies[1]?.stop()
    await snapshots.capture(specs[1]?.id ?? '', another)
    await snapshots.complete(another)
    await snapshots.remove(another)
    if (runtime.pack) {
      await runtime.pack(first.id)
      await snapshots.capture(first.id, another)
      await snapshots.complete(another)
      const unpacked = await runtime.create({ ...specOf(), snapshotId: another })
      expect((await unpacked.guest.files.stat(file)).size).toBe(10)
      await runtime.destroy(unpacked.id)
    }
    const called = new AbortController()
    called.abort(new Error('called off'))
    await expect(snapshots.capture(first.id, `snapshot${randomText(12)}`, called.signal)).rejects.toThrow(
      'called off',
    )
    for (const { id } of specs) await runtime.destroy(id)
    await snapshots.remove(id)
    await snapshots.remove(id)
    await snapshots.remove(another)
    expect(await snapshots.list()).toEqual([])
  })

  test('a snapshot is sound while programs write, and has all that was written before it or nothing', async () => {
    const { runtime } = context
    const { snapshots } = runtime
    if (!snapshots || runtime.capabilities.isolation === 'none') return
    const own = specOf()
    const source = await runtime.create(own)
    const target = path()
    await source.guest.processes.spawn({
      id: 1,
      argv: ['sh', '-c', `i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i > ${target}-$i; done`],
      env,
      workingDir,
      stdin: 'null',
    })
    await eventually(() => exists(source, `${target}-50`))
    const id = `snapshot${randomText(12)}`
    await source.freeze?.()
    await snapshots.capture(own.id, id)
    await source.thaw?.()
    await snapshots.complete(id)
    await runtime.destroy(own.id)
    const copy = await runtime.create({ ...specOf(), snapshotId: id })
    const command = `set -- ${target}-*; i=0; while [ $((i+=1)) -lt $# ]; do read -r n < ${target}-$i; [ "$n" = $i ] || exit 1; done; [ $# -ge 50 ]`
    expect(await runIn(copy, ['sh', '-c', command])).toBe(0)
    await runtime.destroy(copy.id)
    await snapshots.remove(id)
  })
}
