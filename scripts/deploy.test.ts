import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { buildIfStale, executablePath } from './build.ts'
import { type Captured, capture } from './capture.ts'
import { canIsolate } from './host.ts'
import { cleanEnvironment, RunningHutch } from './platform.ts'

// Hosting from the command line, with the file that people run: from a folder of code to answers, and back.

await buildIfStale()
const usable = canIsolate()
const directory = mkdtempSync(join(tmpdir(), 'hutch-hosting-'))
let platform: RunningHutch

beforeAll(async () => {
  if (usable) platform = await RunningHutch.start({ dataDir: join(directory, 'data') })
})

afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

function write(files: Record<string, string>): string {
  const folder = join(directory, 'code')
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
  return folder
}

/** A command line in the folder of code. */
async function hutch(args: string[], stdin?: string): Promise<Captured> {
  return await capture([executablePath, ...args], {
    cwd: join(directory, 'code'),
    env: { ...cleanEnvironment(), HUTCH_DATA_DIR: join(directory, 'data') },
    ...(stdin === undefined ? {} : { stdin }),
  })
}

/** An agent that says whose it is, with a line of its log for each request. */
const agent = (word: string) => `
const { createServer } = require('node:http')
createServer((request, response) => {
  let body = ''
  request.on('data', (chunk) => (body += chunk))
  request.on('end', () => {
    const { inputs } = JSON.parse(body || '{}')
    console.log('asked', inputs)
    response.setHeader('content-type', 'text/event-stream')
    for (const word of ['${word} ', process.env.WHO, ' ', inputs]) response.write('data: ' + JSON.stringify({ text: word }) + '\\n\\n')
    response.end('data: [DONE]\\n\\n')
  })
}).listen(process.env.PORT, process.env.HOST)
`

describe.skipIf(!usable)('an agent of a folder of code', () => {
  test('is deployed, asked and talked with', async () => {
    write({
      'blaxel.toml': 'type = "agent"\nname = "hello"\n[env]\nWHO = "nobody"\n',
      'package.json': '{"private":true,"scripts":{"start":"node index.js"}}',
      'index.js': agent('one'),
      '.env': 'WHO=secretly\n',
    })
    const deployed = await hutch(['deploy'])
    expect([deployed.code, deployed.stdout]).toEqual([0, `${platform.url}/main/agents/hello\n`])
    expect(deployed.stderr).toContain('It starts with: node index.js')
    const ran = await hutch(['run', 'agent', 'hello', '-d', '{"inputs":"Hi"}'])
    expect([ran.code, ran.stdout]).toEqual([0, 'one secretly Hi\n'])
    const chatted = await hutch(['chat', 'hello'], 'first\nsecond\n')
    expect(chatted.stdout).toBe('one secretly first\none secretly second\n')
    expect((await hutch(['get', 'agent', 'hello', '-o', 'yaml'])).stdout).not.toContain('secretly')
  })

  test('says what it did and how it was built, also while it is asked', async () => {
    const address = join(directory, 'data')
    const child = Bun.spawn([executablePath, 'logs', 'agent', 'hello', '-f', '--no-timestamps'], {
      env: { ...cleanEnvironment(), HUTCH_DATA_DIR: address },
      stdout: 'pipe',
      stderr: 'inherit',
    })
    let said = ''
    let asked = false
    for await (const chunk of child.stdout) {
      said += new TextDecoder().decode(chunk)
      if (!asked && said.includes('asked second')) {
        asked = true
        await hutch(['run', 'agent', 'hello', '-d', '{"inputs":"third"}'])
      }
      if (said.includes('asked third')) break
    }
    child.kill('SIGINT')
    await child.exited
    const build = await hutch(['logs', 'agent', 'hello', '--build', '--no-timestamps'])
    expect(build.stdout).toContain('It starts with: node index.js')
    expect(build.stdout).not.toContain('asked')
  })

  test('goes on serving when the next one cannot be built, or does not start', async () => {
    write({
      'package.json': '{"scripts":{"build":"echo making; echo not so >&2; exit 3","start":"node index.js"}}',
    })
    const unbuilt = await hutch(['deploy'])
    expect([unbuilt.code, unbuilt.stdout]).toEqual([1, ''])
    expect(unbuilt.stderr).toMatch(/was not deployed: .*npm run build.*3\nmaking\nnot so/)
    expect(unbuilt.stderr).toContain('hutch logs agent hello')
    write({ 'package.json': '{"scripts":{"start":"node -e \'throw new Error(1234)\'"}}' })
    const unstarted = await hutch(['deploy', '--json'])
    expect(unstarted.code).toBe(1)
    const [result] = JSON.parse(unstarted.stdout).resources
    expect(result).toMatchObject({ status: 'FAILED', error: expect.stringContaining('1234') })
    expect((await hutch(['run', 'agent', 'hello', '-d', '{"inputs":"Hi"}'])).stdout).toBe('one secretly Hi\n')
  })

  test('is tried out with a part of the requests, taken over, and rolled back', async () => {
    write({ 'package.json': '{"scripts":{"start":"node index.js"}}', 'index.js': agent('two') })
    const tried = await hutch(['deploy', '--traffic', '0'])
    expect([tried.code, tried.stderr]).toEqual([0, expect.stringContaining('no requests go to')])
    const [, revision = ''] = /hutch traffic agent hello (\S+)/.exec(tried.stderr) ?? []
    expect((await hutch(['traffic', 'agent', 'hello', revision, '25'])).code).toBe(0)
    expect((await hutch(['get', 'agent', 'hello', 'revisions'])).stdout).toMatch(/ 25% .*\n.* 75% /s)
    expect((await hutch(['traffic', 'agent', 'hello', revision])).code).toBe(0)
    expect((await hutch(['run', 'agent', 'hello', '-d', '{"inputs":"Hi"}'])).stdout).toBe('two secretly Hi\n')
    expect((await hutch(['rollback', 'agent', 'hello'])).code).toBe(0)
    expect((await hutch(['run', 'agent', 'hello', '-d', '{"inputs":"Hi"}'])).stdout).toBe('one secretly Hi\n')
  })

  test('is one of several in a monorepo, and goes with a word', async () => {
    write({
      'blaxel.toml': 'skipRoot = true\n[agent.left]\npath = "left"\n[agent.right]\npath = "right"\n',
      'left/index.js': agent('left'),
      'right/index.js': agent('right'),
    })
    expect((await hutch(['deploy'])).stdout.trim().split('\n')).toEqual([
      `${platform.url}/main/agents/left`,
      `${platform.url}/main/agents/right`,
    ])
    expect((await hutch(['run', 'agent', 'right', '-d', '{"inputs":"Hi"}'])).stdout).toBe(
      'right secretly Hi\n',
    )
    expect((await hutch(['push', '-d', 'left', '-t', 'agent', '-n', 'kept'])).stdout).toBe('agent/kept\n')
    expect((await hutch(['delete', 'agent', 'hello', 'left', 'right'])).stdout).toBe('hello\nleft\nright\n')
    expect((await hutch(['get', 'agents'])).stderr).toContain('no agents')
    expect((await hutch(['run', 'agent', 'left', '-d', '{}'])).code).toBe(1)
  })
})

if (!usable) console.warn('skipped, since no instance can be made here')
