import { existsSync } from 'node:fs'
import { capture } from '../capture.ts'
import { milliseconds, type Row, type Sample, sample, samplesMin } from './measure.ts'
import { type BenchSandbox, benchSandbox, sandboxPid } from './sandbox.ts'

const treeFiles = 50_000
const smallFiles = 1000
const tree = '/tmp/bench-tree'
/** As many processors as there are on a machine of two, so that both sides have the same. */
const memoryMb = 4096

/** Files of words and punctuation like source code, 3 KiB on average, some with what is looked for. */
const makeTree = `
import os, random
random.seed(7)
words = [''.join(random.choices('abcdefghijklmnopqrstuvwxyz', k=random.randint(2, 10))) for _ in range(4000)]
lines = ['    ' * random.randint(0, 3) + ' '.join(random.choices(words, k=random.randint(1, 12))) + random.choice(['(x);', ' = {', '', ')', ' => {', ';']) for _ in range(20000)]
for number in range(${treeFiles}):
    directory = '${tree}/d%02d/s%02d' % (number % 50, number // 50 % 25)
    if number < 1250: os.makedirs(directory, exist_ok=True)
    start = random.randrange(len(lines) - 400)
    part = lines[start:start + random.randint(5, 180)]
    if number % 500 == 0: part.insert(len(part) // 2, 'const needleInHaystack = findTheNeedle(hay)')
    with open('%s/f%05d.ts' % (directory, number), 'w') as file: file.write('\\n'.join(part) + '\\n')
`

/** Content search against ripgrep in the same sandbox, writeTree against tar into the same place, and watching. */
export default async function trees(): Promise<Row[]> {
  await using sandbox = await benchSandbox(memoryMb)
  const pid = await sandboxPid(sandbox)
  return [...(await searches(sandbox, pid)), await writes(sandbox, pid), await changes(sandbox)]
}

async function searches(sandbox: BenchSandbox, pid: string): Promise<Row[]> {
  const questions = [
    { what: 'a text, any case', query: 'needleInHaystack', flags: ['-i', '-F'], options: '' },
    { what: 'a text, exact case', query: 'needleInHaystack', flags: ['-F'], options: '&caseSensitive=true' },
    {
      what: 'an expression with a literal',
      query: 'const\\s+needle\\w+\\s*=',
      flags: [],
      options: '&caseSensitive=true&regex=true',
    },
    {
      what: 'an expression without one',
      query: '[A-Z][a-z]+[A-Z][a-z]+\\(hay\\)',
      flags: [],
      options: '&caseSensitive=true&regex=true',
    },
  ]
  if (!existsSync('/usr/bin/rg')) {
    return [
      {
        what: 'content search',
        value: 'skipped: ripgrep is not installed (apt-get install ripgrep)',
        baseline: '',
        reach: '',
      },
    ]
  }
  await exec(sandbox, `python3 - <<'END'\n${makeTree}\nEND`)
  const rows: Row[] = []
  for (const { what, query, flags, options } of questions) {
    const path = `/filesystem-content-search/${encodeURIComponent(tree)}?maxResults=1000&query=${encodeURIComponent(query)}${options}`
    const ours = async () => {
      const { total } = (await (await sandbox.call(path)).json()) as { total: number }
      if (total !== treeFiles / 500) throw new Error(`found ${total}`)
    }
    const arguments_ = [
      '--no-config',
      '--no-ignore',
      '--hidden',
      '--line-number',
      '--column',
      '--no-heading',
      ...flags,
    ]
    const ripgrep = async () => {
      const found = await inside(pid, ['/usr/bin/rg', ...arguments_, query, tree])
      const total = found.split('\n').length - 1
      if (total !== treeFiles / 500) throw new Error(`ripgrep found ${total}`)
    }
    const { measured, bare } = await inTurns(ours, ripgrep)
    rows.push({
      what: `search of ${treeFiles} files: ${what}`,
      value: `${milliseconds(measured)}, ${(measured.median / bare.median).toFixed(2)} x`,
      baseline: `${milliseconds(bare)} ripgrep`,
      reach: '<= 1.5 x',
    })
  }
  return rows
}

async function writes(sandbox: BenchSandbox, pid: string): Promise<Row> {
  const names = Array.from({ length: smallFiles }, (_, index) => `d${index % 20}/file-${index}.txt`)
  const files = Object.fromEntries(names.map((name) => [name, `content of ${name}\n`.repeat(40)]))
  const body = JSON.stringify({ files })
  const write = () => sandbox.call('/filesystem/tree/tmp/bench-write', { method: 'PUT', body })
  const remove = (path: string) =>
    sandbox.call(`/filesystem/tree${path}`, { method: 'DELETE' }).then((response) => response.arrayBuffer())
  await (await write()).arrayBuffer()
  await exec(sandbox, 'tar cf /tmp/bench.tar -C /tmp/bench-write . && mkdir -p /tmp/bench-tar')
  await remove('/tmp/bench-write')
  const { measured, bare } = await inTurns(
    async () => (await write()).arrayBuffer(),
    () => inside(pid, ['tar', 'xf', '/tmp/bench.tar', '-C', '/tmp/bench-tar']),
    async () => {
      await exec(sandbox, 'rm -rf /tmp/bench-write /tmp/bench-tar && mkdir /tmp/bench-tar')
    },
  )
  return {
    what: `writeTree of ${smallFiles} small files`,
    value: `${milliseconds(measured)}, ${(measured.median / bare.median).toFixed(2)} x`,
    baseline: `${milliseconds(bare)} tar`,
    reach: '<= 3 x',
  }
}

/** From the request that writes a file to the event that tells of it; against that request alone. */
async function changes(sandbox: BenchSandbox): Promise<Row> {
  await exec(sandbox, 'mkdir -p /tmp/bench-watch')
  const { body } = await sandbox.call('/watch/filesystem/%2Ftmp%2Fbench-watch')
  if (!body) throw new Error('the watch has no body')
  const events = body.pipeThrough(new TextDecoderStream()).getReader()
  await events.read()
  const write = (name: string) =>
    sandbox
      .call(`/filesystem/%2Ftmp%2Fbench-watch%2F${name}`, { method: 'PUT', body: '{"content":"x"}' })
      .then((response) => response.arrayBuffer())
  const values: [number[], number[]] = [[], []]
  for (let round = 0; round <= samplesMin; round++) {
    const startedAt = performance.now()
    const writing = write(`file-${round}`)
    for (let seen = ''; !seen.includes(`"file-${round}"`); ) seen += (await events.read()).value ?? ''
    const toldAt = performance.now()
    await writing
    if (round > 0) {
      values[0].push(toldAt - startedAt)
      values[1].push(performance.now() - startedAt)
    }
  }
  await events.cancel()
  return {
    what: 'write of a file to its event in a watch',
    value: milliseconds(sample(values[0])),
    baseline: `${milliseconds(sample(values[1]))} until the write is answered`,
    reach: '<= 100 ms',
  }
}

async function exec(sandbox: BenchSandbox, command: string): Promise<void> {
  const body = JSON.stringify({ command, waitForCompletion: true, timeout: 300 })
  const { exitCode, stderr } = (await (await sandbox.call('/process', { method: 'POST', body })).json()) as {
    exitCode: number
    stderr: string
  }
  if (exitCode !== 0) throw new Error(`${command.slice(0, 80)}: ${stderr}`)
}

/** As the sandbox's root, outside its limits. */
async function inside(pid: string, argv: string[]): Promise<string> {
  const enter = ['nsenter', '-t', pid, '-U', '-S', '0', '-G', '0', '-m', '-p']
  const { code, stdout, stderr } = await capture([...enter, ...argv])
  if (code !== 0) throw new Error(`${argv[0]} exited with ${code}: ${stderr.slice(0, 300)}`)
  return stdout
}

/** One and the other by turns, each timed; `between` is not. */
async function inTurns(
  work: () => Promise<unknown>,
  baseline: () => Promise<unknown>,
  between: () => Promise<void> = async () => {},
): Promise<{ measured: Sample; bare: Sample }> {
  const values: [number[], number[]] = [[], []]
  for (let round = -1; round < samplesMin; round++) {
    for (const [at, one] of [work, baseline].entries()) {
      const startedAt = performance.now()
      await one()
      if (round >= 0) values[at]?.push(performance.now() - startedAt)
    }
    await between()
  }
  return { measured: sample(values[0]), bare: sample(values[1]) }
}
