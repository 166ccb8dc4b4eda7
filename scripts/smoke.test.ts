import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually } from '../src/lib/test-eventually.ts'
import { buildIfStale, executablePath } from './build.ts'
import { capture } from './capture.ts'
import { canIsolate } from './host.ts'
import { cleanEnvironment, hutch, RunningHutch } from './platform.ts'

// Drives dist/hutch, the file that people run, rather than the sources.

await buildIfStale()
const usable = canIsolate()

const root = join(import.meta.dir, '..')
const directory = mkdtempSync(join(tmpdir(), 'hutch-smoke-'))
const dataDir = join(directory, 'data')
const node = Bun.which('node')
let platform: RunningHutch

afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

async function terminalAddress(): Promise<string> {
  const { BL_API_KEY, BL_WORKSPACE, BL_RUN_URL } = await platform.env()
  return `${BL_RUN_URL}/${BL_WORKSPACE}/sandboxes/box/terminal?token=${BL_API_KEY}`
}

/** A request of the sandbox's own API, with the first admin's key. */
async function api<Answer>(path: string, init: RequestInit = {}): Promise<Answer> {
  const { BL_API_KEY, BL_WORKSPACE, BL_RUN_URL } = await platform.env()
  const response = await fetch(`${BL_RUN_URL}/${BL_WORKSPACE}/sandboxes/box${path}`, {
    ...init,
    headers: { authorization: `Bearer ${BL_API_KEY}`, 'content-type': 'application/json' },
  })
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`)
  return (await response.json()) as Answer
}

describe('npm start', () => {
  test('ends when npm is told to, sandboxes and all', async () => {
    const npm = Bun.which('npm')
    if (npm === null) return void console.warn('skipped, since npm is not installed')
    const child = Bun.spawn(
      [npm, 'start', '--silent', '--', '--port', '0', '--data-dir', join(directory, 'npm')],
      {
        cwd: root,
        env: cleanEnvironment(),
        stdio: ['ignore', 'pipe', 'ignore'],
      },
    )
    const reader = child.stdout.getReader()
    let text = ''
    while (!text.includes('\n')) {
      const { done, value } = await reader.read()
      if (done) throw new Error(`npm start ended by itself: ${text}`)
      text += new TextDecoder().decode(value)
    }
    const url = text.slice('ready '.length).trim()
    expect((await fetch(`${url}/healthz`)).status).toBe(200)
    child.kill('SIGTERM')
    await child.exited
    await eventually('hutch ended', () =>
      fetch(`${url}/healthz`).then(
        () => false,
        () => true,
      ),
    )
  }, 120_000)
})

describe('the executable by itself', () => {
  test('version and help need no platform', async () => {
    expect((await hutch(['version'])).stdout).toMatch(/^hutch \d+\.\d+\.\d+ \([0-9a-z]+\)\n$/)
    expect((await hutch(['--version'])).code).toBe(0)
    const help = await hutch(['--help'])
    expect(help.code).toBe(0)
    for (const name of ['up', 'env', 'doctor', 'sandbox exec', 'keys create', 'systemd']) {
      expect(help.stdout).toContain(name)
      const own = await hutch([...name.split(' '), '--help'])
      expect(own.code).toBe(0)
      expect(own.stdout).toContain('--json')
    }
  })

  test('a mistyped command or flag exits with 2 and names the likely one', async () => {
    const command = await hutch(['sandbx', 'ls'])
    expect([command.code, command.stderr]).toEqual([
      2,
      expect.stringContaining('did you mean hutch sandbox ls?'),
    ])
    const short = await hutch(['ls'])
    expect([short.code, short.stderr]).toEqual([2, expect.stringContaining('did you mean hutch sandbox ls?')])
    const group = await hutch(['images', '--help'])
    expect([group.code, group.stdout]).toEqual([0, expect.stringContaining('images import')])
    const flag = await hutch(['up', '--prot', '1'])
    expect([flag.code, flag.stderr]).toEqual([2, expect.stringContaining('did you mean --port?')])
    const value = await hutch(['up', '--port', '99999', '--data-dir', dataDir])
    expect([value.code, value.stderr]).toEqual([2, expect.stringContaining('0 to 65535')])
  })

  test('without a platform, env says how to start one', async () => {
    const { code, stderr, stdout } = await hutch(['env', '--data-dir', join(directory, 'empty')])
    expect([code, stdout]).toEqual([1, ''])
    expect(stderr).toContain('hutch up --data-dir')
    expect((await hutch(['status', '--data-dir', join(directory, 'empty')])).code).toBe(1)
  })

  test("the current directory's .env and bunfig.toml are not obeyed", async () => {
    const place = join(directory, 'cwd')
    mkdirSync(place)
    writeFileSync(join(place, '.env'), 'HUTCH_DATA_DIR=/from/dotenv\n')
    writeFileSync(join(place, 'bunfig.toml'), 'preload = ["./preload.ts"]\n')
    writeFileSync(join(place, 'preload.ts'), 'console.log("PRELOADED")\n')
    const { stdout } = await capture([executablePath, 'status', '--json'], {
      cwd: place,
      env: cleanEnvironment(),
    })
    expect(stdout).not.toContain('PRELOADED')
    expect(JSON.parse(stdout).dataDir).not.toBe('/from/dotenv')
  })

  test('the unit names this executable', async () => {
    expect((await hutch(['systemd'])).stdout).toContain(`ExecStart=${executablePath} up --keep-instances`)
  })
})

describe.skipIf(!usable)('a platform on a fresh data directory', () => {
  beforeAll(async () => {
    platform = await RunningHutch.start({ dataDir })
  }, 120_000)

  test('env prints what a shell reads', async () => {
    const script = `eval "$("${executablePath}" env)" && printf '%s ' "$BL_API_URL" "$BL_RUN_URL" "$BL_WORKSPACE" "$BL_DISABLE_H2"`
    const { stdout } = await capture(['sh', '-c', script], {
      env: { ...cleanEnvironment(), HUTCH_DATA_DIR: dataDir },
    })
    expect(stdout.trim().split(' ')).toEqual([`${platform.url}/v0`, platform.url, 'main', '1'])
    expect(Object.keys(await platform.env())).toEqual([
      'BL_API_URL',
      'BL_RUN_URL',
      'BL_WORKSPACE',
      'BL_API_KEY',
      'BL_DISABLE_H2',
    ])
  })

  test('secrets are readable by their owner alone', () => {
    for (const name of ['credentials.json', 'secret.key']) {
      expect(statSync(join(dataDir, name)).mode & 0o777).toBe(0o600)
    }
  })

  test('status says ready', async () => {
    const { code, stdout } = await platform.run(['status', '--json'])
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({
      running: true,
      state: 'ready',
      url: platform.url,
      runtime: 'namespace',
      isolation: 'kernel-shared',
      dataDir,
    })
  })

  test('a second up on the same data directory says who holds it', async () => {
    const { code, stderr, stdout } = await platform.run(['up', '--port', '0'])
    expect([code, stdout]).toEqual([1, ''])
    expect(stderr).toContain(String(platform.child.pid))
    expect(stderr).toContain('hutch status')
  })

  test('a Host that is not ours is refused with 421', async () => {
    const response = await fetch(`${platform.url}/v0/sandboxes`, { headers: { host: 'evil.example' } })
    expect(response.status).toBe(421)
  })

  test.skipIf(node === null)(
    'the unmodified npm package creates, writes, runs, reads and previews',
    async () => {
      const { code, stdout, stderr } = await capture(
        [node ?? '', join(root, 'fixtures', 'demo', 'main.mjs')],
        {
          cwd: join(root, 'fixtures', 'demo'),
          env: { ...cleanEnvironment(), ...(await platform.env()) },
        },
      )
      expect(`${stdout}${stderr}${code === 0 ? '' : platform.log}`).toContain(
        'fetch its page through a preview',
      )
      expect(stdout).not.toContain('FAILED')
      expect(code).toBe(0)
    },
    120_000,
  )

  test('sandbox create, get and ls', async () => {
    const created = await platform.run([
      'sandbox',
      'create',
      'box',
      '--memory',
      '512',
      '-l',
      'kind=smoke',
      '-e',
      'A=b c',
    ])
    expect([created.code, created.stdout]).toEqual([0, 'box\n'])
    const again = await platform.run(['sandbox', 'create', 'box'])
    expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('--if-not-exists')])
    const { stdout } = await platform.run(['sandbox', 'get', 'box', '--json'])
    expect(JSON.parse(stdout)).toMatchObject({
      metadata: { name: 'box', labels: { kind: 'smoke' } },
      spec: { runtime: { memory: 512 } },
      status: 'DEPLOYED',
    })
    expect((await platform.run(['sandbox', 'ls'])).stdout).toMatch(/^NAME +STATUS .*\nbox +DEPLOYED /)
  })

  test('its tools search a codebase, on a thread of the executable', async () => {
    const content = 'export function openSession(user) {\n  return user\n}\n'
    await api('/filesystem/src/session.ts', { method: 'PUT', body: JSON.stringify({ content }) })
    const params = { name: 'codegenCodebaseSearch', arguments: { query: 'where do users log in' } }
    const { result } = await api<{ result: { structuredContent: { results: { path: string }[] } } }>('/mcp', {
      method: 'POST',
      body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/call', params }),
    })
    expect(result.structuredContent.results.map(({ path }) => path)).toEqual(['src/session.ts'])
  })

  test('exec passes output and exit code on', async () => {
    const script = 'echo out; echo err >&2; echo "$A"; exit 7'
    const { code, stdout, stderr } = await platform.run(['sandbox', 'exec', 'box', '--', 'sh', '-c', script])
    expect({ code, stdout, stderr }).toEqual({ code: 7, stdout: 'out\nb c\n', stderr: 'err\n' })
    const quoted = await platform.run([
      'sandbox',
      'exec',
      'box',
      '--',
      'printf',
      '%s|',
      "it's",
      '$HOME',
      '',
      'a  b',
    ])
    expect(quoted.stdout).toBe("it's|$HOME||a  b|")
    const missing = await platform.run(['sandbox', 'exec', 'none', '--', 'true'])
    expect([missing.code, missing.stderr]).toEqual([1, expect.stringContaining('hutch sandbox ls')])
  })

  test('exec -i passes standard input, to its end', async () => {
    const { code, stdout } = await platform.run(
      ['sandbox', 'exec', 'box', '-i', '--', 'sh', '-c', 'cat; echo end'],
      {
        stdin: 'line 1\nline 2\n',
      },
    )
    expect({ code, stdout }).toEqual({ code: 0, stdout: 'line 1\nline 2\nend\n' })
  })

  test('exec -i ends with its command, though nobody closes standard input', async () => {
    const child = Bun.spawn([executablePath, 'sandbox', 'exec', 'box', '-i', '--', 'echo', 'done'], {
      env: { ...cleanEnvironment(), HUTCH_DATA_DIR: dataDir },
      stdin: 'pipe',
      stdout: 'pipe',
      timeout: 60_000,
    })
    expect(await new Response(child.stdout).text()).toBe('done\n')
    expect(await child.exited).toBe(0)
  })

  test('exec asked to end ends with the exit code of its command', async () => {
    const script = 'trap "exit 9" TERM; echo ready; while :; do sleep 0.1; done'
    const child = Bun.spawn([executablePath, 'sandbox', 'exec', 'box', '--', 'sh', '-c', script], {
      env: { ...cleanEnvironment(), HUTCH_DATA_DIR: dataDir },
      stdout: 'pipe',
      stderr: 'ignore',
      timeout: 60_000,
    })
    await child.stdout.getReader().read()
    child.kill('SIGINT')
    expect(await child.exited).toBe(9)
  })

  test('exec ends its command when the reader of its output goes away', async () => {
    const exec = `"${executablePath}" sandbox exec box -- sh -c 'while :; do echo unread-output; done' | head -n 1`
    const { stdout } = await capture(['sh', '-c', exec], {
      env: { ...cleanEnvironment(), HUTCH_DATA_DIR: dataDir },
      timeoutMs: 60_000,
    })
    expect(stdout).toBe('unread-output\n')
    const left = async () =>
      (await api<{ command: string; status: string }[]>('/process')).filter(
        ({ command, status }) => command.includes('unread-output') && status === 'running',
      )
    await eventually('the command was ended', async () => (await left()).length === 0)
  })

  test('exec shows output while the command runs', async () => {
    const child = Bun.spawn(
      [
        executablePath,
        'sandbox',
        'exec',
        'box',
        '--',
        'sh',
        '-c',
        'echo first; until [ -e /tmp/go ]; do sleep 0.02; done',
      ],
      { env: { ...cleanEnvironment(), HUTCH_DATA_DIR: dataDir }, stdout: 'pipe', stderr: 'inherit' },
    )
    const reader = child.stdout.getReader()
    const { value } = await reader.read()
    expect(new TextDecoder().decode(value)).toBe('first\n')
    await platform.run(['sandbox', 'exec', 'box', '--', 'touch', '/tmp/go'])
    expect(await child.exited).toBe(0)
  })

  test('connect types into a shell on a terminal, and ends with it', async () => {
    const { code, stdout, stderr } = await platform.run(['sandbox', 'connect', 'box', '--session', 'smoke'], {
      stdin: 'tty && echo sum-$((40 + 2))\nexit\n',
    })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/\/dev\/pts\/\d+\r\nsum-42\r\n/)
    const page = await fetch(await terminalAddress())
    expect([page.status, await page.text()]).toEqual([200, expect.stringContaining('<h1>box</h1>')])
  })

  test('cp takes a directory there and back, bytes and permissions included', async () => {
    const source = join(directory, 'tree')
    mkdirSync(join(source, 'sub dir'), { recursive: true })
    const binary = crypto.getRandomValues(new Uint8Array(60_000))
    writeFileSync(join(source, 'sub dir', 'binary'), binary)
    writeFileSync(join(source, 'tool.sh'), '#!/bin/sh\necho ran\n')
    chmodSync(join(source, 'tool.sh'), 0o750)
    writeFileSync(join(source, 'empty'), '')
    symlinkSync('/etc/passwd', join(source, 'link'))
    const up = await platform.run(['sandbox', 'cp', source, 'box:/srv/tree', '--json'])
    expect(up.stderr).toBe('')
    expect(JSON.parse(up.stdout)).toEqual({ files: 3, bytes: 60_019, skipped: [join(source, 'link')] })
    expect((await platform.run(['sandbox', 'exec', 'box', '--', '/srv/tree/tool.sh'])).stdout).toBe('ran\n')
    const back = join(directory, 'back')
    await platform.run(['sandbox', 'exec', 'box', '--', 'ln', '-s', '/etc/passwd', '/srv/tree/link'])
    const down = await platform.run(['sandbox', 'cp', 'box:/srv/tree', back])
    expect(down.stdout).toBe('3 files, 59 KiB\n')
    expect(down.stderr).toContain('/srv/tree/link')
    expect(new Uint8Array(readFileSync(join(back, 'sub dir', 'binary')))).toEqual(binary)
    expect(statSync(join(back, 'tool.sh')).mode & 0o777).toBe(0o750)
    expect(statSync(join(back, 'link'), { throwIfNoEntry: false })).toBeUndefined()
  })

  test('cp of a large file streams', async () => {
    const large = join(directory, 'large')
    writeFileSync(large, new Uint8Array(24 * 1024 * 1024).fill(7))
    expect((await platform.run(['sandbox', 'cp', large, 'box:/srv/large'])).stdout).toBe('1 file, 24 MiB\n')
    expect((await platform.run(['sandbox', 'cp', 'box:/srv/large', `${large}-back`])).code).toBe(0)
    expect(Bun.hash(readFileSync(`${large}-back`))).toBe(Bun.hash(readFileSync(large)))
  }, 120_000)

  test('a sandbox is kept as it is, forked and restored', async () => {
    const inside = (name: string, command: string) =>
      platform.run(['sandbox', 'exec', name, '--', 'sh', '-c', command])
    await inside('box', 'echo then > /srv/kept')
    const taken = await platform.run(['sandbox', 'snapshot', 'box', 'before'])
    if (taken.code !== 0) {
      // Where nothing can be frozen there are none, and that is said.
      expect(taken.stderr).toContain('there are no snapshots on this host')
      return
    }
    const id = taken.stdout.trim()
    expect(id).toStartWith('snap_')
    await inside('box', 'echo now > /srv/kept')
    const forked = await platform.run([
      'sandbox',
      'fork',
      'box',
      'copy',
      '--snapshot',
      'before',
      '-e',
      'MORE=1',
      '--json',
    ])
    expect(JSON.parse(forked.stdout)).toEqual({ type: 'sandbox', name: 'copy', snapshotId: id })
    expect((await inside('copy', 'cat /srv/kept; hostname; echo $MORE')).stdout).toBe('then\ncopy\n1\n')
    expect((await platform.run(['sandbox', 'restore', 'box', 'before'])).stdout).toBe('box\n')
    expect((await inside('box', 'cat /srv/kept')).stdout).toBe('then\n')
    expect((await platform.run(['snapshots', 'ls'])).stdout).toContain(id)
    const wrong = await platform.run(['sandbox', 'restore', 'box', 'after'])
    expect([wrong.code, wrong.stderr]).toEqual([
      1,
      expect.stringContaining('hutch snapshots ls --sandbox box'),
    ])
    const listed = JSON.parse((await platform.run(['snapshots', 'ls', '--sandbox', 'box', '--json'])).stdout)
    expect(listed).toMatchObject([{ id, name: 'before', status: 'ready' }])
    expect((await platform.run(['snapshots', 'rm', id])).stdout).toBe(`${id}\n`)
    await platform.run(['sandbox', 'rm', 'copy'])
  })

  test('an archived sandbox is started again by unarchive, which every refusal names', async () => {
    await platform.run(['sandbox', 'create', 'packed', '--storage', '512', '--ttl', '3h'])
    expect((await platform.run(['sandbox', 'get', 'packed'])).stdout).toMatch(
      /^disk +512 MB$[\s\S]*^deleted +in [23]h$/m,
    )
    await platform.run(['sandbox', 'exec', 'packed', '--', 'sh', '-c', 'echo kept > /srv/kept'])
    expect((await platform.run(['sandbox', 'archive', 'packed'])).stdout).toBe('packed\n')
    for (const words of [
      ['exec', 'packed', '--', 'true'],
      ['logs', 'packed'],
      ['connect', 'packed'],
      ['cp', 'packed:/srv', directory],
    ]) {
      const refused = await platform.run(['sandbox', ...words])
      expect(refused.code).toBe(1)
      expect(refused.stderr).toMatch(/its status is ARCHIVED\ntry:.*hutch sandbox unarchive packed/)
    }
    expect((await platform.run(['sandbox', 'unarchive', 'packed'])).stdout).toBe('packed\n')
    expect((await platform.run(['sandbox', 'exec', 'packed', '--', 'cat', '/srv/kept'])).stdout).toBe(
      'kept\n',
    )
    const again = await platform.run(['sandbox', 'unarchive', 'packed'])
    expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('hutch sandbox get packed')])
    expect((await platform.run(['sandbox', 'rm', 'packed'])).code).toBe(0)
  })

  test('a value that the platform refuses is told of by its flag, as a mistake in the command line', async () => {
    for (const [words, message] of [
      [['sandbox', 'create', 'x', '--ttl', 'foo'], '--ttl must be a duration'],
      [['sandbox', 'create', 'x', '--memory', '1'], '--memory: 1 is out of range'],
      [['sandbox', 'create', 'x', '--image', 'foo'], '--image "foo" is unknown here'],
      [['sandbox', 'create', 'Bad_Name'], 'NAME "Bad_Name" is not valid'],
      [['keys', 'create', 'x', '--expires', 'foo'], '--expires must be a duration'],
      [['workspaces', 'create', 'Bad_'], 'NAME: "Bad_" is not'],
    ] as const) {
      const { code, stderr } = await platform.run([...words])
      expect([code, stderr]).toEqual([2, expect.stringContaining(`error: ${message}`)])
    }
    const folder = await platform.run(['images', 'import', directory, '--name', 'x'])
    expect([folder.code, folder.stderr]).toEqual([1, expect.stringContaining('is a directory')])
    const short = await platform.run(['images', 'pull', 'alpine:3'])
    expect(short.stderr).toContain('hutch images pull docker.io/library/alpine:3')
  })

  test('a key works until it is revoked', async () => {
    const made = await platform.run(['keys', 'create', 'smoke', '--expires', '24h', '--json'])
    const { id, apiKey } = JSON.parse(made.stdout) as { id: string; apiKey: string }
    const env = { ...(await platform.env()), BL_API_KEY: apiKey, HUTCH_DATA_DIR: '' }
    expect((await platform.run(['sandbox', 'ls'], { env })).code).toBe(0)
    const listed = await platform.run(['keys', 'list'])
    expect(listed.stdout).toContain(id)
    expect(listed.stdout).not.toContain(apiKey)
    expect((await platform.run(['keys', 'revoke', id])).code).toBe(0)
    const refused = await platform.run(['sandbox', 'ls'], { env })
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('hutch env')])
  })

  test('Ctrl-C asks a command to end; a detached one is named; failures are JSON for programs', async () => {
    expect((await platform.run(['sandbox', 'create', 'polite'])).code).toBe(0)
    const child = Bun.spawn(
      [...[executablePath, 'sandbox', 'exec', 'polite', '--'], ...['sh', '-c', 'echo up; exec sleep 60']],
      {
        env: { ...cleanEnvironment(), HUTCH_DATA_DIR: platform.dataDir },
        stdio: ['ignore', 'pipe', 'ignore'],
      },
    )
    let text = ''
    for await (const chunk of child.stdout) {
      text += new TextDecoder().decode(chunk)
      if (text === 'up\n') child.kill('SIGINT')
    }
    expect([text, await child.exited]).toEqual(['up\n', 130])
    const ended = JSON.parse((await platform.run(['sandbox', 'logs', 'polite', '--json'])).stdout)
    expect(ended).toMatchObject([{ status: 'stopped' }])

    const detached = await platform.run([
      'sandbox',
      'exec',
      'polite',
      '-d',
      '--keep-alive',
      '--',
      'sleep',
      '60',
    ])
    expect(detached.stdout).toMatch(/^exec-\w+\n$/)
    const processes = await platform.run(['sandbox', 'logs', 'polite', '--json'])
    expect(JSON.parse(processes.stdout)).toContainEqual(
      expect.objectContaining({ name: detached.stdout.trim(), status: 'running', keepAlive: true }),
    )

    const missing = await platform.run(['sandbox', 'get', 'nobody', '--json'])
    expect(missing.code).toBe(1)
    expect(JSON.parse(missing.stderr)).toEqual({
      error: { message: expect.stringContaining('nobody'), try: expect.stringContaining('sandbox ls') },
    })
    expect((await platform.run(['sandbox', 'bogus'])).stderr).toContain('hutch sandbox has ls, get, create')
    expect((await platform.run(['sandbox', 'rm', 'polite'])).code).toBe(0)
  })

  test('the only workspace that the key reaches is not deleted by the way', async () => {
    const refused = await platform.run(['workspaces', 'rm', 'main'])
    expect(refused.code).toBe(1)
    expect(refused.stderr).toMatch(/the only one that this credential reaches.*Create another first/)
  })

  test('workspaces are made and listed', async () => {
    expect((await platform.run(['workspaces', 'create', 'second'])).stdout).toBe('second\n')
    expect((await platform.run(['workspaces'])).stdout).toMatch(/^main .*/m)
    const reserved = await platform.run(['workspaces', 'create', 'oauth'])
    expect(reserved.code).toBe(2)
    expect(reserved.stderr).toContain('oauth')
  })

  test('kill -9: the sandbox, its files and its process are still there and still reachable', async () => {
    const command = 'while :; do echo tick >> /srv/ticks; sleep 0.02; done'
    const started = await api<{ pid: string }>('/process', {
      method: 'POST',
      body: JSON.stringify({ name: 'ticker', command }),
    })
    platform.child.kill('SIGKILL')
    await platform.child.exited
    expect((await hutch(['env', '--data-dir', dataDir])).code).toBe(1)

    platform = await RunningHutch.start({ dataDir })
    const ticker = await api<{ pid: string; status: string }>('/process/ticker')
    expect(ticker).toMatchObject({ pid: started.pid, status: 'running' })
    const count = async () =>
      Number((await platform.run(['sandbox', 'exec', 'box', '--', 'sh', '-c', 'wc -l < /srv/ticks'])).stdout)
    const before = await count()
    await eventually('the process goes on writing', async () => (await count()) > before)
    expect((await platform.run(['sandbox', 'exec', 'box', '--', '/srv/tree/tool.sh'])).stdout).toBe('ran\n')
  }, 120_000)

  test('SIGTERM stops it with 0; the next up starts the sandbox again with its files', async () => {
    expect(await platform.stop()).toBe(0)
    expect((await hutch(['status', '--data-dir', dataDir])).code).toBe(1)
    platform = await RunningHutch.start({ dataDir })
    const { code, stdout, stderr } = await platform.run(['sandbox', 'exec', 'box', '--', '/srv/tree/tool.sh'])
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: 'ran\n', stderr: '' })
  }, 120_000)

  test('sandbox rm leaves nothing of it', async () => {
    expect((await platform.run(['sandbox', 'rm', 'box'])).stdout).toBe('box\n')
    await eventually('the sandbox is gone', async () => {
      const { stdout } = await platform.run(['sandbox', 'ls', '--json'])
      return (JSON.parse(stdout) as unknown[]).length === 0
    })
    expect(await platform.stop()).toBe(0)
  })
})
