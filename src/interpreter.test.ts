import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { CodeInterpreter } from '@blaxel/core'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** The client's CodeInterpreter, with the image that it asks for itself. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-interpreter-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const noPython = existsSync('/usr/bin/python3') ? '' : 'this host has no python3 in /usr/bin'
if (noPython) console.warn(`skipped: ${noPython}`)
const why = noPython || (await whyNot())

describe.skipIf(why !== '')('code', () => {
  let client: TestClient
  let Interpreter: typeof CodeInterpreter
  let interpreter: CodeInterpreter

  beforeAll(async () => {
    client = await openTestClient({ dataDir: directory })
    Interpreter = (await import('@blaxel/core')).CodeInterpreter
    interpreter = await Interpreter.create({ name: 'notebook', region: 'eu-lon-1' })
  })
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]()
  })

  const run = (code: string, language = 'python') => interpreter.runCode(code, { language, timeout: 50 })

  test('runs as soon as the interpreter is there, and tells output, results and errors as they come', async () => {
    const fresh = await Interpreter.create({ name: 'fresh', region: 'eu-lon-1' })
    const told: string[] = []
    const execution = await fresh.runCode("import sys; print('out'); sys.stderr.write('err'); 6 * 7", {
      onStdout: ({ text, isStderr }) => told.push(`stdout ${text.trim()} ${isStderr}`),
      onStderr: ({ text, isStderr }) => told.push(`stderr ${text.trim()} ${isStderr}`),
      onResult: (result) => told.push(`result ${(result as { text?: string }).text}`),
    })
    expect(told.sort()).toEqual(['result 42', 'stderr err true', 'stdout out false'])
    expect(execution.logs).toMatchObject({ stdout: ['out\n'], stderr: ['err'] })
    expect([execution.error, execution.executionCount]).toEqual([null, 1])
    expect(fresh.spec).toMatchObject({
      runtime: { image: 'blaxel/jupyter-server', ports: [{ target: 8888 }] },
      lifecycle: { expirationPolicies: [{ type: 'ttl-idle', value: '30m', action: 'delete' }] },
    })
    await Interpreter.delete('fresh')
  })

  test('keeps its variables from one run to the next, in each language apart', async () => {
    await run('def add(a, b):\n    return a + b\nx = 40')
    expect((await run('print(add(x, 2))')).logs.stdout).toEqual(['42\n'])
    await run('let x = 1; const add = (a, b) => a + b', 'javascript')
    expect((await run('add(x, await Promise.resolve(4))', 'javascript')).results).toMatchObject([
      { text: '5' },
    ])
    await run('X=7; cd /tmp', 'bash')
    expect((await run('echo $X $PWD', 'bash')).logs.stdout).toEqual(['7 /tmp\n'])
    const unknown = run('print', 'cobol')
    await expect(unknown).rejects.toThrow('known are python, javascript, bash')
  })

  test('that fails says how, and what is said of it names its own lines', async () => {
    const { error } = await run("y = 1\nraise ValueError('test error')")
    expect([error?.name, error?.value]).toEqual(['ValueError', 'test error'])
    expect(String(error?.traceback)).toContain("line 2, in <module>\n    raise ValueError('test error')")
    expect((await run('1 +')).error?.name).toBe('SyntaxError')
    expect((await run("throw new RangeError('far')", 'javascript')).error).toMatchObject({
      name: 'RangeError',
      value: 'far',
    })
    expect((await run('false', 'bash')).error).toMatchObject({ name: 'ExitStatus', value: '1' })
    const ended = await run('import os; os._exit(3)')
    expect(ended.error).toMatchObject({ name: 'KernelDied', value: 'the kernel ended with status 3' })
    expect((await run('x')).error?.name).toBe('NameError')
  })

  test('has variables of the environment for one run, and shows what can show itself', async () => {
    const once = (code: string, envs?: Record<string, string>) =>
      interpreter.runCode(code, { envs: envs ?? null })
    expect((await once("import os; os.environ['KEY']", { KEY: 'given' })).results).toMatchObject([
      { text: "'given'" },
    ])
    expect((await once("os.environ.get('KEY', 'gone')")).results).toMatchObject([{ text: "'gone'" }])
    const page = "class Page:\n    def _repr_html_(self):\n        return '<b>page</b>'\ndisplay(1)\nPage()"
    expect((await once(page)).results).toMatchObject([
      { text: '1', is_main_result: false },
      { html: '<b>page</b>', is_main_result: true },
    ])
  })

  test('runs in contexts of their own, which are made, listed, started anew and deleted', async () => {
    const context = await interpreter.createCodeContext({ language: 'python', cwd: '/usr' })
    const within = (code: string) => interpreter.runCode(code, { context })
    expect((await within('import os; place = os.getcwd(); place')).results).toMatchObject([
      { text: "'/usr'" },
    ])
    expect((await run('place')).error?.name).toBe('NameError')
    const contexts = async () =>
      (await (await interpreter.fetch(8888, '/contexts')).json()) as { id: string }[]
    expect(await contexts()).toEqual([
      { id: context.id, language: 'python', cwd: '/usr' },
    ] as object[] as never)
    await interpreter.fetch(8888, `/contexts/${context.id}/restart`, { method: 'POST' })
    expect((await within('place')).error?.name).toBe('NameError')
    await interpreter.fetch(8888, `/contexts/${context.id}`, { method: 'DELETE' })
    await expect(within('1')).rejects.toThrow('not found')
    await expect(interpreter.createCodeContext({ cwd: '/nowhere' })).rejects.toThrow('is not a directory')
  })

  test('that takes too long is interrupted when its client gives up, and what came before stays', async () => {
    await run('kept = 5')
    const slow = interpreter.runCode('import time\ntime.sleep(600)', { language: 'python', timeout: 0.5 })
    await expect(slow).rejects.toThrow('Request timeout')
    expect((await run('kept')).results).toMatchObject([{ text: '5' }])
    const busy = interpreter.runCode('for (;;) {}', { language: 'javascript', timeout: 0.5 })
    await expect(busy).rejects.toThrow('Request timeout')
    expect((await run('1', 'javascript')).results).toMatchObject([{ text: '1' }])
  })

  test('is heard of while it runs, also before a line is at its end', async () => {
    const heard = Promise.withResolvers<string>()
    const code =
      "import os, time\nprint('half', end='')\nwhile not os.path.exists('/tmp/heard'): time.sleep(0.01)"
    const execution = interpreter.runCode(code, {
      language: 'python',
      onStdout: ({ text }) => heard.resolve(text),
    })
    expect(await heard.promise).toBe('half')
    await interpreter.fs.write('/tmp/heard', '')
    expect((await execution).error).toBeNull()
  })

  test('goes on in an interpreter that is found again by its name', async () => {
    await run('remembered = 11')
    const found = await Interpreter.get('notebook')
    expect((await found.runCode('remembered', { language: 'python' })).results).toMatchObject([
      { text: '11' },
    ])
    const same = await Interpreter.createIfNotExists({ name: 'notebook', region: 'eu-lon-1' })
    expect(same.metadata.name).toBe('notebook')
    expect((await same.process.get('entrypoint')).status).toBe('running')
  })
})
