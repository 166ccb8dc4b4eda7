import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { Glob } from 'bun'
import { eventually } from './lib/test-eventually.ts'
import { ZipWriter } from './lib/zip-writer.ts'
import type { TestClient } from './test-client.ts'

/** For tests: code sent to a platform as the cloud's clients send it. */

export type TestFiles = Record<string, string | Uint8Array>

/** Everything below a folder of fixtures/, but for what is made of it. */
export async function fixtureFiles(name: string): Promise<TestFiles> {
  const root = join(import.meta.dir, '../fixtures', name)
  if (!existsSync(root)) throw new Error(`there is no fixture ${name}`)
  const files: TestFiles = {}
  for await (const path of new Glob('**/*').scan({ cwd: root, dot: true })) {
    if (!/(^|\/)(node_modules|dist|\.venv|__pycache__)\//.test(path))
      files[path] = await Bun.file(join(root, path)).bytes()
  }
  return files
}

/** A server in one file with everything in it: nothing is to be installed. */
export async function bundledFiles(entry: string, toml = ''): Promise<TestFiles> {
  const { outputs, success, logs } = await Bun.build({ entrypoints: [entry], target: 'node', format: 'esm' })
  if (!success) throw new AggregateError(logs, `${entry} was not bundled`)
  return {
    'package.json': '{"name": "bundled", "type": "module", "scripts": {"start": "node server.mjs"}}',
    'server.mjs': await outputs[0]!.text(),
    'blaxel.toml': toml,
  }
}

export interface Deployed {
  /** As the platform tells it. */
  url: string
  revision: string
}

/** Deploys what is in `files` and waits until it is served. Fails with what the platform says went wrong. */
export async function deploy(
  client: TestClient,
  kind: 'agents' | 'functions' | 'jobs',
  name: string,
  files: TestFiles,
  spec: { runtime?: Record<string, unknown>; public?: boolean; triggers?: object[]; volumes?: object[] } = {},
): Promise<Deployed> {
  const body = JSON.stringify({
    metadata: { name },
    spec: { ...spec, runtime: { memory: 1024, ...spec.runtime } },
  })
  const headers = { 'content-type': 'application/json' }
  const ask = (method: string, path: string) =>
    client.request(`/v0/${path}?upload=true`, { method, headers, body })
  const changed = await ask('PUT', `${kind}/${name}`)
  const begun = changed.status === 404 ? await ask('POST', kind) : changed
  if (!begun.ok) throw new Error(`${begun.status} ${await begun.text()}`)
  const address = begun.headers.get('x-blaxel-upload-url')
  const revision = begun.headers.get('x-hutch-revision')
  if (address === null || revision === null) throw new Error('the answer names no upload, or no revision')
  const sent = await send(address, files)
  if (sent.status !== 200) throw new Error(`${sent.status} ${await sent.text()}`)
  return await eventually(
    `${name} is deployed`,
    async () => {
      const read = (await (await client.request(`/v0/${kind}/${name}`)).json()) as {
        metadata: { url: string }
        events: { revision?: string; status: string; message: string }[]
      }
      const own = read.events.filter((event) => event.revision === revision)
      const failed = own.find(({ status }) => status === 'FAILED')
      if (failed !== undefined) throw new Error(failed.message)
      return own.some(({ status }) => status === 'DEPLOYED') ? { url: read.metadata.url, revision } : null
    },
    300_000,
  )
}

async function send(address: string, files: TestFiles): Promise<Response> {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-upload-'))
  const path = join(dir, 'archive.zip')
  try {
    await using zip = await ZipWriter.create(path)
    for (const [name, content] of Object.entries(files))
      await zip.addFile(name, Readable.from([Buffer.from(content)]), 0o644, new Date())
    await zip.finish()
    const headers = { 'content-type': 'application/zip' }
    return await fetch(address, { method: 'PUT', headers, body: await Bun.file(path).bytes() })
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}
