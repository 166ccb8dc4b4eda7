import { expect, test } from 'bun:test'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { Activity } from './activity.ts'
import { Standby } from './standby.ts'

type Machine = Parameters<Activity['runsOn']>[0] & object

const freezeAfterMs = 15_000
const reclaimAfterMs = 300_000
const connectionIdleMs = 900_000

/** A machine whose freeze takes as long as a test wants. */
class SlowMachine {
  frozen = false
  freezes = 0
  thaws = 0
  reclaims = 0
  /** Set: a freeze, and a reclaim, wait for it. */
  gate: PromiseWithResolvers<void> | null = null

  async freeze(signal?: AbortSignal): Promise<void> {
    this.freezes++
    await this.#passed(signal)
    this.frozen = true
  }

  async thaw(): Promise<void> {
    this.thaws++
    this.frozen = false
  }

  async reclaim(signal?: AbortSignal): Promise<number> {
    this.reclaims++
    await this.#passed(signal)
    return 1
  }

  async #passed(signal?: AbortSignal): Promise<void> {
    const aborted = Promise.withResolvers<never>()
    aborted.promise.catch(() => {})
    signal?.addEventListener('abort', () => aborted.reject(signal.reason))
    if (this.gate) await Promise.race([this.gate.promise, aborted.promise])
    signal?.throwIfAborted()
  }
}

function setUp(options: { frozen?: boolean } = {}) {
  const clock = new FakeClock()
  const standby = new Standby({ clock, log: silentLogger, freezeAfterMs, reclaimAfterMs, connectionIdleMs })
  const rests: (number | 'woke')[] = []
  const machine = new SlowMachine()
  machine.frozen = options.frozen ?? false
  const activity = new Activity({
    instanceId: 'one',
    standby,
    clock,
    log: silentLogger,
    lastUsedAt: clock.now(),
    onRest: (lastUsedAt) => rests.push(lastUsedAt),
    onWake: () => rests.push('woke'),
  })
  activity.runsOn(machine as unknown as Machine)
  return { clock, standby, machine, activity, rests }
}

test('an instance that nobody holds is frozen after its time, and woken by whoever comes', async () => {
  const { clock, machine, activity, rests } = setUp()
  const usedAt = clock.now()
  await clock.turn(freezeAfterMs - 1)
  expect(machine.frozen).toBe(false)
  await clock.turn(1)
  expect(activity.asleep).toBe(true)
  expect(activity.lastUsedAt).toBe(usedAt)
  using hold = activity.hold()
  await activity.wake()
  expect([machine.frozen, activity.asleep, machine.thaws]).toEqual([false, false, 1])
  expect(rests).toEqual([usedAt, 'woke'])
  expect(hold).toBeDefined()
})

test('an instance is awake for as long as it is held, and its whole time after', async () => {
  const { clock, machine, activity } = setUp()
  const first = activity.hold()
  const second = activity.hold()
  await clock.turn(10 * freezeAfterMs)
  first[Symbol.dispose]()
  first[Symbol.dispose]()
  await clock.turn(10 * freezeAfterMs)
  expect(machine.freezes).toBe(0)
  expect(activity.lastUsedAt).toBe(clock.now())
  second[Symbol.dispose]()
  const released = clock.now()
  await clock.turn(freezeAfterMs - 1)
  expect([machine.freezes, activity.lastUsedAt]).toEqual([0, released])
  await clock.turn(1)
  expect(machine.frozen).toBe(true)
})

test('who only looks after it keeps it awake without using it', async () => {
  const { clock, machine, activity } = setUp()
  const usedAt = clock.now()
  const quiet = activity.hold({ quiet: true })
  await clock.turn(2 * freezeAfterMs)
  expect([machine.freezes, activity.lastUsedAt]).toEqual([0, usedAt])
  quiet[Symbol.dispose]()
  await clock.turn(freezeAfterMs)
  expect([machine.frozen, activity.lastUsedAt]).toEqual([true, usedAt])
})

test('who comes while it is being frozen calls that off, and many come at once', async () => {
  const { clock, machine, activity, rests } = setUp()
  machine.gate = Promise.withResolvers()
  await clock.turn(freezeAfterMs)
  expect([machine.freezes, activity.asleep]).toEqual([1, false])
  const holds = Array.from({ length: 5 }, () => activity.hold())
  await Promise.all(holds.map(() => activity.wake()))
  expect([machine.frozen, machine.thaws, activity.wake()]).toEqual([false, 0, null])
  expect(rests).toEqual([])
  for (const hold of holds) hold[Symbol.dispose]()
  machine.gate = null
  await clock.turn(freezeAfterMs)
  expect(machine.frozen).toBe(true)
})

test('who comes the moment it has been frozen finds it awake all the same', async () => {
  const { clock, machine, activity } = setUp()
  const gate = Promise.withResolvers<void>()
  machine.gate = gate
  // A freeze that cannot be called off any more.
  machine.freeze = async () => {
    await gate.promise
    machine.frozen = true
  }
  await clock.turn(freezeAfterMs)
  using hold = activity.hold()
  const woken = activity.wake()
  gate.resolve()
  await woken
  expect([machine.frozen, activity.asleep, hold !== undefined]).toEqual([false, false, true])
})

test('what rests for long gives its memory back, once, and waking waits for none of it', async () => {
  const { clock, machine, activity } = setUp()
  await clock.turn(freezeAfterMs + reclaimAfterMs - 1)
  expect(machine.reclaims).toBe(0)
  machine.gate = Promise.withResolvers()
  await clock.turn(1)
  expect(machine.reclaims).toBe(1)
  using hold = activity.hold()
  await activity.wake()
  expect([machine.frozen, hold !== undefined]).toEqual([false, true])
  await clock.turn(10 * reclaimAfterMs)
  expect(machine.reclaims).toBe(1)
})

test('a machine found frozen rests on, and what held it in vain leaves it so', async () => {
  const { clock, machine, activity } = setUp({ frozen: true })
  expect(activity.asleep).toBe(true)
  activity.hold()[Symbol.dispose]()
  await clock.turn(reclaimAfterMs)
  expect([machine.frozen, machine.reclaims, machine.freezes]).toEqual([true, 1, 0])
})

test('a machine that ended is neither frozen nor woken', async () => {
  const { clock, machine, activity, rests } = setUp()
  machine.gate = Promise.withResolvers()
  await clock.turn(freezeAfterMs)
  activity.runsOn(null)
  machine.gate.resolve()
  await clock.turn(10 * reclaimAfterMs)
  expect([activity.asleep, activity.wake(), rests]).toEqual([false, null, []])
  const next = new SlowMachine()
  activity.runsOn(next as unknown as Machine)
  await clock.turn(freezeAfterMs)
  expect([next.frozen, machine.freezes]).toEqual([true, 1])
})

test('a connection counts while something is said on it, lapses after long silence, and wakes with the next word', async () => {
  const { clock, machine, activity } = setUp()
  const connection = activity.holdConnection()
  await clock.turn(connectionIdleMs - 1)
  connection.touch()
  await clock.turn(connectionIdleMs - 1)
  expect([machine.freezes, activity.holders]).toEqual([0, 1])
  const spoke = clock.now() - connectionIdleMs + 1
  await clock.turn(1 + freezeAfterMs)
  expect([machine.frozen, activity.holders]).toEqual([true, 0])
  expect(activity.lastUsedAt).toBe(spoke + connectionIdleMs)
  connection.touch()
  await clock.turn(0)
  expect([machine.frozen, activity.holders]).toEqual([false, 1])
  connection[Symbol.dispose]()
  connection.touch()
  await clock.turn(freezeAfterMs)
  expect([machine.frozen, activity.holders]).toEqual([true, 0])
})

test('a thousand idle instances cost one timer', () => {
  const clock = new FakeClock()
  const standby = new Standby({ clock, log: silentLogger, freezeAfterMs, reclaimAfterMs, connectionIdleMs })
  for (let at = 0; at < 1000; at++) {
    const activity = new Activity({
      instanceId: `i${at}`,
      standby,
      clock,
      log: silentLogger,
      lastUsedAt: 0,
      onRest: () => {},
      onWake: () => {},
    })
    activity.runsOn(new SlowMachine() as unknown as Machine)
  }
  expect(clock.sleepers).toBe(1)
})
