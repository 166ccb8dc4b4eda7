import { expect, test } from 'bun:test'
import { gatesOf, isOpen, passageOf } from './gates.ts'
import type { DeploymentSpec } from './record.ts'
import type { StoredTrigger } from './triggers.ts'

const gates = (triggers: StoredTrigger[], spec: Partial<DeploymentSpec> = {}) =>
  gatesOf('agent', { spec: { public: false, triggers, ...spec } as DeploymentSpec })
const trigger = (
  type: StoredTrigger['type'],
  configuration: StoredTrigger['configuration'] = {},
  rest: Partial<StoredTrigger> = {},
): StoredTrigger => ({ id: `${type}-${configuration.path ?? ''}`, type, configuration, ...rest })
const get = (path: string) => ({ path, method: 'GET', isAsync: false })
const post = (path: string, isAsync = false) => ({ path, method: 'POST', isAsync })

test('without triggers requests go where they say, and none is open', () => {
  const plain = gates([])
  expect(passageOf(plain, get('a/b'))).toEqual({ later: null, path: null })
  expect(passageOf(plain, post('', true))).toEqual({ later: { trigger: null }, path: null })
  expect(isOpen(plain, get(''))).toBe(false)
  expect(isOpen(gates([], { public: true }), post('', true))).toBe(true)
})

test('a path below the workspace is an address of its own, before the root of the program', () => {
  const made = gates([
    trigger('http', { path: 'agents/my-agent/sync' }),
    trigger('http-async', { path: 'agents/my-agent/async' }),
    trigger('http-async', { path: '/invoke' }),
  ])
  expect(passageOf(made, post('sync'))).toEqual({ later: null, path: '/' })
  expect(passageOf(made, get('sync/deep%20er/'))).toEqual({ later: null, path: '/deep%20er' })
  expect(passageOf(made, get('synchronous'))).toEqual({ later: null, path: null })
  expect(passageOf(made, post('async'))).toMatchObject({
    later: { trigger: { configuration: { path: 'agents/my-agent/async' } } },
    path: '/',
  })
  expect(passageOf(made, post('invoke'))).toMatchObject({
    later: { trigger: { configuration: { path: '/invoke' } } },
    path: null,
  })
  // Only what is posted can be answered later.
  expect(passageOf(made, get('async'))).toEqual({ later: null, path: null })
})

test('async=true comes by the trigger of its path, else by the one without a path, else by the first', () => {
  const [one, two, general] = [
    trigger('http-async', { path: 'one' }),
    trigger('http-async', { path: 'two' }),
    trigger('http-async'),
  ]
  const by = (triggers: StoredTrigger[], path: string) =>
    passageOf(gates(triggers), post(path, true)).later?.trigger?.id
  expect([by([one, two, general], ''), by([one, two], ''), by([one, two], 'two'), by([], '')]).toEqual([
    general.id,
    one.id,
    two.id,
    undefined,
  ])
  // One that is switched off accepts nothing, and calls nobody.
  const off = gates([{ ...general, enabled: false }])
  expect(passageOf(off, post('')).later).toBeNull()
  expect(off.asyncOff).toBe(true)
})

test('what is answered at once is tried as the trigger says whose path it is', () => {
  const tried = gates([
    trigger('http', { path: 'agents/mine/sync', retry: 1 }),
    trigger('http', { timeout: 30 }),
    trigger('http', { path: '/plain', retry: 0 }),
    trigger('http-async', { path: 'later', retry: 5, timeout: 60 }),
  ])
  expect(passageOf(tried, post('sync/x'))).toEqual({
    ...{ later: null, path: '/x' },
    tries: { retries: 1, timeoutMs: null },
  })
  expect(passageOf(tried, get('else')).tries).toEqual({ retries: 0, timeoutMs: 30_000 })
  expect(passageOf(tried, get('plain'))).toEqual({ later: null, path: null })
  expect(passageOf(tried, post('later'))).not.toHaveProperty('tries')
})

test('the generation that had an address for it by itself has one', () => {
  const old = gates([], { generation: 'mk2' })
  expect(passageOf(old, post('async'))).toMatchObject({
    later: { trigger: { configuration: { timeout: 600 } } },
    path: '/',
  })
})

test('a trigger without a path has that address, too, unless it says async=true or is another one', () => {
  const general = gates([trigger('http-async'), trigger('http-async', { path: 'own/async' })])
  const by = (path: string, isAsync = false) => passageOf(general, post(path, isAsync))
  expect(by('async')).toMatchObject({ later: { trigger: { id: 'http-async-' } }, path: '/' })
  expect(by('async/')).toMatchObject({ later: { trigger: { id: 'http-async-' } }, path: '/' })
  expect(by('async', true)).toMatchObject({ later: { trigger: { id: 'http-async-' } }, path: null })
  expect(by('async/deeper')).toEqual({ later: null, path: null })
  expect(by('own/async').later?.trigger?.id).toBe('http-async-own/async')
  expect(passageOf(general, get('async'))).toEqual({ later: null, path: null })
  expect(passageOf(gates([trigger('http', { path: 'async' })]), post('async')).later).toBeNull()
  const both = gates([trigger('http-async'), trigger('http', { path: 'async/deeper' })])
  expect(passageOf(both, post('async')).later).not.toBeNull()
})

test('a trigger opens all, or what is below its path and is spelled in no other way', () => {
  const all = gates([trigger('http', { authenticationType: 'public' })])
  for (const path of ['', 'a', 'a/../b', '%2e%2e/b'])
    expect([path, isOpen(all, get(path))]).toEqual([path, true])
  const part = gates([trigger('http', { path: '/hooks', authenticationType: 'public' })])
  for (const path of ['hooks', 'hooks/', 'hooks/a', 'ho%6fks/a'])
    expect([path, isOpen(part, get(path))]).toEqual([path, true])
  for (const path of [
    '',
    'hook',
    'hooksy',
    'Hooks',
    'hooks/../b',
    'hooks/%2e%2e/b',
    'hooks%2fa',
    'hooks//a',
    'a/hooks',
  ])
    expect([path, isOpen(part, get(path))]).toEqual([path, false])
  expect(
    isOpen(gates([trigger('http', { authenticationType: 'public' }, { enabled: false })]), get('')),
  ).toBe(false)
})

test('what is private within what is public stays so, however it is spelled', () => {
  const closed = gates([
    trigger('http', { authenticationType: 'public' }),
    trigger('http', { path: '/admin', authenticationType: 'private' }),
  ])
  expect(isOpen(closed, get('about'))).toBe(true)
  for (const path of [
    'admin',
    'ADMIN/users',
    '%61dmin',
    './admin',
    'x/../admin',
    'x%2f..%2fadmin',
    'x\\admin',
  ])
    expect([path, isOpen(closed, get(path))]).toEqual([path, false])
})

test('a trigger that answers later says itself whether it is open, else as what answers at once', () => {
  const later = (authenticationType?: string) =>
    gates([trigger('http-async', { path: 'later', ...(authenticationType ? { authenticationType } : {}) })])
  expect(isOpen(later('public'), post('later'))).toBe(true)
  expect(isOpen(later('public'), get('later'))).toBe(false)
  expect(isOpen(later(), post('later'))).toBe(false)
  const both = gates([trigger('http', { authenticationType: 'public' }), trigger('http-async')])
  expect(isOpen(both, post('', true))).toBe(true)
  const closed = gates([
    trigger('http', { authenticationType: 'public' }),
    trigger('http-async', { authenticationType: 'private' }),
  ])
  expect([isOpen(closed, post('', true)), isOpen(closed, post(''))]).toEqual([false, true])
})
