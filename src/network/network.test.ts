import { afterAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { formatAddress, parseAddress } from '../lib/addresses.ts'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { Network, type NetworkOptions } from './index.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-network-'))
const opened: Network[] = []
afterAll(() => {
  for (const network of opened) network.close()
  rmSync(dir, { recursive: true, force: true })
})

const clock = new FakeClock()
const names: Record<string, string[]> = {}

function network({
  platform = false,
  ...options
}: Partial<NetworkOptions> & { platform?: boolean } = {}): Network {
  const made = new Network({
    allow: [],
    registryNames: [],
    dir,
    clock,
    log: silentLogger,
    resolver: { addresses: async (name) => names[name] ?? [], records: async () => [] },
    ...options,
  })
  made.useDoors({
    open: (instanceId, door) => `/doors/${instanceId}.${door}`,
    hasPlatform: () => platform,
    close: () => {},
  })
  opened.push(made)
  return made
}

const verdict = (asked: Network, address: string, port = 443) =>
  asked.decide({ instanceId: 'one', kind: 'outgoing', address: parseAddress(address)!, port })
const refused = { kind: 'refuse' } as const
const dialled = (address: string, port = 443) => ({ kind: 'dial', address, port }) as const

const special = [
  ...['127.0.0.1', '127.255.0.1', '10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.1.1', '100.64.0.1'],
  ...['169.254.169.254', '0.0.0.0', '0.1.2.3', '224.0.0.1', '239.1.1.1', '240.0.0.1', '255.255.255.255'],
  ...['192.0.0.1', '192.0.2.1', '198.18.0.1', '198.51.100.1', '203.0.113.1', '192.88.99.1'],
  ...[
    '::',
    '::1',
    'fe80::1',
    'fec0::1',
    'fc00::1',
    'fd00::1',
    'ff02::1',
    '2001:db8::1',
    '2001::1',
    '3fff::1',
  ],
  ...['::ffff:127.0.0.1', '::ffff:10.0.0.1', '64:ff9b::10.0.0.1', '64:ff9b::7f00:1', '64:ff9b:1::1'],
  ...['2002:a00:1::', '2002:808:808::', '::10.0.0.1', '2600::5efe:a00:1', '2600::200:5efe:7f00:1', '4000::1'],
]

test('what is not public is refused, in every spelling', async () => {
  const asked = network()
  for (const address of special) expect([address, await verdict(asked, address)]).toEqual([address, refused])
})

test('what is public is dialled where it was sent to', async () => {
  const asked = network()
  for (const address of ['8.8.8.8', '172.32.0.1', '100.128.0.1', '2606:4700::1111', '2600::5efe:808:808']) {
    expect(await verdict(asked, address)).toEqual(dialled(address))
  }
})

test('ranges, addresses and ports of the list are dialled, and nothing beside them', async () => {
  const asked = network({ allow: ['10.0.0.0/8', '192.168.1.1:5432', '[fd00::7]:443', 'fd12::/16'] })
  expect(await verdict(asked, '10.2.3.4', 22)).toEqual(dialled('10.2.3.4', 22))
  expect(await verdict(asked, '192.168.1.1', 5432)).toEqual(dialled('192.168.1.1', 5432))
  expect(await verdict(asked, '192.168.1.1', 5433)).toEqual(refused)
  expect(await verdict(asked, '192.168.1.2', 5432)).toEqual(refused)
  expect(await verdict(asked, 'fd00::7')).toEqual(dialled('fd00::7'))
  expect(await verdict(asked, 'fd00::7', 80)).toEqual(refused)
  expect(await verdict(asked, 'fd12::1', 80)).toEqual(dialled('fd12::1', 80))
  // The inside of every sandbox, and no part of that range.
  expect(await verdict(asked, '10.201.0.9', 22)).toEqual(refused)
})

test('this machine takes more than a range that happens to have it in it', async () => {
  const ranges = network({ allow: ['0.0.0.0/0', '::/0'] })
  const own = Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .filter(({ internal, family }) => !internal && family === 'IPv4')
    .map(({ address }) => address)
  for (const address of own) expect([address, await verdict(ranges, address)]).toEqual([address, refused])
  for (const address of own) {
    expect(await verdict(network({ allow: [address] }), address)).toEqual(dialled(address))
    const platform = network({ allow: [address] })
    platform.setOwnPorts([443])
    expect(await verdict(platform, address)).toEqual(refused)
  }
})

test('the loopback of the host has an address inside, behind which only what is listed answers', async () => {
  const asked = network({ allow: ['127.0.0.1:5432', '127.0.0.0/8'] })
  asked.setOwnPorts([4400])
  expect(await verdict(asked, '10.201.0.3', 5432)).toEqual(dialled('127.0.0.1', 5432))
  expect(await verdict(asked, '10.201.0.3', 5433)).toEqual(refused)
  expect(await verdict(asked, '10.201.0.3', 4400)).toEqual(refused)
  const meant = network({ allow: ['127.0.0.1:4400'] })
  meant.setOwnPorts([4400])
  expect(await verdict(meant, '10.201.0.3', 4400)).toEqual(dialled('127.0.0.1', 4400))
})

test('a host stands for what programs of an instance find', async () => {
  names['mixed.test'] = ['::ffff:8.8.8.8', '10.0.0.5', '8.8.8.8']
  names['four.test'] = ['10.0.0.5', '192.168.0.1']
  const found = async (asked: Network, host: string) =>
    (await asked.addressesOf('one', host)).map((address) => formatAddress(address))
  const asked = network()
  expect(await found(asked, 'host.hutch.internal')).toEqual(['10.201.0.3'])
  expect(await found(asked, '10.1.2.3')).toEqual(['10.1.2.3'])
  expect(await found(asked, '::1')).toEqual(['::1'])
  expect(await found(asked, 'localhost')).toEqual(['127.0.0.1', '::1'])
  expect(await found(asked, 'Four.test.')).toEqual(['10.0.0.5', '192.168.0.1'])
  expect((await found(asked, 'mixed.test')).slice(0, 2)).toEqual(['10.0.0.5', '8.8.8.8'])
  expect(await found(asked, 'nobody.test')).toEqual([])
  expect(await found(asked, 'hutch.internal')).toEqual([])
  expect(await found(network({ platform: true }), 'hutch.internal')).toEqual(['10.201.0.1'])
})

test('an allowed name leads to private addresses, by its ports, until it points elsewhere', async () => {
  const asked = network({ allow: ['packages.test', 'db.test:5432'] })
  names['packages.test'] = ['10.0.0.5']
  names['db.test'] = ['10.0.0.6']
  expect(await verdict(asked, '10.0.0.5')).toEqual(dialled('10.0.0.5'))
  expect(await verdict(asked, '10.0.0.5', 22)).toEqual(refused)
  expect(await verdict(asked, '10.0.0.6', 5432)).toEqual(dialled('10.0.0.6', 5432))
  expect(await verdict(asked, '10.0.0.6')).toEqual(refused)
  // It moved: looked up again, though not at every connection.
  names['packages.test'] = ['10.0.0.9']
  expect(await verdict(asked, '10.0.0.9')).toEqual(refused)
  await clock.advance(20_000)
  expect(await verdict(asked, '10.0.0.9')).toEqual(dialled('10.0.0.9'))
  await clock.advance(2 * 60 * 60_000)
  expect(await verdict(asked, '10.0.0.5')).toEqual(refused)
})

test('a name that is not on the list leads nowhere private, whatever it resolves to', async () => {
  const asked = network({ allow: ['packages.test'] })
  names['evil.test'] = ['10.0.0.66']
  await asked.answerQuery('one', query('evil.test', 1))
  expect(await verdict(asked, '10.0.0.66')).toEqual(refused)
})

test('the doors: the own API always, the platform where an instance has it', async () => {
  const closed = network()
  const api = { instanceId: 'one', kind: 'api', address: new Uint8Array(), port: 0 } as const
  expect(await closed.decide(api)).toEqual({ kind: 'hand_over', path: '/doors/one.api' })
  expect(await verdict(closed, '10.201.0.1', 80)).toEqual(refused)
  const open = network({ platform: true })
  expect(await verdict(open, '10.201.0.1', 80)).toEqual({ kind: 'hand_over', path: '/doors/one.platform' })
  expect(await verdict(open, '10.201.0.1', 443)).toEqual({ kind: 'hand_over', path: '/doors/one.platform' })
  for (const port of [22, 4400, 8080]) expect(await verdict(open, '10.201.0.1', port)).toEqual(refused)
})

test('DNS over TCP is answered here, whatever server it was sent to', async () => {
  const asked = network()
  for (const address of ['8.8.8.8', '10.201.0.1', '169.254.169.253']) {
    expect(await verdict(asked, address, 53)).toMatchObject({ kind: 'hand_over', path: `${dir}/dns.sock` })
  }
})

function query(name: string, type: number, id = 7): Uint8Array {
  const labels = name.split('.').flatMap((label) => [label.length, ...Buffer.from(label)])
  return Uint8Array.from([
    id >> 8,
    id & 255,
    1,
    0,
    0,
    1,
    0,
    0,
    0,
    0,
    0,
    0,
    ...labels,
    0,
    type >> 8,
    type & 255,
    0,
    1,
  ])
}

/** Code, and the data of the records. */
async function answered(asked: Network, name: string, type: number): Promise<[number, string[]]> {
  const bytes = await asked.answerQuery('one', query(name, type))
  const view = new DataView(bytes!.buffer, bytes!.byteOffset, bytes!.byteLength)
  const data: string[] = []
  let at = 12 + name.length + 2 + 4
  for (let left = view.getUint16(6); left > 0; left--) {
    const length = view.getUint16(at + 10)
    data.push(Buffer.from(bytes!.subarray(at + 12, at + 12 + length)).toString('hex'))
    at += 12 + length
  }
  expect(at).toBe(bytes!.length)
  expect(view.getUint16(0)).toBe(7)
  return [bytes![3]! & 15, data]
}

test('names are answered as the resolver of the host does, and the difference between none and nothing is kept', async () => {
  const asked = network()
  names['two.test'] = ['93.184.216.34', '93.184.216.35']
  expect(await answered(asked, 'two.test', 1)).toEqual([0, ['5db8d822', '5db8d823']])
  expect(await answered(asked, 'TWO.test', 1)).toEqual([0, ['5db8d822', '5db8d823']])
  expect(await answered(asked, 'two.test', 28)).toEqual([0, []])
  expect(await answered(asked, 'two.test', 65)).toEqual([0, []])
  expect(await answered(asked, 'none.test', 1)).toEqual([3, []])
  expect(await answered(asked, 'localhost', 1)).toEqual([0, ['7f000001']])
  expect(await answered(asked, 'host.hutch.internal', 1)).toEqual([0, ['0ac90003']])
  expect(await answered(asked, 'hutch.internal', 1)).toEqual([3, []])
  expect(await answered(network({ platform: true }), 'hutch.internal', 1)).toEqual([0, ['0ac90001']])
})

test('a resolver that cannot be asked is a failure, not an answer', async () => {
  const failing = network({
    resolver: {
      addresses: () => Promise.reject(new Error('no server')),
      records: () => Promise.reject(new Error('no server')),
    },
  })
  expect((await answered(failing, 'some.test', 1))[0]).toBe(2)
  expect((await answered(failing, 'some.test', 33))[0]).toBe(2)
})

test('an answer that does not fit over UDP says so', async () => {
  names['many.test'] = Array.from({ length: 60 }, (_, at) => `93.184.0.${at + 1}`)
  const asked = network()
  const [, data] = await answered(asked, 'many.test', 1)
  expect(data.length).toBeLessThan(40)
  const bytes = await asked.answerQuery('one', query('many.test', 1))
  expect(bytes!.length).toBeLessThanOrEqual(512)
  expect(bytes![2]! & 2).toBe(data.length === 32 ? 0 : 2)
})

test('garbage is answered with an error or not at all, and never harms', async () => {
  const asked = network()
  let seed = 1
  const random = () => {
    seed = (seed * 1_103_515_245 + 12_345) & 0x7fff_ffff
    return seed
  }
  const good = query('two.test', 1)
  for (let round = 0; round < 3000; round++) {
    const bytes = round % 2 ? good.slice() : Uint8Array.from({ length: random() % 80 }, () => random() & 255)
    for (let change = 0; change < 3; change++)
      if (bytes.length > 0) bytes[random() % bytes.length] = random() & 255
    const cut = bytes.subarray(0, random() % (bytes.length + 1))
    const answer = await asked.answerQuery('one', cut)
    if (answer !== null) expect(answer.length).toBeGreaterThanOrEqual(12)
  }
})
