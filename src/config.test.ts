import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { configKeys, loadConfig } from './config.ts'
import { PlatformError } from './errors.ts'

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'hutch-config-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function file(content: string, name = `${crypto.randomUUID()}.toml`): string {
  const path = join(directory, name)
  writeFileSync(path, content)
  return path
}

function refusal(sources: Parameters<typeof loadConfig>[0]): string {
  try {
    loadConfig(sources)
  } catch (error) {
    if (!PlatformError.is(error)) throw error
    expect(error.code).toBe('bad_request')
    return error.message
  }
  throw new Error('it was accepted')
}

test('nothing configured listens on both loopback addresses, port 4400', () => {
  const config = loadConfig({ env: { HOME: '/home/someone' } })
  expect(config.port).toBe(4400)
  expect(config.hosts).toEqual(['127.0.0.1', '::1'])
  expect(config.runtime).toBe('namespace')
  expect(config.keepInstances).toBe(false)
  expect(config.region).toBeNull()
  expect(config.domains).toEqual(['localhost'])
})

test('a flag wins over the environment, which wins over the file', () => {
  const path = file('port = 1000\nregion = "from-file"\nlogLevel = "debug"\n')
  const env = { HUTCH_PORT: '2000', HUTCH_REGION: 'from-env' }
  const config = loadConfig({ file: path, env, flags: { port: '3000' } })
  expect([config.port, config.region, config.logLevel]).toEqual([3000, 'from-env', 'debug'])
})

test('a flag that was not given says nothing', () => {
  expect(loadConfig({ env: { HUTCH_PORT: '2000' }, flags: { port: undefined } }).port).toBe(2000)
})

test('a word is no number and no truth in a file, where both can be written', () => {
  for (const [line, allowed] of [
    ['port = "5001"', 'allowed: a whole number 0 to 65535'],
    ['keepInstances = "true"', 'allowed: true or false'],
    ['keepInstances = 1', 'allowed: true or false'],
    ['region = 5', 'allowed: a name'],
    ['domains = 5', 'allowed: host names'],
  ] as const) {
    expect(refusal({ file: file(line) })).toContain(allowed)
  }
  expect(loadConfig({ env: {}, file: file('domains = "hutch.example.com"') }).domains).toEqual([
    'hutch.example.com',
  ])
})

test('hutch.toml in the data directory is read when no file is given', () => {
  file('port = 5001\n', 'hutch.toml')
  expect(loadConfig({ flags: { dataDir: directory } }).port).toBe(5001)
})

test('a file found in a data directory cannot name another one', () => {
  file('dataDir = "/elsewhere"\n', 'hutch.toml')
  expect(refusal({ flags: { dataDir: directory } })).toContain('--config')
  rmSync(join(directory, 'hutch.toml'))
})

test('an unknown key names itself, where it stands, the likely one and all allowed', () => {
  const path = file('prot = 1\n')
  const message = refusal({ file: path })
  expect(message).toContain(`prot in ${path}`)
  expect(message).toContain('did you mean port?')
  for (const key of configKeys) expect(message).toContain(key)
  expect(refusal({ env: { HUTCH_DATADIR: '/x' } })).toContain('did you mean HUTCH_DATA_DIR?')
})

test.each([
  ['port', '70000', '0 to 65535'],
  ['port', '4e3', '0 to 65535'],
  ['port', '-1', '0 to 65535'],
  ['host', 'example.com', 'an IP address'],
  ['region', 'EU West', 'lower-case'],
  ['url', 'https://a.example/path', 'without a path'],
  ['url', 'ftp://a.example', 'without a path'],
  ['url', 'https://user@a.example', 'without a path'],
  ['runtime', 'docker', 'namespace, or process'],
  ['keepInstances', 'maybe', 'true or false'],
  ['imageSource', 'hardlink', 'reflink'],
  ['imageLocal', 'sometimes', 'true or false'],
  ['trustedProxies', '10.0.0.0/33', 'ranges'],
  ['trustedProxies', 'proxy.local', 'ranges'],
  ['privateTargets', 'metadata.internal', 'IP addresses'],
  ['privateTargets', '10.0.0.1:0', 'IP addresses'],
  ['domains', 'bad_name!', 'host names'],
  ['dataDir', '', 'a directory'],
  ['sandboxesMax', '0', '1 to 100000'],
] as const)('a bad %s (%s) names the flag, the value and what is allowed', (key, value, allowed) => {
  const message = refusal({ flags: { [key]: value } })
  expect(message).toContain(JSON.stringify(value))
  expect(message).toContain(allowed)
  expect(message).toStartWith('--')
})

test('a value of the wrong type in the file names the file', () => {
  const path = file('port = "4400x"\n')
  expect(refusal({ file: path })).toContain(`port in ${path}: "4400x"`)
})

test('a file that is not TOML says where', () => {
  const path = file('port = 1\nregion = \n')
  expect(refusal({ file: path })).toMatch(new RegExp(`${path} line \\d+ column \\d+: `))
})

test('a file that was asked for and is missing is refused', () => {
  expect(refusal({ file: join(directory, 'none.toml') })).toContain('ENOENT')
})

test('lists come from repeated flags, from commas in the environment and from arrays in the file', () => {
  expect(loadConfig({ flags: { domains: ['localhost', 'Box.Example'] } }).domains).toEqual([
    'localhost',
    'box.example',
  ])
  expect(loadConfig({ env: { HUTCH_TRUSTED_PROXIES: '10.0.0.1, ::1/128' } }).trustedProxies).toEqual([
    '10.0.0.1',
    '::1/128',
  ])
  expect(loadConfig({ file: file('domains = ["a.example"]\n') }).domains).toEqual(['a.example'])
})

test('a prototype name is no key', () => {
  expect(refusal({ file: file('constructor = 1\n') })).toContain('constructor in')
})

test('the address is kept as an origin', () => {
  expect(loadConfig({ flags: { url: 'https://Hutch.Example:443/' } }).url).toBe('https://hutch.example')
})
