import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { eventually } from '../../../../lib/test-eventually.ts'
import { called, McpBench, refused } from './test-client.ts'

/** Tools as an MCP client sees them, over a machine that is this host's. */

let bench: McpBench
let client: Client

beforeAll(async () => {
  bench = new McpBench()
  client = await bench.client()
  // Its schemas are what the client checks structured results against.
  await client.listTools()
})

afterAll(async () => {
  await bench[Symbol.asyncDispose]()
})

const inside = (path: string) => join(bench.root, path)

test('every tool is listed with an object schema for what it takes and for what it gives', async () => {
  const { tools } = await client.listTools()
  const names = tools.map(({ name }) => name)
  for (const name of [
    ...['processesList', 'processExecute', 'processGet', 'processGetLogs', 'processStop', 'processKill'],
    ...['fsGetWorkingDirectory', 'fsListDirectory', 'fsReadFile', 'fsWriteFile', 'fsEditFile'],
    ...['fsDeleteFileOrDirectory', 'codegenListDir', 'codegenReadFileRange'],
    ...[
      'codegenFileSearch',
      'codegenGrepSearch',
      'codegenCodebaseSearch',
      'codegenReapply',
      'codegenParallelApply',
    ],
  ]) {
    expect(names).toContain(name)
  }
  for (const tool of tools) {
    expect(tool.inputSchema.type).toBe('object')
    expect(tool.outputSchema?.type).toBe('object')
    expect(tool.description!.length).toBeGreaterThan(20)
    for (const [name, property] of Object.entries(tool.inputSchema.properties ?? {})) {
      // Clients that turn schemas into types of their own know nothing of unions.
      expect(`${tool.name}.${name}: ${typeof (property as { type?: unknown }).type}`).toEndWith('string')
    }
  }
  const execute = tools.find(({ name }) => name === 'processExecute')!
  expect(execute.inputSchema.required).toEqual(['command'])
  expect(execute.inputSchema.properties!.waitForPorts).toMatchObject({
    type: 'array',
    items: { type: 'integer' },
  })
})

describe('processes', () => {
  test('a command runs to its end, and what it said comes back', async () => {
    const result = await called(client, 'processExecute', {
      command: 'echo out; echo err >&2; pwd; echo $GREETING; exit 3',
      waitForCompletion: true,
      env: { GREETING: 'hello' },
      workingDir: '/project',
    })
    expect(result).toMatchObject({ status: 'failed', exitCode: 3, stderr: 'err\n' })
    expect(result.stdout).toBe(`out\n${inside('/project')}\nhello\n`)
    expect(result.name).toMatch(/^proc-[a-z0-9]{8}$/)
    expect(result.pollRequired).toBeUndefined()
    const logs = await called(client, 'processGetLogs', { identifier: result.name })
    expect(logs.stdout).toBe(result.stdout)
  })

  test('without a wait the answer comes at once; the process is listed, stopped and killed', async () => {
    const started = await called(client, 'processExecute', {
      command: 'echo up; exec sleep 60',
      name: 'long',
    })
    expect(started).toMatchObject({ name: 'long', status: 'running' })
    expect(started.stdout).toBeUndefined()
    const { processes } = (await called(client, 'processesList')) as { processes: { name: string }[] }
    expect(processes.map(({ name }) => name)).toContain('long')
    expect(await called(client, 'processGet', { identifier: String(started.pid) })).toMatchObject({
      name: 'long',
      status: 'running',
    })
    // The policy is that of the REST API: a name that is in use is refused.
    expect(await refused(client, 'processExecute', { command: 'true', name: 'long' })).toBe(
      "process with name 'long' already exists and is running",
    )
    await called(client, 'processStop', { identifier: 'long' })
    expect((await called(client, 'processGet', { identifier: 'long' })).status).toBe('stopped')
    await called(client, 'processExecute', { command: 'exec sleep 60', name: 'longer' })
    await called(client, 'processKill', { identifier: 'longer' })
    expect((await called(client, 'processGet', { identifier: 'longer' })).status).toBe('killed')
    expect(await refused(client, 'processKill', { identifier: 'longer' })).toBe(
      "process 'longer' is not running",
    )
    expect(await refused(client, 'processGet', { identifier: 'none' })).toBe('process not found')
  })

  test('a wait that is over is an answer that names the process, which goes on', async () => {
    const result = await called(client, 'processExecute', {
      command: 'echo begun; exec sleep 60',
      name: 'slow',
      waitForCompletion: true,
      timeout: 0.2,
    })
    expect(result).toMatchObject({ name: 'slow', status: 'running', pollRequired: true })
    // As far as it came in that time.
    expect(result.stdout).toBeOneOf(['', 'begun\n'])
    expect(result.message).toContain('processGet')
    await called(client, 'processKill', { identifier: 'slow' })
  })

  test('progress is told while a command runs', async () => {
    const told: { progress: number; message?: string }[] = []
    const release = inside('/project/release')
    const result = client.callTool(
      {
        name: 'processExecute',
        arguments: {
          command: `echo step one; while [ ! -e ${release} ]; do sleep 0.05; done; echo done`,
          waitForCompletion: true,
        },
      },
      undefined,
      {
        onprogress: (progress) => {
          told.push(progress as (typeof told)[number])
          writeFileSync(release, '')
        },
      },
    )
    expect((await result).structuredContent).toMatchObject({ stdout: 'step one\ndone\n' })
    expect(told[0]).toMatchObject({ message: 'step one', total: 30 })
  })

  test('a cancelled command is ended', async () => {
    const stop = new AbortController()
    const call = client.callTool(
      {
        name: 'processExecute',
        arguments: { command: 'exec sleep 60', name: 'unwanted', waitForCompletion: true },
      },
      undefined,
      { signal: stop.signal },
    )
    call.catch(() => {})
    await eventually(async () => (await statusOf('unwanted')) === 'running')
    stop.abort('changed my mind')
    await expect(call).rejects.toThrow()
    await eventually(async () => (await statusOf('unwanted')) === 'killed')
    await eventually(async () => bench.machine.leases === 0)
  })

  async function statusOf(name: string): Promise<unknown> {
    const { processes } = (await called(client, 'processesList')) as {
      processes: { name: string; status: string }[]
    }
    return processes.find((process) => process.name === name)?.status
  }
})

describe('files', () => {
  test('are written, read, listed, edited and removed by the rules of the REST API', async () => {
    expect(await called(client, 'fsGetWorkingDirectory')).toEqual({ workingDirectory: '/project' })
    const path = 'a dir/ü %2F?.txt'
    await called(client, 'fsWriteFile', { path, content: 'one\ntwo\n', permissions: '0600' })
    expect(readFileSync(inside(`/project/${path}`), 'utf8')).toBe('one\ntwo\n')
    expect(statSync(inside(`/project/${path}`)).mode & 0o777).toBe(0o600)
    expect(await called(client, 'fsReadFile', { path: `/project/${path}` })).toMatchObject({
      content: 'one\ntwo\n',
      size: 8,
    })
    const listing = await called(client, 'fsListDirectory', { path: 'a dir' })
    expect(listing.files).toMatchObject([{ name: 'ü %2F?.txt' }])
    expect(await called(client, 'fsEditFile', { path, oldString: 'two', newString: '$& $1' })).toMatchObject({
      replacements: 1,
    })
    expect(readFileSync(inside(`/project/${path}`), 'utf8')).toBe('one\n$& $1\n')
    expect(statSync(inside(`/project/${path}`)).mode & 0o777).toBe(0o600)
    expect(await refused(client, 'fsReadFile', { path: 'a dir' })).toContain('use fsListDirectory')
    expect(await refused(client, 'fsListDirectory', { path })).toContain('use fsReadFile')
    expect(await refused(client, 'fsReadFile', { path: '/none' })).toBe(
      'stat /none: no such file or directory',
    )
    expect(await refused(client, 'fsDeleteFileOrDirectory', { path: 'a dir' })).toContain('not empty')
    expect(
      await refused(client, 'fsDeleteFileOrDirectory', {
        path: 'a dir',
        isDirectory: false,
        recursive: true,
      }),
    ).toContain('it is a directory, but isDirectory is false')
    await called(client, 'fsDeleteFileOrDirectory', { path: 'a dir', recursive: true })
    expect(existsSync(inside('/project/a dir'))).toBe(false)
    await called(client, 'fsWriteFile', { path: '/made/here', isDirectory: true })
    expect(statSync(inside('/made/here')).isDirectory()).toBe(true)
  })

  test('an edit that is not exact changes nothing', async () => {
    writeFileSync(inside('/project/twice.txt'), 'x = 1\ny = 1\n')
    expect(
      await refused(client, 'fsEditFile', { path: 'twice.txt', oldString: '1', newString: '2' }),
    ).toContain('occurs 2 times')
    expect(
      await refused(client, 'fsEditFile', { path: 'twice.txt', oldString: 'z', newString: '2' }),
    ).toContain('does not occur')
    expect(readFileSync(inside('/project/twice.txt'), 'utf8')).toBe('x = 1\ny = 1\n')
    await called(client, 'fsEditFile', {
      path: 'twice.txt',
      oldString: '1',
      newString: '2',
      replaceAll: true,
    })
    expect(readFileSync(inside('/project/twice.txt'), 'utf8')).toBe('x = 2\ny = 2\n')
    writeFileSync(inside('/project/binary'), new Uint8Array([0x61, 0xff, 0x62]))
    expect(await refused(client, 'fsEditFile', { path: 'binary', oldString: 'a', newString: 'b' })).toContain(
      'not a text file',
    )
  })

  test('edits of one file that arrive together all count', async () => {
    const marks = Array.from({ length: 20 }, (_, at) => `<${at}>`)
    writeFileSync(inside('/project/busy.txt'), marks.join('\n'))
    await Promise.all(
      marks.map((mark) =>
        called(client, 'fsEditFile', { path: 'busy.txt', oldString: mark, newString: `done${mark}` }),
      ),
    )
    expect(readFileSync(inside('/project/busy.txt'), 'utf8')).toBe(
      marks.map((mark) => `done${mark}`).join('\n'),
    )
  })

  test('lines are read in ranges of at most 250', async () => {
    const lines = Array.from({ length: 600 }, (_, at) => `line ${at + 1}`)
    mkdirSync(inside('/project/src'), { recursive: true })
    writeFileSync(inside('/project/src/long.txt'), `${lines.join('\n')}\n`)
    const range = (first: number, last: number) =>
      called(client, 'codegenReadFileRange', {
        targetFile: 'src/long.txt',
        startLineOneIndexed: first,
        endLineOneIndexedInclusive: last,
      })
    expect(await range(2, 3)).toMatchObject({
      content: 'line 2\nline 3',
      startLine: 2,
      endLine: 3,
      totalLines: 600,
      truncated: false,
    })
    expect(await range(100, 500)).toMatchObject({ startLine: 100, endLine: 349, truncated: true })
    expect(await range(599, 10_000)).toMatchObject({ content: 'line 599\nline 600', truncated: false })
    expect(await range(601, 700)).toMatchObject({ content: '', endLine: 600, truncated: false })
    expect(
      await refused(client, 'codegenReadFileRange', {
        targetFile: 'src/long.txt',
        startLineOneIndexed: 3,
        endLineOneIndexedInclusive: 2,
      }),
    ).toContain('lies before')
    const listing = await called(client, 'codegenListDir', { relativeWorkspacePath: '.' })
    expect((listing.subdirectories as { name: string }[]).map(({ name }) => name)).toContain('src')
  })

  test('a file too large for a model is refused, not sent', async () => {
    writeFileSync(inside('/project/huge.txt'), Buffer.alloc(9 * 1024 * 1024, 'x'))
    expect(await refused(client, 'fsReadFile', { path: 'huge.txt' })).toContain('ask for less')
    await eventually(async () => bench.machine.leases === 0)
  })
})

describe('arguments', () => {
  test('that are wrong are named, for the model to mend', async () => {
    expect(await refused(client, 'fsReadFile', {})).toBe('path: missing: must be a string')
    expect(await refused(client, 'processExecute', { command: 'true', waitForPorts: [0] })).toBe(
      'waitForPorts[0]: 0 must be at least 1',
    )
  })

  test('null is as good as left out', async () => {
    const result = await called(client, 'processExecute', {
      command: 'true',
      name: null,
      env: null,
      waitForCompletion: true,
    })
    expect(result.exitCode).toBe(0)
  })

  test('an unknown tool is a failure of the protocol', async () => {
    await expect(client.callTool({ name: 'fsFormatDisk', arguments: {} })).rejects.toThrow(
      'Unknown tool: fsFormatDisk',
    )
  })
})
