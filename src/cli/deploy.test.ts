import { afterAll, beforeEach, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { followScript, type Script, unzip } from './test-deploys.ts'
import { type SeenRequest, TestPlatform } from './test-platform.ts'

// deploy and push as people type them, against a platform that follows a script.

const platform = new TestPlatform()
const directory = mkdtempSync(join(tmpdir(), 'hutch-deploy-test-'))
const temporary = join(directory, 'tmp')
mkdirSync(temporary)
afterAll(() => {
  platform[Symbol.dispose]()
  rmSync(directory, { recursive: true, force: true })
})
beforeEach(() => {
  platform.seen.length = 0
})

let folders = 0
/** A folder with these files. */
function project(files: Record<string, string>): string {
  const folder = join(directory, `project-${folders++}`, 'My Agent')
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
  return folder
}

const hello = {
  'blaxel.toml':
    'type = "agent"\n[labels]\nteam = "a"\n[env]\nCITY = "Paris"\nPLACE = "$WHERE"\n[runtime]\nmemory = 1024\n',
  'index.js': 'Bun.serve({ port: process.env.PORT, fetch: () => new Response("hi") })\n',
}

const script = (steps: Script) => followScript(platform, steps)

function uploaded(): SeenRequest {
  const found = platform.seen.findLast(({ path }) => path.startsWith('/-/uploads/'))
  if (found === undefined) throw new Error('nothing was uploaded')
  return found
}

async function run(args: string[], cwd: string, env: Record<string, string> = {}) {
  const ran = await platform.run(args, { cwd, env: { TMPDIR: temporary, ...env } })
  // Archives hold code: none stays.
  expect(readdirSync(temporary)).toEqual([])
  return ran
}

describe('deploy', () => {
  test('sends the resource, then the archive without a key, and waits for the revision', async () => {
    script({ statuses: ['UPLOADING', 'BUILDING', 'DEPLOYING', 'DEPLOYED'], log: ['installing', 'built'] })
    const folder = project({ ...hello, '.env': 'TOKEN=s3cret\nPORT=1\nBL_API_KEY=k\n' })
    const { code, stdout, stderr } = await run(['deploy', '-s', 'MORE=x=y', '-e', 'FLAG=on'], folder, {
      WHERE: 'here',
    })
    expect([code, stdout]).toEqual([0, `${platform.origin}/main/agents/my-agent\n`])
    expect(platform.log.slice(0, 3)).toEqual([
      'PUT /v0/agents/my-agent?upload=true',
      'POST /v0/agents?upload=true',
      expect.stringContaining('PUT /-/uploads/'),
    ])
    expect(JSON.parse(platform.seen[1]?.body ?? '')).toEqual({
      metadata: { name: 'my-agent', labels: { team: 'a', 'x-blaxel-auto-generated': 'true' } },
      spec: {
        runtime: {
          memory: 1024,
          envs: [
            { name: 'CITY', value: 'Paris' },
            { name: 'PLACE', value: 'here' },
            { name: 'TOKEN', value: 's3cret', secret: true },
            { name: 'MORE', value: 'x=y', secret: true },
            { name: 'FLAG', value: 'on' },
          ],
        },
      },
    })
    const { headers } = uploaded()
    expect(headers.get('content-type')).toBe('application/zip')
    expect(headers.get('x-blaxel-authorization') ?? headers.get('authorization')).toBeNull()
    expect([...unzip(uploaded()).keys()]).toEqual(['blaxel.toml', 'index.js'])
    expect(stderr).toContain('Building agent my-agent ...\n')
    expect(stderr).toContain('  installing\n  built\n')
    expect(stderr).toContain('next: hutch run agent my-agent')
    expect(stderr).toContain('BL_API_KEY, PORT are set by the platform')
    expect(stderr).not.toContain('s3cret')
  })

  test('says why a build failed, what it said last and what to type, and exits with 1', async () => {
    script({
      statuses: ['BUILDING', 'FAILED'],
      message: 'install failed (npm ci):\nnpm error 404 no-such-package',
      exists: true,
    })
    const folder = project(hello)
    const { code, stdout, stderr } = await run(['deploy'], folder)
    expect([code, stdout]).toEqual([1, ''])
    expect(stderr).toContain(
      'agent my-agent was not deployed: install failed (npm ci):\nnpm error 404 no-such-package',
    )
    expect(stderr).toContain('try:   hutch logs agent my-agent --build')
    script({ statuses: ['BUILDING', 'DEPLOYING', 'FAILED'], message: 'it ended', exists: true })
    // Its own last lines are in its log, and not among what the build said.
    expect((await run(['deploy'], folder)).stderr).toEndWith('try:   hutch logs agent my-agent\n')
    script({ statuses: ['BUILDING', 'FAILED'], message: 'install failed (npm ci)', exists: true })
    const json = await run(['deploy', '--json'], folder)
    expect(json.code).toBe(1)
    expect(JSON.parse(json.stdout)).toMatchObject({
      success: false,
      resources: [
        { kind: 'agent', name: 'my-agent', status: 'FAILED', error: expect.stringContaining('npm ci') },
      ],
    })
  })

  test('asks for another address when an upload failed, and gives up on an archive that is refused', async () => {
    script({ statuses: ['DEPLOYED'], uploads: [503], exists: true })
    const folder = project(hello)
    expect((await run(['deploy'], folder)).code).toBe(0)
    const changes = platform.log.filter((line) => line.startsWith('PUT') && !line.includes('/-/'))
    expect(changes).toEqual(Array(2).fill('PUT /v0/agents/my-agent?upload=true'))
    script({ statuses: ['DEPLOYED'], uploads: [413], exists: true })
    const refused = await run(['deploy'], folder)
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('not now')])
  })

  test('prints the secret of a callback, which is answered once, whatever comes after that', async () => {
    script({ statuses: ['DEPLOYED'], uploads: [503], exists: true })
    const answer = platform.answer
    let isTold = false
    platform.answer = async (request) => {
      const answered = await answer(request)
      if (request.method !== 'PUT' || !request.path.startsWith('/v0/') || answered === null) return answered
      const resource = (await answered.json()) as { spec: { triggers: { configuration: object }[] } }
      for (const { configuration } of resource.spec.triggers)
        Object.assign(configuration, { callbackSecret: isTold ? '********' : 'whsec_once' })
      isTold = true
      return Response.json(resource, { headers: answered.headers })
    }
    const toml =
      'type = "agent"\n[[triggers]]\nid = "later"\ntype = "http-async"\n[triggers.configuration]\ncallbackUrl = "https://example.com/hook"\n'
    const folder = project({ ...hello, 'blaxel.toml': toml })
    const { code, stderr } = await run(['deploy'], folder)
    expect([code, stderr.match(/whsec_once/g)]).toEqual([0, ['whsec_once']])
    expect(stderr).toContain(
      'callbacks of the trigger later are signed with whsec_once, which is not shown again',
    )
    isTold = false
    const { stdout } = await run(['deploy', '-o', 'json'], folder)
    expect(JSON.parse(stdout)).toMatchObject({ resources: [{ callbackSecrets: { later: 'whsec_once' } }] })
  })

  test('archives what the rules leave, links as what they lead to, with their modes', async () => {
    script({ statuses: ['DEPLOYED'], exists: true })
    const folder = project({
      ...hello,
      'run.sh': '#!/bin/sh\n',
      'node_modules/x/index.js': '',
      'sub/node_modules/y.js': '',
      'sub/.env.local': 'SECRET=1',
      '.git/config': '',
      'dist/out.js': '',
      'distribution/keep.js': '',
      '.env.build': 'NPM_TOKEN=1',
    })
    chmodSync(join(folder, 'run.sh'), 0o755)
    writeFileSync(join(directory, 'outside.txt'), 'shared')
    symlinkSync(join(directory, 'outside.txt'), join(folder, 'linked.txt'))
    symlinkSync('.', join(folder, 'sub', 'circle'))
    symlinkSync('/nowhere/at/all', join(folder, 'broken'))
    expect((await run(['deploy'], folder)).code).toBe(0)
    const files = unzip(uploaded())
    expect([...files.keys()].sort()).toEqual([
      '.env.build',
      'blaxel.toml',
      'distribution/',
      'distribution/keep.js',
      'index.js',
      'linked.txt',
      'run.sh',
      'sub/',
    ])
    expect(files.get('linked.txt')?.text).toBe('shared')
    expect(files.get('run.sh')?.mode).toBe(0o755)
    writeFileSync(join(folder, '.blaxelignore'), '# not these\n/distribution/\n*.sh # scripts\nlinked.txt\n')
    expect((await run(['deploy'], folder)).code).toBe(0)
    const left = [...unzip(uploaded()).keys()]
    for (const path of ['run.sh', 'linked.txt', 'distribution/keep.js', 'sub/.env.local', '.git/config'])
      expect(left).not.toContain(path)
    expect(left).toContain('dist/out.js')
    for (const path of ['dist/other.js', 'sub/run.sh']) writeFileSync(join(folder, path), '')
    writeFileSync(join(folder, '.blaxelignore'), 'dist\n!dist/out.js\n/run.sh\n!.git\n')
    expect((await run(['deploy'], folder)).code).toBe(0)
    const taken = [...unzip(uploaded()).keys()]
    for (const path of ['dist/out.js', 'sub/run.sh']) expect(taken).toContain(path)
    for (const path of ['dist/', 'dist/other.js', 'run.sh', '.git/config']) expect(taken).not.toContain(path)
  })

  test('a folder below with a Dockerfile is sent with all that is around it, under its own name', async () => {
    script({ statuses: ['DEPLOYED'], exists: true })
    const folder = project({
      'blaxel.toml': 'name = "root"\ntype = "function"\n',
      Dockerfile: 'FROM root\n',
      'shared/lib.js': '',
      'inner/blaxel.toml': 'name = "inner"\ntype = "agent"\n',
      'inner/Dockerfile': 'FROM scratch\nCOPY shared shared\n',
      'inner/.env': 'ONE=inner\n',
      '.env': 'ONE=root\nTWO=root\n',
      'plain/blaxel.toml': 'name = "plain"\ntype = "agent"\n',
      'plain/main.py': 'import os; os.environ["PORT"]\n',
    })
    expect((await run(['deploy', '-d', 'inner'], folder)).code).toBe(0)
    const files = unzip(uploaded())
    expect(files.get('blaxel.toml')?.text).toContain('"inner"')
    expect(files.get('Dockerfile')?.text).toContain('COPY shared')
    expect(files.has('shared/lib.js')).toBe(true)
    const { spec } = JSON.parse(platform.seen[0]?.body ?? '') as { spec: { runtime: { envs: object[] } } }
    expect(spec.runtime.envs).toEqual([
      { name: 'ONE', value: 'inner', secret: true },
      { name: 'TWO', value: 'root', secret: true },
    ])
    // Without one nothing says what else belongs to it.
    expect((await run(['deploy', '-d', 'plain'], folder)).code).toBe(0)
    expect([...unzip(uploaded()).keys()].sort()).toEqual(['blaxel.toml', 'main.py'])
  })

  test('all packages of a monorepo are deployed, and one that fails does not keep the others', async () => {
    script({ statuses: ['DEPLOYED'], exists: true })
    const answer = platform.answer
    platform.answer = (request) =>
      request.path.includes('/functions/tools') && request.method === 'PUT'
        ? Response.json({ error: 'memory is wrong' }, { status: 400 })
        : answer(request)
    const folder = project({
      'blaxel.toml':
        'skipRoot = true\n[agent.one]\npath = "one"\n[function.tools]\npath = "tools"\n[agent.two]\npath = "two"\n',
      'one/main.py': 'PORT',
      'tools/package.json': '{"scripts":{"start":"node x"}}',
      'two/main.py': 'PORT',
      '.env': 'SHARED=1\n',
    })
    const { code, stdout, stderr } = await run(['deploy'], folder)
    expect(code).toBe(1)
    expect(stdout.split('\n').map((line) => line.split('/').at(-1))).toEqual(['one', 'two', ''])
    expect(stderr).toContain('tools: memory is wrong')
    expect(stderr).toContain('1 of 3 could not be deployed')
    expect(platform.seen[0]?.body).toContain('SHARED')
  })

  test('manifests beside it are applied first', async () => {
    script({ statuses: ['DEPLOYED'], exists: false })
    const folder = project({ ...hello, '.blaxel/box.yaml': 'kind: Sandbox\nmetadata: {name: box}\n' })
    expect((await run(['deploy'], folder)).code).toBe(0)
    expect(platform.log[0]).toBe('POST /v0/sandboxes')
    expect(unzip(uploaded()).has('.blaxel/box.yaml')).toBe(false)
    platform.answer = ({ path }) =>
      path === '/v0/sandboxes' ? Response.json({ error: 'spec.x: no', code: 400 }, { status: 400 }) : null
    const { code, stderr } = await run(['deploy'], folder)
    expect([code, stderr]).toEqual([1, expect.stringMatching(/\.blaxel\/box\.yaml: spec\.x: no\n/)])
  })

  test('a --timeout that is none is told of before anything is sent', async () => {
    const { code, stderr } = await run(['deploy', '--timeout', 'soon'], project(hello))
    expect([code, stderr]).toEqual([2, expect.stringContaining('--timeout')])
    expect(platform.seen).toEqual([])
  })

  test('a dry run prints what would be sent, secrets hidden, and sends nothing', async () => {
    const folder = project({ ...hello, '.env': 'TOKEN=s3cret\n' })
    const { code, stdout } = await run(['deploy', '--dryrun', '--traffic', '20'], folder)
    expect(code).toBe(0)
    expect(stdout).toContain('kind: Agent')
    expect(stdout).toContain('traffic: 20')
    expect(stdout).toMatch(/# +\d+ B {2}index\.js/)
    expect(stdout).not.toContain('s3cret')
    expect(Bun.YAML.parse(stdout)).toMatchObject({ kind: 'Agent' })
    const json = JSON.parse((await run(['deploy', '--dryrun', '--json'], folder)).stdout)
    expect(json).toMatchObject([{ kind: 'Agent', files: [{ path: 'blaxel.toml' }, { path: 'index.js' }] }])
    expect(platform.seen).toEqual([])
  })

  test('an image that is named is not built; --skip-build keeps the one there is', async () => {
    script({ statuses: ['DEPLOYED'], exists: true })
    const folder = project({ 'blaxel.toml': 'type = "agent"\nname = "x"\nimage = "docker.io/a/b:1"\n' })
    expect((await run(['deploy', '-c', 'docker.io=me:pw'], folder)).code).toBe(0)
    expect(platform.log[0]).toBe('PUT /v0/agents/x')
    const { metadata, spec } = JSON.parse(platform.seen[0]?.body ?? '')
    expect([metadata.labels, spec.runtime.image]).toEqual([{}, 'docker.io/a/b:1'])
    expect(JSON.parse(spec.runtime.dockerConfig)).toEqual({ auths: { 'docker.io': { auth: btoa('me:pw') } } })
    const answer = platform.answer
    platform.seen.length = 0
    platform.answer = (request) =>
      request.method === 'GET' && platform.seen.length === 1
        ? Response.json({ metadata: {}, spec: { runtime: { image: 'agent/x:rev-1' } } })
        : answer(request)
    const skipped = await run(
      ['deploy', '--skip-build', '-t', 'agent', '-n', 'x'],
      project({ 'main.py': '' }),
    )
    expect(skipped.code).toBe(0)
    expect(platform.seen[1]?.body).toContain('agent/x:rev-1')
  })

  const event = (second: number, type: string, status: string) => ({
    time: `2030-01-01T00:00:0${second}Z`,
    type,
    status,
    message: status,
  })

  test('what has no revisions is followed by what happened since, in true time', async () => {
    const before = [event(1, 'deployment', 'FAILED'), event(2, 'deployment', 'UPLOADING')]
    let looks = 0
    platform.answer = ({ method, path }) => {
      if (path.startsWith('/-/uploads/')) return Response.json({})
      if (path.includes('/logs')) return Response.json({ box: { logs: [], totalCount: 0 } })
      const later = [
        event(3, 'ai.blaxel.controlplane.buildimage.started', 'BUILDING'),
        event(4, 'standby', 'FAILED'),
        event(5, 'deployment', 'DEPLOYED'),
      ]
      const events = method === 'GET' ? [...before, ...later.slice(0, looks++)] : before
      const headers = { 'x-blaxel-upload-url': `${platform.origin}/-/uploads/t` }
      return Response.json({ metadata: { name: 'box' }, spec: {}, status: 'BUILDING', events }, { headers })
    }
    const { code, stderr } = await run(
      ['deploy', '-t', 'sandbox', '-n', 'box'],
      project({ Dockerfile: 'FROM x' }),
    )
    expect([code, looks]).toEqual([0, 4])
    expect(stderr).toContain('Building sandbox box')
    expect(stderr).toContain('next: hutch sandbox exec box -- ls')
  })

  test('a sandbox that cannot be made is told of at once, with its reason', async () => {
    platform.answer = ({ method, path }) => {
      if (path.startsWith('/-/uploads/')) return Response.json({})
      if (path.includes('/logs')) return Response.json({ box: { logs: [], totalCount: 0 } })
      const events =
        method === 'GET'
          ? [
              event(2, 'deployment', 'UPLOADING'),
              { ...event(3, 'instance', 'FAILED'), message: 'no such base' },
            ]
          : [event(2, 'deployment', 'UPLOADING')]
      const headers = { 'x-blaxel-upload-url': `${platform.origin}/-/uploads/t` }
      return Response.json({ metadata: { name: 'box' }, spec: {}, status: 'BUILDING', events }, { headers })
    }
    const { code, stderr } = await run(
      ['deploy', '-t', 'sandbox', '-n', 'box'],
      project({ Dockerfile: 'FROM x' }),
    )
    expect(code).toBe(1)
    expect(stderr).toContain('sandbox box was not deployed: no such base')
  })

  test('a revision that gets no requests is told of, with what would lead them to it', async () => {
    script({ statuses: ['DEPLOYED'], exists: true })
    const answer = platform.answer
    platform.answer = async (request) => {
      const response = await answer(request)
      if (request.method !== 'GET' || !request.path.startsWith('/v0/agents/')) return response
      const resource = (await response?.json()) as { spec: object }
      return Response.json({ ...resource, spec: { ...resource.spec, revision: { active: 'rev-1' } } })
    }
    const { code, stderr } = await run(['deploy', '--traffic', '0'], project(hello))
    expect([code, JSON.parse(platform.seen[0]?.body ?? '').spec.revision]).toEqual([0, { traffic: 0 }])
    expect(stderr).toContain('no requests go to rev-2 yet: rev-1 serves')
    expect(stderr).toContain('next: hutch traffic agent my-agent rev-2')
  })

  test('--detach returns once the code is there', async () => {
    script({ statuses: ['BUILDING'], exists: true })
    const { code, stderr } = await run(['deploy', '--detach'], project(hello))
    expect([code, stderr]).toEqual([0, expect.stringContaining('hutch get agent my-agent --watch')])
    expect(platform.log.some((line) => line.startsWith('GET'))).toBe(false)
  })

  test('Ctrl-C says what goes on, and exits with 130', async () => {
    script({ statuses: ['BUILDING'], exists: true })
    const child = platform.spawn(['deploy'], { cwd: project(hello), env: { TMPDIR: temporary } })
    let said = ''
    for await (const chunk of child.stderr) {
      said += new TextDecoder().decode(chunk)
      if (said.includes('Building agent')) break
    }
    child.kill('SIGINT')
    expect(await child.exited).toBe(130)
    expect(readdirSync(temporary)).toEqual([])
  })

  test.each([
    [{ 'main.py': 'PORT' }, [], 2, 'type = "agent"'],
    [hello, ['--traffic', '101'], 2, 'no percentage'],
    [hello, ['-t', 'work'], 2, 'type "work" is none of agent, function, application, sandbox, job'],
    [{ 'blaxel.toml': 'type = "agent"\nport = "x"' }, [], 1, 'blaxel.toml: port is "x"'],
    [hello, ['-e', 'none.env'], 1, 'none.env does not exist'],
    [hello, ['-d', 'nowhere'], 1, 'nowhere is no folder'],
    [hello, ['-c', 'password'], 2, 'HOST=USER:PASSWORD'],
    [hello, ['--timeout', 'soon'], 2, '--timeout must be a duration'],
  ] as [Record<string, string>, string[], number, string][])(
    '%#: %j is answered with what would be right',
    async (files, args, code, message) => {
      script({ statuses: ['DEPLOYED'], exists: true })
      const ran = await run(['deploy', ...args], project(files))
      expect([ran.code, ran.stderr]).toEqual([code, expect.stringContaining(message)])
    },
  )

  test('what is likely to go wrong is said before', async () => {
    script({ statuses: ['DEPLOYED'], exists: true })
    const nothing = await run(['deploy'], project({ 'blaxel.toml': 'type = "agent"' }))
    expect(nothing.stderr).toContain('warning: my-agent: no language was found here')
    const unset = await run(['deploy'], project(hello))
    expect(unset.stderr).toContain('warning: WHERE is not set')
    const sandbox = await run(['deploy', '-t', 'sandbox'], project({ Dockerfile: 'FROM x' }))
    expect(sandbox.stderr).toContain('sandbox-api')
  })
})

test('push builds an image and waits for it', async () => {
  let looks = 0
  platform.answer = ({ method, path }) => {
    if (path.startsWith('/-/uploads/')) return Response.json({})
    if (path.includes('/observability/logs'))
      return Response.json({ 'my-agent': { logs: [], totalCount: 0 } })
    if (method === 'POST')
      return Response.json({}, { headers: { 'x-blaxel-upload-url': `${platform.origin}/-/uploads/t` } })
    const status = ++looks < 3 ? 'BUILDING' : 'BUILT'
    return Response.json({
      metadata: { name: 'my-agent', resourceType: 'agent', status },
      spec: { tags: [] },
    })
  }
  const { code, stdout } = await run(['push'], project(hello))
  expect([code, stdout]).toEqual([0, 'agent/my-agent\n'])
  expect(platform.seen[0]).toMatchObject({ path: '/v0/images?upload=true' })
  expect(JSON.parse(platform.seen[0]?.body ?? '')).toEqual({ name: 'my-agent', resourceType: 'agent' })
  expect(unzip(uploaded()).has('index.js')).toBe(true)
  expect(existsSync(temporary)).toBe(true)
})
