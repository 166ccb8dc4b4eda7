import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { Journal } from '../spec/journal.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { workspaceKey } from '../workspaces/key.ts'
import { Memory, type MemoryChange, type MemoryPlace } from './index.ts'
import { matchesPattern } from './pattern.ts'

const author = { agentId: 'a', actorId: '', workflowId: 'run-1' }
const session: MemoryPlace = { scope: 'session', scopeId: 's1' }
const everywhere: MemoryPlace = { scope: 'global', scopeId: 'global' }
let directory: string
let clock: FakeClock
let store: Store
let memory: Memory

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'hutch-memory-'))
  clock = new FakeClock()
  await openStore()
  for (const name of ['main', 'other']) await store.create({ ...workspaceKey(name), body: {} })
})

async function openStore(): Promise<void> {
  const log = createLogger({ clock, level: 'error', format: 'json' })
  store = await openSqliteStore({
    path: join(directory, 'hutch.db'),
    clock,
    log,
    durability: 'process',
  })
  memory = new Memory({ store, clock })
}

afterEach(async () => {
  await store[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

const valuesOf = async (place: MemoryPlace) =>
  (await Array.fromAsync(memory.list('main', place))).map(({ key, data }) => [key, data])

describe('values', () => {
  test('are of one scope and one workspace, and outlive the platform', async () => {
    await memory.set('main', session, 'mood', { is: 'good' }, author)
    await memory.set('main', { scope: 'session', scopeId: 's2' }, 'mood', 'bad', author)
    await memory.set('other', session, 'mood', 3, author)
    await store[Symbol.asyncDispose]()
    await openStore()
    expect((await memory.get('main', session, 'mood'))?.data).toEqual({ is: 'good' })
    expect(await memory.get('main', everywhere, 'mood')).toBeNull()
    expect((await memory.get('other', session, 'mood'))?.data).toBe(3)
  })

  test('can be nothing, false or empty, which is not the same as not being there', async () => {
    for (const data of [null, false, 0, '', []]) {
      await memory.set('main', session, 'k', data, author)
      expect((await memory.get('main', session, 'k'))?.data).toEqual(data)
    }
    expect(await memory.remove('main', session, 'k', author)).toBeTrue()
    expect(await memory.remove('main', session, 'k', author)).toBeFalse()
    expect(await memory.get('main', session, 'k')).toBeNull()
  })

  test('are listed by key, all of a scope, however many', async () => {
    const keys = Array.from({ length: 230 }, (_, at) => `k${String(at).padStart(3, '0')}`)
    await Promise.all(keys.map((key) => memory.set('main', session, key, key, author)))
    await memory.set('main', everywhere, 'elsewhere', 1, author)
    expect(await valuesOf(session)).toEqual(keys.map((key) => [key, key]))
  })

  test('set at the same time are all told of, and one of them stays', async () => {
    await Promise.all([1, 2, 3, 4].map((data) => memory.set('main', session, 'k', data, author)))
    const changes = await memory.history('main', {})
    expect(changes.map(({ data }) => data).toSorted()).toEqual([1, 2, 3, 4])
    expect((await memory.get('main', session, 'k'))?.data).toBe(changes.at(-1)?.data)
    const before = changes.map(({ previousData }) => previousData)
    expect(before).toEqual([undefined, ...changes.slice(0, -1).map(({ data }) => data)])
  })

  test('of names that cannot be kept, and too large ones, are refused', async () => {
    const refusal = (work: Promise<unknown>) => work.then(null, (error) => error.code)
    expect(await refusal(memory.set('main', session, '', 1, author))).toBe('bad_request')
    expect(await refusal(memory.set('main', session, 'k'.repeat(513), 1, author))).toBe('bad_request')
    const broken: MemoryPlace = { scope: 'session', scopeId: 'a\nb' }
    expect(await refusal(memory.set('main', broken, 'k', 1, author))).toBe('bad_request')
    const large = 'x'.repeat(4 * 1024 * 1024)
    expect(await refusal(memory.set('main', session, 'k', large, author))).toBe('body_too_large')
  })

  test('go with their workspace', async () => {
    await memory.set('main', session, 'k', 1, author)
    await memory.vectors.set('main', session, 'v', { embedding: [1], metadata: {} })
    const steps = await memory.removal('main')
    expect(steps.length).toBe(3)
    await store.batch(steps)
    expect(await memory.get('main', session, 'k')).toBeNull()
    expect(await memory.history('main', {})).toEqual([])
  })
})

describe('changes', () => {
  test('are followed from the call on, those that are wanted, in order', async () => {
    await memory.set('main', session, 'before', 1, author)
    const stop = new AbortController()
    const heard: MemoryChange[] = []
    const following = (async () => {
      for await (const change of memory.follow('main', { patterns: ['user.*', 'x'] }, stop.signal)) {
        heard.push(change)
        if (change.key === 'x') break
      }
    })()
    await memory.set('main', session, 'user.name', 'Ann', author)
    await memory.set('main', session, 'other', 1, author)
    await memory.set('other', session, 'user.name', 'Bob', author)
    await memory.remove('main', session, 'user.name', author)
    await memory.set('main', everywhere, 'x', 1, author)
    await following
    stop.abort()
    expect(heard.map(({ key, action, data, previousData }) => [key, action, data, previousData])).toEqual([
      ['user.name', 'set', 'Ann', undefined],
      ['user.name', 'delete', undefined, 'Ann'],
      ['x', 'set', 1, undefined],
    ])
  })

  test('are found later, by scope, pattern and time, the newest of them', async () => {
    for (const at of [1, 2, 3]) {
      await memory.set('main', session, `k${at}`, at, author)
      await memory.set('main', everywhere, `k${at}`, at, author)
      clock.advance(1000)
    }
    const keys = async (filter: Parameters<Memory['history']>[1]) =>
      (await memory.history('main', filter)).map(({ scope, key }) => `${scope} ${key}`)
    expect(await keys({ scope: 'session' })).toEqual(['session k1', 'session k2', 'session k3'])
    expect(await keys({ scope: 'session', limit: 2 })).toEqual(['session k2', 'session k3'])
    expect(await keys({ patterns: ['*2'], scopeId: 'global' })).toEqual(['global k2'])
    expect(await keys({ sinceMs: clock.now() - 1500, scope: 'global' })).toEqual(['global k3'])
  })

  test('tell of large values only that there are some', async () => {
    await memory.set('main', session, 'k', 'x'.repeat(300_000), author)
    const [change] = await memory.history('main', {})
    expect(change).toMatchObject({ key: 'k', action: 'set' })
    expect(change?.data).toBeUndefined()
  })
})

test('a journal keeps the newest of each workspace', async () => {
  const journal = new Journal<{ at: number }>({ store, kind: 'note', entriesMax: 120 })
  for (let at = 0; at < 205; at++) {
    clock.advance(1)
    await store.batch([journal.entry('main', clock.now(), { at }, {})])
    await journal.added('main')
  }
  await store.batch([journal.entry('other', clock.now(), { at: 0 }, {})])
  const page = await journal.page('main', { sort: 'createdAt:asc', limit: 1 })
  // The last look was at the 201st.
  expect(page.total).toBe(124)
  expect(page.data[0]?.body.at).toBe(81)
  expect((await journal.page('other', {})).total).toBe(1)
})

describe('vectors', () => {
  test('are found by where they point, the nearest first, those that fit the filters', async () => {
    const put = (key: string, embedding: number[], metadata = {}) =>
      memory.vectors.set('main', session, key, { embedding, metadata })
    await put('east', [1, 0], { kind: 'a', tags: ['x'] })
    await put('north', [0, 2], { kind: 'b' })
    await put('north-east', [3, 3], { kind: 'a' })
    await put('solid', [1, 0, 0])
    await memory.vectors.set('main', everywhere, 'elsewhere', { embedding: [1, 0], metadata: {} })
    const search = async (embedding: number[], filters = {}, limit = 10) =>
      (await memory.vectors.search('main', session, { embedding, limit, filters })).map((one) => one.key)
    expect(await search([5, 0.1])).toEqual(['east', 'north-east', 'north'])
    expect(await search([0, 1], {}, 1)).toEqual(['north'])
    expect(await search([0, 1], { kind: 'a' })).toEqual(['north-east', 'east'])
    expect(await search([0, 1], { tags: ['x'] })).toEqual(['east'])
    await put('east', [0, 1])
    expect((await search([0, 1], {}, 2)).toSorted()).toEqual(['east', 'north'])
    expect(await memory.vectors.remove('main', session, 'east')).toBeTrue()
    expect(await memory.vectors.remove('main', session, 'east')).toBeFalse()
    expect(await search([0, 1])).toEqual(['north', 'north-east'])
  })

  test('are as many as are asked for, of many more', async () => {
    const angles = Array.from({ length: 450 }, (_, at) => (at * Math.PI) / 450)
    await Promise.all(
      angles.map((angle, at) =>
        memory.vectors.set('main', session, `v${at}`, {
          embedding: [Math.cos(angle), Math.sin(angle)],
          metadata: {},
        }),
      ),
    )
    let turns = 0
    const others = () => {
      turns++
      next = setImmediate(others)
    }
    let next = setImmediate(others)
    const found = await memory.vectors.search('main', session, { embedding: [1, 0], limit: 5, filters: {} })
    clearImmediate(next)
    // Others have theirs while it goes through all of them.
    expect(turns).toBeGreaterThanOrEqual(8)
    expect(found.map((one) => one.key)).toEqual(['v0', 'v1', 'v2', 'v3', 'v4'])
    expect(found[0]?.cosine).toBeCloseTo(1, 5)
    expect(found[0]?.dimensions).toBe(2)
  })

  test('of no length, or of what is no number, are refused or point nowhere', async () => {
    const refusal = (embedding: number[]) =>
      memory.vectors.set('main', session, 'v', { embedding, metadata: {} }).then(null, (error) => error.code)
    expect(await refusal([])).toBe('bad_request')
    expect(await refusal([Number.NaN])).toBe('bad_request')
    expect(await refusal([1e300])).toBe('bad_request')
    await memory.vectors.set('main', session, 'zero', { embedding: [0, 0], metadata: {} })
    const [found] = await memory.vectors.search('main', session, {
      embedding: [1, 0],
      limit: 1,
      filters: {},
    })
    expect(found?.cosine).toBe(0)
  })
})

test('a star in a pattern is any text, and everything else is itself', () => {
  for (const [pattern, key, expected] of [
    ['*', '', true],
    ['*', 'a/b.c', true],
    ['user.*', 'user.', true],
    ['user.*', 'users.x', false],
    ['a*b*c', 'a-bb-c', true],
    ['a*b*c', 'acb', false],
    ['a*a', 'a', false],
    ['*ab*ab', 'ab', false],
    ['*ab*ab', 'xabyab', true],
    ['a.c', 'abc', false],
    ['', 'x', false],
    [`${'*a'.repeat(200)}*b`, 'a'.repeat(5000), false],
  ] as const)
    expect([pattern, key, matchesPattern(pattern, key)]).toEqual([pattern, key, expected])
})

test('many follow the changes of a workspace by one look at each, and who does not keep up is let go alone', async () => {
  const watched: string[] = []
  const watch = store.watch.bind(store)
  store.watch = (filter, signal) => {
    watched.push(filter.workspace ?? '')
    return watch(filter, signal)
  }
  const over = new AbortController()
  const following = (workspace: string) => memory.follow(workspace, {}, over.signal)
  const [reads, waits, other] = [following('main'), following('main'), following('other')]
  expect(watched).toEqual(['main', 'other'])
  const set = (at: number) => memory.set('main', session, `k${at % 5}`, at, author)
  const first = reads.next()
  await set(0)
  expect((await first).value?.data).toBe(0)
  for (let at = 1; at <= 300; at++) {
    await set(at)
    expect((await reads.next()).value?.data).toBe(at)
  }
  const heard: unknown[] = []
  for await (const { data } of waits) heard.push(data)
  expect(heard).toEqual(Array.from({ length: 256 }, (_, at) => at))
  await memory.set('other', session, 'k', 'x', author)
  expect((await other.next()).value?.data).toBe('x')
  over.abort()
  expect(await reads.next()).toEqual({ done: true, value: undefined })
  // The next one who comes follows from then on.
  const again = memory.follow('main', {}, new AbortController().signal)
  const next = again.next()
  await set(301)
  expect((await next).value?.data).toBe(301)
  await again.return(undefined)
})
