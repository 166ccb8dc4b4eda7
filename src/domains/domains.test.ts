import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { Domains } from './index.ts'
import type { DomainInput } from './schema.ts'

const clock = new FakeClock()
const actor = 'me@example.com'
const origin = 'https://hutch.example.net'
let dir: string
let store: Store
let domains: Domains
/** What names say, or the code that looking for them fails with. */
let records: Map<string, string[][] | string>
/** Which application has an address at a domain. */
let users: Map<string, string>

function open(): Domains {
  return new Domains({
    store,
    clock,
    ownsHost: (host) => host.endsWith('hutch.example.net'),
    userOf: (workspace, domain) => users.get(`${workspace} ${domain}`) ?? null,
    async resolveTxt(name) {
      const found = records.get(name) ?? 'ENOTFOUND'
      if (typeof found === 'string') throw Object.assign(new Error(found), { code: found })
      return found
    },
  })
}

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-domains-'))
  records = new Map()
  users = new Map()
  store = await openSqliteStore({
    path: join(dir, 'hutch.db'),
    clock,
    log: silentLogger,
    durability: 'process',
  })
  const people = new Users({ store, clock })
  const workspaces = new Workspaces({ store, users: people, heldKinds: [] })
  const { sub } = await people.create({ email: actor })
  for (const name of ['main', 'other']) await workspaces.create({ name, ownerSub: sub })
  domains = open()
})
afterEach(async () => {
  await store[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

const input = (name: string, spec: DomainInput['spec'] = {}): DomainInput => ({ metadata: { name }, spec })
const create = (name: string, workspace = 'main') => domains.create(workspace, input(name), { actor })
/** Puts the record there that a domain is to have. */
async function prove(name: string, workspace = 'main'): Promise<void> {
  const { spec } = domains.view(await domains.get(workspace, name), origin)
  for (const [record, value] of Object.entries(spec.txtRecords))
    records.set(record, [
      ...(Array.isArray(records.get(record)) ? (records.get(record) as string[][]) : []),
      [value],
    ])
}
test('a domain leads to a workspace once its record shows that it is its own, and over restarts', async () => {
  const made = domains.view(await create('Example.COM.'), origin)
  const [[record = '', value = ''] = []] = Object.entries(made.spec.txtRecords)
  expect(made).toMatchObject({
    metadata: { name: 'example.com', workspace: 'main', createdBy: actor },
    spec: { domainType: 'applications', status: 'pending', cnameRecords: 'hutch.example.net' },
  })
  expect(record).toBe('_hutch-challenge.example.com')
  expect(domains.holderOf('example.com')).toBeNull()
  const looked = async () => domains.view(await domains.verify('main', 'example.com'), origin).spec
  expect(await looked()).toMatchObject({
    status: 'failed',
    verificationError: expect.stringContaining(`is to be ${value}: there is no such record`),
  })
  records.set(record, 'ETIMEOUT')
  expect((await looked()).verificationError).toContain('could not be looked up (ETIMEOUT)')
  records.set(record, [['something'], ['else']])
  expect((await looked()).verificationError).toContain('and is "something", "else"')
  records.set(record, [['else'], [value.slice(0, 10), value.slice(10)]])
  expect(await looked()).toEqual({
    ...made.spec,
    status: 'verified',
    lastVerifiedAt: new Date(clock.now()).toISOString(),
  })
  domains = open()
  await domains.open()
  const holder = { workspace: 'main', domain: 'example.com', application: null }
  for (const host of ['example.com', 'www.example.com', 'a.b.example.com'])
    expect(domains.holderOf(host)).toEqual(holder)
  for (const host of ['com', 'notexample.com', 'example.com.evil.org', ''])
    expect(domains.holderOf(host)).toBeNull()
  records.delete(record)
  expect((await looked()).status).toBe('failed')
  expect(domains.holderOf('www.example.com')).toBeNull()
})

test('of two workspaces that have the same domain one alone is led to', async () => {
  await create('example.com')
  await create('example.com', 'other')
  await prove('example.com')
  await prove('example.com', 'other')
  const [one, two] = await Promise.all([
    domains.verify('main', 'example.com'),
    domains.verify('other', 'example.com'),
  ])
  expect([one.body.status, two.body.status].sort()).toEqual(['failed', 'verified'])
  const [holder, loser] = one.body.status === 'verified' ? ['main', 'other'] : ['other', 'main']
  expect(domains.holderOf('example.com')?.workspace).toBe(holder!)
  await domains.remove(loser!, 'example.com')
  expect(domains.holderOf('example.com')?.workspace).toBe(holder!)
  await domains.remove(holder!, 'example.com')
  expect(domains.holderOf('example.com')).toBeNull()
})

test('addresses of an application are below verified domains of its workspace; one is looked at when it is used', async () => {
  const check = (...urls: { domain: string; subdomain?: string }[]) => domains.checkUrls('main', urls)
  expect((await refusalOf(check({ domain: 'example.com' }))).message).toContain('register it first')
  await create('example.com')
  const refused = await refusalOf(check({ domain: 'example.com' }))
  expect([refused.code, refused.message]).toEqual([
    'bad_request',
    expect.stringContaining('spec.urls[0].domain: "example.com" is not verified: the TXT record'),
  ])
  await prove('example.com')
  await check({ domain: 'example.com' }, { domain: 'example.com', subdomain: 'a.www' })
  expect((await domains.get('main', 'example.com')).body.status).toBe('verified')
  expect((await refusalOf(check({ domain: 'example.com', subdomain: '-no' }))).message).toContain('subdomain')
  expect((await refusalOf(domains.checkUrls('other', [{ domain: 'example.com' }]))).code).toBe('bad_request')
  users.set('main example.com', 'site')
  expect(await refusalOf(domains.remove('main', 'example.com'))).toMatchObject({
    code: 'conflict',
    message: expect.stringContaining('"site"'),
  })
})

test('what a domain is called and labelled with is changed, and nothing else', async () => {
  await create('example.com')
  await prove('example.com')
  const verified = await domains.verify('main', 'example.com')
  const view = domains.view(verified, origin)
  const metadata = { ...view.metadata, displayName: 'Shop', labels: { team: 7 } }
  const changed = await domains.update('main', 'example.com', { metadata, spec: view.spec }, { actor })
  expect(changed.body).toEqual({ ...verified.body, displayName: 'Shop', labels: { team: '7' } })
  const renamed = domains.update('main', 'example.com', input('other.com'), { actor })
  expect((await refusalOf(renamed)).message).toContain('cannot be renamed')
  expect((await domains.list('main')).map(({ name }) => name)).toEqual(['example.com'])
  await store.batch(await domains.removal('main'))
  expect([await domains.list('main'), domains.holderOf('example.com')]).toEqual([[], null])
})

test.each([
  [{}, 'metadata.name: missing'],
  [input('localhost'), 'is not a domain name'],
  [input('192.0.2.1'), 'is not a domain name'],
  [input('*.example.com'), 'is not a domain name'],
  [input('shop.hutch.example.net'), 'is a name of this platform'],
  [input('example.com', { domainType: 'previews' }), 'spec.domainType: "previews"'],
  [input('taken.org'), 'is registered already'],
])('%j is refused: %s', async (wrong, message) => {
  await create('taken.org')
  expect((await refusalOf(domains.create('main', wrong, { actor }))).message).toContain(message)
})

test('a domain of one application leads to that by itself', async () => {
  await domains.create('main', input('example.com', { type: 'applications' }), { actor, application: 'site' })
  await prove('example.com')
  await domains.verify('main', 'example.com')
  expect(domains.holderOf('example.com')).toMatchObject({ workspace: 'main', application: 'site' })
})
