import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { milliseconds, type Row, type Sample, samplesMin, timesInTurns } from './measure.ts'
import { benchSandbox } from './sandbox.ts'

const bytes = 1024 * 1024
const rounds = 5 * samplesMin

/** A file of 1 MiB written and read over HTTP; against a plain server that writes a file. */
export default async function files(): Promise<Row[]> {
  await using sandbox = await benchSandbox()
  const content = crypto.getRandomValues(new Uint8Array(65_536))
  const data = new Uint8Array(bytes).map((_, index) => content[index % content.length]!)
  const form = () => {
    const body = new FormData()
    body.append('permissions', '0644')
    body.append('file', new Blob([data]), 'bench.bin')
    return { method: 'PUT', body }
  }
  const path = '/filesystem/%2Ftmp%2Fbench.bin'
  await using plain = await plainServer()
  const write = await timesInTurns(
    rounds,
    async () => (await sandbox.call(path, form())).arrayBuffer(),
    async () => (await fetch(plain.url, form())).arrayBuffer(),
  )
  const headers = { accept: 'application/octet-stream' }
  const read = await timesInTurns(
    rounds,
    async () => expectBytes(await (await sandbox.call(path, { headers })).arrayBuffer()),
    async () => expectBytes(await (await fetch(plain.url)).arrayBuffer()),
  )
  return [row('write 1 MiB', write), row('read 1 MiB', read)]
}

function row(what: string, { measured, bare }: { measured: Sample; bare: Sample }): Row {
  return {
    what,
    value: `${milliseconds(measured)}, ${(measured.median / bare.median).toFixed(2)} x`,
    baseline: `${milliseconds(bare)} plain server`,
    reach: '<= 2 x plain server',
  }
}

/** In a process of its own, as the platform is. */
async function plainServer(): Promise<{ url: string } & AsyncDisposable> {
  const directory = await mkdtemp(join(tmpdir(), 'hutch-bench-'))
  const script = `const file = ${JSON.stringify(join(directory, 'bench.bin'))}
    const server = Bun.serve({ port: 0, async fetch(request) {
      if (request.method !== 'PUT') return new Response(Bun.file(file))
      const form = await request.formData()
      await Bun.write(file, form.get('file'))
      return new Response('{}')
    } })
    console.log('ready ' + server.port)`
  const child = Bun.spawn([process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const { value } = await child.stdout.getReader().read()
  const url = `http://127.0.0.1:${/ready (\d+)/.exec(new TextDecoder().decode(value))?.[1]}/`
  return {
    url,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await child.exited
      await rm(directory, { recursive: true, force: true })
    },
  }
}

function expectBytes(body: ArrayBuffer): void {
  if (body.byteLength !== bytes) throw new Error(`read ${body.byteLength} bytes instead of ${bytes}`)
}
