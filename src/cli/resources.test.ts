import { afterAll, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { TestPlatform } from './test-platform.ts'

// get, apply and delete as people type them, against a scripted platform.

const platform = new TestPlatform()
const directory = mkdtempSync(join(tmpdir(), 'hutch-resources-'))
afterAll(() => {
  platform[Symbol.dispose]()
  rmSync(directory, { recursive: true, force: true })
})
beforeEach(() => {
  platform.seen.length = 0
})

const box = {
  metadata: { name: 'box', createdAt: new Date().toISOString(), labels: { team: 'a' }, url: 'http://x/box' },
  spec: { runtime: { image: 'blaxel/base-image:latest', memory: 2048 } },
  status: 'DEPLOYED',
  state: 'STANDBY',
  events: [
    { time: '2030-01-01T00:00:00Z', type: 'deploy', status: 'DEPLOYED', message: 'one\nand \x1b[2Jmore' },
  ],
}
const other = { ...box, metadata: { name: 'a-much-longer-name' }, status: 'FAILED' }

function sandboxes(): void {
  platform.answer = ({ path }) => {
    if (path.startsWith('/v0/sandboxes?')) {
      const next = path.includes('limit=1') ? 'two' : ''
      return Response.json({ data: next ? [box] : [box, other], meta: { nextCursor: next } })
    }
    return path === '/v0/sandboxes/box' ? Response.json(box) : null
  }
}

test('a list is a table whose columns align', async () => {
  sandboxes()
  const { code, stdout } = await platform.run(['get', 'sbx'])
  expect(code).toBe(0)
  const [head = '', first = '', second = ''] = stdout.split('\n')
  expect(head).toMatch(/^NAME {16}STATUS {4}STATE {4}IMAGE/)
  expect(first).toMatch(/^box {17}DEPLOYED {2}STANDBY {2}blaxel/)
  expect(second).toMatch(/^a-much-longer-name {2}FAILED/)
})

test('status counts what is deployed, too, kind by kind', async () => {
  platform.answer = ({ path }) => {
    if (path.startsWith('/health')) return Response.json({ status: 'ok' })
    const data = path.startsWith('/v0/agents') ? [box, box, other] : []
    return path.startsWith('/v0/') ? Response.json({ data, meta: { nextCursor: '' } }) : null
  }
  const { stdout } = await platform.run(['status'])
  expect(stdout).toEndWith('\nsandboxes  none\nagents     2 deployed, 1 failed\n')
  expect(JSON.parse((await platform.run(['status', '--json'])).stdout)).toMatchObject({
    sandboxes: {},
    agents: { DEPLOYED: 2, FAILED: 1 },
    jobs: {},
  })
})

test('one resource is told in lines, and its messages cannot reach the terminal', async () => {
  sandboxes()
  const { stdout } = await platform.run(['get', 'sandbox', 'box'])
  expect(stdout).toContain('labels       team=a\n')
  expect(stdout).toContain('status       DEPLOYED\n')
  expect(stdout).toContain('\n             and \\x1b[2Jmore\n')
})

test('a deployment whose events say that it is deployed is told to be', async () => {
  const events = [
    { time: '2030-01-01T00:00:01Z', type: 'deployment', status: 'BUILDING' },
    { time: '2030-01-01T00:00:02Z', type: 'deployment', status: 'DEPLOYED', message: 'it serves' },
  ]
  platform.answer = () => Response.json({ metadata: { name: 'hello' }, spec: {}, status: 'BUILDING', events })
  const { stdout } = await platform.run(['get', 'agent', 'hello'])
  expect(stdout).toContain('status       DEPLOYED\n')
  expect(stdout).toMatch(/\nevent {8}\S+ ago {2}BUILDING\nevent {8}\S+ ago {2}DEPLOYED {2}it serves\n$/)
  expect((await platform.run(['get', 'agent', 'hello', '--json'])).stdout).toContain('"status": "BUILDING"')
})

test('programs that registered themselves are listed, with what they do', async () => {
  const node = {
    ...{ id: 'far', base_url: 'http://127.0.0.1:8001', version: '1', deployment_type: 'long_running' },
    ...{ reasoners: [{ id: 'greet' }, { id: 'part' }], skills: [{ id: 'add' }] },
    ...{ health_status: 'active', lifecycle_status: 'ready', last_heartbeat: '', registered_at: '' },
  }
  platform.answer = ({ path }) =>
    path === '/api/v1/nodes'
      ? Response.json({ nodes: [node], count: 1 })
      : path === '/api/v1/nodes/far'
        ? Response.json({ ...node, health_status: 'inactive' })
        : null
  const [, row] = (await platform.run(['get', 'nodes'])).stdout.split('\n')
  expect(row).toBe('far   ready   greet, part  add     http://127.0.0.1:8001  -      -')
  const { stdout } = await platform.run(['get', 'node', 'far'])
  expect(stdout).toContain('status       inactive\n')
  expect(stdout).toContain('reasoners    greet, part\n')
  const none = await platform.run(['get', 'node', 'none'])
  expect([none.code, none.stderr]).toEqual([1, expect.stringContaining('hutch get nodes')])
})

test('JSON is an array, and YAML a manifest, of a single one too', async () => {
  sandboxes()
  const { stdout } = await platform.run(['get', 'sandbox', 'box', '-o', 'json'])
  expect(JSON.parse(stdout)).toEqual([{ apiVersion: 'blaxel.ai/v1alpha1', kind: 'Sandbox', ...box }])
  expect((await platform.run(['get', 'sandbox', 'box', '--json'])).stdout).toBe(stdout)
  const yaml = (await platform.run(['get', 'sandboxes', '-o', 'yaml'])).stdout
  expect(Bun.YAML.parse(yaml)).toMatchObject([
    { kind: 'Sandbox', metadata: { name: 'box' } },
    { metadata: { name: 'a-much-longer-name' } },
  ])
})

test('a page says how to get the next one', async () => {
  sandboxes()
  const { stderr } = await platform.run(['get', 'sandboxes', '--limit', '1', '-w', 'team'])
  expect(stderr).toContain('hutch get sandboxes --limit 1 --cursor two --workspace team')
})

test('what belongs to a sandbox is reached by it', async () => {
  platform.answer = ({ path }) => {
    if (path.endsWith('/previews/web'))
      return Response.json({ metadata: { name: 'web' }, spec: { port: 3000 } })
    return Response.json([])
  }
  for (const words of [
    ['get', 'sandbox', 'box', 'previews'],
    ['get', 'previews', 'box'],
    ['get', 'sbx', 'box', 'preview', 'web'],
    ['get', 'sandbox', 'box', 'preview', 'web', 'tokens'],
    ['get', 'sandbox', 'box', 'snapshots'],
  ]) {
    expect((await platform.run(words)).code).toBe(0)
  }
  expect(platform.log.map((line) => line.split('?')[0])).toEqual([
    'GET /v0/sandboxes/box/previews',
    'GET /v0/sandboxes/box/previews',
    'GET /v0/sandboxes/box/previews/web',
    'GET /v0/sandboxes/box/previews/web/tokens',
    'GET /v0/sandboxes/box/snapshots',
  ])
})

test('revisions of a deployment are a table of who gets which traffic', async () => {
  const revision = { status: 'DEPLOYED', createdBy: 'me', createdAt: '2030-01-01T00:00:00Z' }
  platform.answer = ({ path }) =>
    path.startsWith('/v0/agents/hello/revisions')
      ? Response.json([
          { ...revision, id: 'rev-1', trafficPercent: 90 },
          { ...revision, id: 'rev-2', trafficPercent: 10 },
        ])
      : null
  const { stdout } = await platform.run(['get', 'agent', 'hello', 'revisions'])
  expect(stdout).toMatch(/^REVISION {2}STATUS {4}TRAFFIC/)
  expect(stdout).toMatch(/\nrev-2 {5}DEPLOYED {2}10%/)
})

test('a sandbox whose next image is built can be used meanwhile, one that is archived cannot', async () => {
  const at = (status: string) => {
    platform.answer = ({ path }) =>
      path === '/v0/sandboxes/box'
        ? Response.json({
            ...box,
            status,
            metadata: { name: 'box', url: `${platform.origin}/main/sandboxes/box` },
          })
        : Response.json([])
  }
  at('BUILDING')
  expect((await platform.run(['get', 'sandbox', 'box', 'process', '--json'])).stdout).toBe('[]\n')
  at('ARCHIVED')
  const refused = await platform.run(['get', 'sandbox', 'box', 'process'])
  expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('hutch sandbox unarchive box')])
})

test('the newest tag of an image', async () => {
  const tags = ['2030-01-02', '2030-01-03', '2030-01-01'].map((updatedAt, index) => ({
    name: `v${index}`,
    updatedAt,
  }))
  platform.answer = () => Response.json({ metadata: {}, spec: { tags } })
  expect((await platform.run(['get', 'image', 'agent/one', '--latest'])).stdout).toBe('agent/one:v1\n')
})

test.each([
  [['get', 'sandbxes'], 2, 'did you mean sandboxes?'],
  [['get', 'previews'], 2, 'hutch get previews SANDBOX'],
  [['get', 'sandboxes', '-o', 'xml'], 2, 'none of pretty, yaml, json, table'],
  [['get', 'sandbox', 'nobody'], 1, 'hutch get sandboxes'],
  [['get', 'sandbox', 'box', 'nothing'], 2, 'sandbox box has no "nothing" to get'],
  [['delete', 'sandbox'], 2, 'hutch delete sandbox NAME...'],
  [['delete', 'preview', 'box'], 2, 'hutch delete preview SANDBOX NAME...'],
  [['delete'], 2, 'or -f FILE'],
  [['apply'], 2, 'hutch apply -f FILE'],
  [['apply', '-f', 'none.yaml'], 1, 'none.yaml does not exist'],
])('%j is answered with what to type', async (words, code, message) => {
  sandboxes()
  const answer = await platform.run(words)
  expect([answer.code, answer.stderr]).toEqual([code, expect.stringContaining(message)])
})

const manifests = `
kind: Sandbox
metadata: { name: box, labels: { tier: "\${TIER}" } }
spec:
  runtime:
    memory: \${MEMORY:512}
    envs:
      - name: TOKEN
        value: $secrets.TOKEN
      - { name: SHELL_LINE, value: "echo $HOME \${UNSET}" }
---
---
kind: Preview
metadata: { name: web, resourceName: box }
spec: { port: 3000 }
`

test('apply creates or replaces each document, its placeholders filled in', async () => {
  writeFileSync(join(directory, 'all.yaml'), manifests)
  writeFileSync(join(directory, '.env'), 'TOKEN="a: b # \\"c\\""\nTIER=12\n')
  platform.answer = ({ method, path, body }) => {
    if (method === 'POST' && path === '/v0/sandboxes')
      return Response.json({ error: 'taken' }, { status: 409 })
    return method === 'PUT' && path.endsWith('/web') ? null : Response.json(JSON.parse(body))
  }
  const { code, stdout, stderr } = await platform.run(['apply', '-f', 'all.yaml'], { cwd: directory })
  expect([code, stdout]).toEqual([0, 'sandbox/box configured\npreview/web created\n'])
  expect(platform.log).toEqual([
    'POST /v0/sandboxes',
    'PUT /v0/sandboxes/box',
    'PUT /v0/sandboxes/box/previews/web',
    'POST /v0/sandboxes/box/previews',
  ])
  expect(JSON.parse(platform.seen[1]?.body ?? '')).toEqual({
    metadata: { name: 'box', labels: { tier: '12' } },
    spec: {
      runtime: {
        memory: 512,
        envs: [
          { name: 'TOKEN', value: 'a: b # "c"' },
          { name: 'SHELL_LINE', value: `echo $HOME \${UNSET}` },
        ],
      },
    },
  })
  expect(stderr).toContain('UNSET is not set')
  expect(stderr).not.toContain('HOME is not set')
})

test('apply goes on after a refusal, tells of it and fails', async () => {
  const text = 'kind: Sandbox\nmetadata: {name: bad}\n---\nkind: Sandbox\nmetadata: {name: good}\n'
  platform.answer = ({ body }) =>
    body.includes('bad')
      ? Response.json({ error: 'memory is wrong' }, { status: 400 })
      : Response.json(JSON.parse(body))
  const { code, stdout, stderr } = await platform.run(['apply', '-f', '-'], { stdin: text })
  expect([code, stdout]).toEqual([1, 'sandbox/good created\n'])
  expect(stderr).toContain('sandbox/bad: memory is wrong')
  expect(stderr).toContain('1 of 2 could not be applied')
})

test.each([
  ['kind: [', 'is no YAML'],
  ['metadata: {name: x}', 'kind is missing'],
  ['kind: Sandbox', 'metadata.name is missing'],
  ['kind: Nonsense\nmetadata: {name: x}', 'kind Nonsense is none of Agent'],
  ['kind: Preview\nmetadata: {name: x}', 'metadata.resourceName is missing'],
  ['kind: Sandbox\nmetadata: {name: x}\nspec: [1]', 'spec is to be a mapping'],
  ['# nothing', 'has no manifest'],
  [
    'kind: Sandbox\nmetadata: {name: good}\n---\nkind: Nonsense\nmetadata: {name: x}',
    'kind Nonsense is none of',
  ],
  [
    'kind: Sandbox\nmetadata: {name: good}\n---\nkind: Image\nmetadata: {name: x}',
    'document 2: a image is not made',
  ],
])('a manifest %j is refused before anything is changed', async (text, message) => {
  const { code, stderr } = await platform.run(['apply', '-f', '-'], { stdin: text })
  expect([code, stderr]).toEqual([1, expect.stringContaining(message)])
  expect(platform.seen).toEqual([])
})

test('delete takes names, images with their tags, and manifests from the last to the first', async () => {
  const folder = join(directory, 'manifests')
  mkdirSync(join(folder, 'below'), { recursive: true })
  writeFileSync(join(folder, 'a.yaml'), 'kind: Sandbox\nmetadata: {name: first}\n')
  writeFileSync(join(folder, 'below', 'b.yml'), 'kind: Sandbox\nmetadata: {name: second}\n')
  platform.answer = ({ path }) => (path.endsWith('/gone') ? null : Response.json({}))
  expect((await platform.run(['delete', 'sbx', 'one', 'gone', 'two'])).code).toBe(1)
  expect((await platform.run(['delete', 'image', 'agent/one:v1'])).stdout).toBe('agent/one:v1\n')
  expect((await platform.run(['delete', 'preview', 'box', 'web'])).code).toBe(0)
  expect((await platform.run(['delete', '-f', folder, '-R'])).stdout).toBe('sandbox/second\nsandbox/first\n')
  expect(platform.log).toEqual([
    'DELETE /v0/sandboxes/one',
    'DELETE /v0/sandboxes/gone',
    'DELETE /v0/sandboxes/two',
    'DELETE /v0/images/agent/one/tags/v1',
    'DELETE /v0/sandboxes/box/previews/web',
    'DELETE /v0/sandboxes/second',
    'DELETE /v0/sandboxes/first',
  ])
})

test('watch prints again what changed, and ends when it is told to', async () => {
  let status = 'DEPLOYING'
  platform.answer = () => Response.json({ ...box, status })
  const child = platform.spawn(['get', 'sandbox', 'box', '--watch', '-o', 'json'])
  let text = ''
  for await (const chunk of child.stdout) {
    text += new TextDecoder().decode(chunk)
    if (text.includes('DEPLOYING')) status = 'DEPLOYED'
    if (text.includes('"status": "DEPLOYED",\n    "state"')) break
  }
  child.kill('SIGINT')
  await child.exited
  expect(text).toContain('DEPLOYING')
})
