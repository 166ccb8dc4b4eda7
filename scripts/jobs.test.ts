import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildIfStale, executablePath } from './build.ts'
import { type Captured, capture } from './capture.ts'
import { canIsolate } from './host.ts'
import { cleanEnvironment, RunningHutch } from './platform.ts'

// Jobs with the file that people run: from a folder of code to executions, which outlive kill -9 of dist/hutch.

setDefaultTimeout(600_000)
await buildIfStale()
const usable = canIsolate()
const python = Bun.which('python3')
if (usable && python === null)
  console.warn('skipped, since this host has no python3: a new job in Python, from its template to its logs')

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-jobs-cli-')))
const dataDir = join(directory, 'data')
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

async function start(): Promise<void> {
  platform = await RunningHutch.start({ dataDir, args: ['--log-level', 'error'] })
}

/** A command line in a folder of code. */
async function hutch(folder: string, ...args: string[]): Promise<Captured> {
  return await capture([executablePath, ...args], {
    cwd: join(directory, folder),
    env: { ...cleanEnvironment(), HUTCH_DATA_DIR: dataDir },
  })
}

async function done(folder: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await hutch(folder, ...args)
  expect([args.join(' '), code, code === 0 ? '' : stderr]).toEqual([args.join(' '), 0, ''])
  return stdout
}

interface Execution {
  status: string
  stats: Record<string, number>
  tasks: { status: string; attempts: number }[]
}

const readExecution = async (job: string, id: string) =>
  (JSON.parse(await done('.', 'get', 'job', job, 'execution', id, '-o', 'json')) as [Execution])[0]

describe.skipIf(!usable)('a job', () => {
  beforeAll(start)

  test.skipIf(python === null)(
    'of a template is tried here, deployed, run, looked at and deleted',
    async () => {
      await done('.', 'new', 'job', 'greetings', '-l', 'python', '-y')
      const folder = 'greetings'
      const local = await hutch(folder, 'run', 'job', '--local', '--file', 'batches/sample-batch.json')
      expect([local.code, local.stdout]).toEqual([0, 'Hello, John!\nHello, Jane!\n'])
      expect((await hutch(folder, 'serve')).stderr).toContain('is a job, which is run, not served')

      await done(folder, 'deploy')
      expect(await done(folder, 'get', 'jobs')).toContain('greetings')
      const ran = await hutch(folder, 'run', 'job', folder, '--file', 'batches/sample-batch.json', '--wait')
      expect([ran.code, ran.stdout]).toEqual([0, expect.stringContaining(' succeeded: 2 succeeded')])
      const id = ran.stdout.split(' ')[0]!
      expect(await done(folder, 'get', 'job', folder, 'executions')).toContain(id)
      expect(await done(folder, 'get', 'job', folder, 'execution', id)).toMatch(/1 +succeeded +0 +1 /)
      expect(await done(folder, 'get', 'job', folder, 'execution', id, 'task', '1')).toContain('Hello, Jane!')
      const said = (task: string[]) => done(folder, 'logs', 'job', folder, id, ...task, '--no-timestamps')
      expect((await said([])).split('\n').sort()).toEqual(['', 'Hello, Jane!', 'Hello, John!'])
      expect(await said(['1'])).toBe('Hello, Jane!\n')

      const data = JSON.stringify({ tasks: [{}], memory: 100_000 })
      const refused = await hutch(folder, 'run', 'job', folder, '-d', data)
      expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('memory: 100000 is more')])
      await done(folder, 'delete', 'job', folder)
      expect((await hutch(folder, 'run', 'job', folder)).code).toBe(1)
    },
  )

  test('that is under way goes on after kill -9: no task that ended runs again', async () => {
    const folder = join(directory, 'gated')
    mkdirSync(folder)
    writeFileSync(join(folder, 'package.json'), '{"scripts": {"start": "bun index.ts"}}')
    writeFileSync(
      join(folder, 'blaxel.toml'),
      'name = "gated"\ntype = "job"\n[runtime]\nmemory = 256\nmaxConcurrentTasks = 2\n',
    )
    // Most tasks end once there is another job, called gate.
    writeFileSync(
      join(folder, 'index.ts'),
      `const { TASK_INDEX, BL_API_URL, BL_API_KEY, BL_WORKSPACE } = process.env
      const headers = { authorization: 'Bearer ' + BL_API_KEY, 'x-blaxel-workspace': BL_WORKSPACE }
      const isOpen = () => fetch(BL_API_URL + '/jobs/gate', { headers }).then(({ ok }) => ok, () => false)
      if (Number(TASK_INDEX) > 1) while (!(await isOpen())) await Bun.sleep(50)
      console.log('done', TASK_INDEX)`,
    )
    await done('gated', 'deploy')
    const id = (await done('gated', 'run', 'job', 'gated', '-d', '{"tasks":[{},{},{},{},{},{}]}')).trim()
    const reaches = async (what: string, holds: (execution: Execution) => boolean) => {
      for (const deadline = performance.now() + 240_000; ; await Bun.sleep(50)) {
        const execution = await readExecution('gated', id)
        if (holds(execution)) return execution
        if (performance.now() > deadline) throw new Error(`never happened: ${what}`)
      }
    }
    const halfway = ({ stats }: Execution) => stats.success === 2 && stats.running === 2
    const before = await reaches('two ended, two run', halfway)
    for (let kills = 0; kills < 2; kills++) {
      platform?.child.kill('SIGKILL')
      await platform?.child.exited
      await start()
      await reaches('they run again', halfway)
    }
    const { url } = platform!
    const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as {
      apiKey: string
    }
    const gate = { metadata: { name: 'gate' }, spec: { runtime: { image: 'blaxel/base-image:latest' } } }
    const opened = await fetch(`${url}/v0/jobs`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${apiKey}`,
        'x-blaxel-workspace': 'main',
        'content-type': 'application/json',
      },
      body: JSON.stringify(gate),
    })
    expect(opened.status).toBe(200)
    const execution = await reaches('its end', ({ status }) => status === 'succeeded')
    expect(execution.stats).toMatchObject({ total: 6, success: 6, failure: 0, retried: 0 })
    expect(execution.tasks.map(({ attempts }) => attempts)).toEqual(Array(6).fill(1))
    expect(execution.tasks.slice(0, 2)).toEqual(before.tasks.slice(0, 2))
    for (const index of [1, 5]) {
      const task = await done('gated', 'get', 'job', 'gated', 'execution', id, 'task', String(index))
      expect(task).toEndWith(`\ndone ${index}\n`)
    }
  })
})
