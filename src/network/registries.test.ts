import { afterAll, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { hostRegistries } from './registries.ts'

const roots: string[] = []
afterAll(() => {
  for (const root of roots) rmSync(root, { recursive: true, force: true })
})

function host(files: Record<string, string>, env: Record<string, string> = {}) {
  const root = mkdtempSync(join(tmpdir(), 'hutch-registries-'))
  roots.push(root)
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  return hostRegistries({ root, home: '/home/me', env })
}

test('a host without settings has the usual registries and nothing to carry', () => {
  const { names, addresses, env, withoutCredential } = host({})
  expect(names.map(({ name }) => name)).toEqual(['registry.npmjs.org', 'pypi.org', 'files.pythonhosted.org'])
  expect([addresses, env, withoutCredential]).toEqual([[], {}, []])
})

test('mirrors of npm, pip and apt are reachable, and named to programs inside', () => {
  const found = host({
    '/home/me/.npmrc': 'registry = https://npm.corp.test/\n@team:registry=https://team.corp.test:8443/npm\n',
    '/etc/pip.conf': '[global]\nindex-url = https://10.0.0.7/simple\n',
    '/etc/apt/sources.list.d/debian.sources':
      'Types: deb\n# http://old.test/\nURIs: http://apt.corp.test/debian\n',
    '/etc/apt/sources.list':
      '# deb http://commented.test/ a b\ndeb [arch=amd64] http://list.corp.test/debian main\n',
  })
  expect(found.names.slice(3)).toEqual([
    { name: 'npm.corp.test', ports: [80, 443] },
    { name: 'team.corp.test', ports: [8443] },
    { name: 'list.corp.test', ports: [80, 443] },
    { name: 'apt.corp.test', ports: [80, 443] },
  ])
  expect(found.addresses).toEqual(['10.0.0.7:443'])
  expect(found.env).toEqual({
    NPM_CONFIG_REGISTRY: 'https://npm.corp.test/',
    PIP_INDEX_URL: 'https://10.0.0.7/simple',
  })
})

test('credentials stay behind, and which were is told', () => {
  const secret = 'hunter2-token'
  const found = host(
    {
      '/home/me/.npmrc': `registry=https://me:${secret}@npm.corp.test/\n//npm.corp.test/:_authToken=${secret}\n`,
      '/home/me/.config/pip/pip.conf': `[global]\nextra-index-url = https://${secret}@pip.corp.test/simple?key=${secret}\n`,
      '/etc/apt/sources.list': `deb https://me:${secret}@apt.corp.test/debian main\n`,
    },
    { HTTPS_PROXY: `http://me:${secret}@proxy.corp.test:3128` },
  )
  const { installations, ...forPrograms } = found
  expect(JSON.stringify(forPrograms)).not.toContain(secret)
  expect(found.env.NPM_CONFIG_REGISTRY).toBe('https://npm.corp.test/')
  expect(found.env.PIP_EXTRA_INDEX_URL).toBe('https://pip.corp.test/simple')
  expect(found.env.HTTPS_PROXY).toBe('http://proxy.corp.test:3128/')
  expect(found.withoutCredential).toEqual(['npm registry', 'pip extra-index-url', 'apt', 'HTTPS_PROXY'])
})

test('installations have the credentials, for the registries that they are of, and every one is known as a secret', () => {
  const { installations } = host(
    {
      '/home/me/.npmrc': [
        'registry=https://me:pass-word@npm.corp.test/npm/',
        '@team:registry=http://127.0.0.1:4873/',
        `//127.0.0.1:4873/:_authToken=\${TEAM_TOKEN}`,
        `//other.test/:_authToken=\${UNSET}`,
      ].join('\n'),
      '/etc/pip.conf': '[global]\nindex-url = https://bot:pip%21word@localhost:8080/simple\n',
    },
    { TEAM_TOKEN: 'team-token', HTTPS_PROXY: 'http://me:proxy-word@proxy.corp.test:3128' },
  )
  expect(installations.npmrc.split('\n')).toEqual([
    '//host.hutch.internal:4873/:_authToken=team-token',
    `//npm.corp.test/npm/:_auth=${btoa('me:pass-word')}`,
    '@team:registry=http://host.hutch.internal:4873/',
    '',
  ])
  expect(installations.env).toMatchObject({
    PIP_INDEX_URL: 'https://bot:pip%21word@host.hutch.internal:8080/simple',
    UV_INDEX_URL: 'https://bot:pip%21word@host.hutch.internal:8080/simple',
    HTTPS_PROXY: 'http://me:proxy-word@proxy.corp.test:3128/',
  })
  for (const secret of [
    'team-token',
    'pass-word',
    btoa('me:pass-word'),
    'pip!word',
    'pip%21word',
    'proxy-word',
  ])
    expect(installations.secrets).toContain(secret)
})

test('a proxy on the loopback of the host is reached by the name it has inside', () => {
  const found = host({}, { http_proxy: 'http://127.0.0.1:3128', NO_PROXY: '.corp.test' })
  expect(found.env.HTTP_PROXY).toBe('http://host.hutch.internal:3128/')
  expect(found.env.http_proxy).toBe('http://host.hutch.internal:3128/')
  expect(found.env.NO_PROXY).toBe('.corp.test,localhost,127.0.0.1,::1,.internal')
  expect(found.addresses).toEqual(['127.0.0.1:3128'])
})

test('certificates are carried only where the image has them too', () => {
  const found = host(
    {
      '/etc/ssl/certs/corp.crt': 'x',
      '/root/private.crt': 'x',
      '/home/me/.npmrc': 'cafile=/etc/ssl/certs/corp.crt\n',
    },
    {
      NODE_EXTRA_CA_CERTS: '/etc/ssl/certs/corp.crt',
      SSL_CERT_FILE: '/root/private.crt',
      CURL_CA_BUNDLE: '/etc/ssl/certs/../../../root/private.crt',
      GIT_SSL_CAINFO: '/etc/ssl/certs/missing.crt',
    },
  )
  expect(found.env).toEqual({
    NODE_EXTRA_CA_CERTS: '/etc/ssl/certs/corp.crt',
    NPM_CONFIG_CAFILE: '/etc/ssl/certs/corp.crt',
  })
})
