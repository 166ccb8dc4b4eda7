/** For tests: registries of npm and PyPI on loopback, which want a credential and have what they are given. */
import { createHash } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { type TestEntry, tar } from '../images/test-image.ts'
import { zip } from './test-zip.ts'

export interface NpmPackage {
  version: string
  manifest?: Record<string, unknown>
  files?: Record<string, string>
}

export class TestRegistries implements Disposable {
  readonly token = 'registry-token-of-the-host'
  readonly requests: string[] = []
  /** Answered without the credential: none of them may be. */
  readonly unauthorized: string[] = []
  readonly #npm = new Map<string, { version: string; manifest: object; archive: Buffer }>()
  readonly #wheels = new Map<string, { file: string; bytes: Buffer }>()
  readonly #server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: (request) => this.#answer(request) })

  get port(): number {
    return this.#server.port!
  }

  publish(name: string, { version, manifest = {}, files = {} }: NpmPackage): void {
    const whole = { name, version, main: 'index.js', ...manifest }
    const entries: TestEntry[] = [
      { path: 'package/package.json', content: JSON.stringify(whole) },
      ...Object.entries(files).map(([path, content]) => ({ path: `package/${path}`, content, mode: 0o755 })),
    ]
    this.#npm.set(name, { version, manifest: whole, archive: gzipSync(tar(entries)) })
  }

  /** A wheel of one module. */
  publishWheel(name: string, version: string, source: string): void {
    const info = `${name}-${version}.dist-info`
    const files: [string, string][] = [
      [`${name}.py`, source],
      [`${info}/METADATA`, `Metadata-Version: 2.1\nName: ${name}\nVersion: ${version}\n`],
      [`${info}/WHEEL`, 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'],
    ]
    const record = [...files.map(([path]) => `${path},,`), `${info}/RECORD,,`].join('\n')
    const entries = [...files, [`${info}/RECORD`, `${record}\n`] as const]
    const bytes = zip(entries.map(([path, content]) => ({ path, content, unixMode: 0o100644 })))
    this.#wheels.set(name, { file: `${name}-${version}-py3-none-any.whl`, bytes })
  }

  /** A wheel as some other index gave it. */
  addWheel(file: string, bytes: Buffer): void {
    const name = file
      .split('-')[0]!
      .toLowerCase()
      .replace(/[-_.]+/g, '-')
    this.#wheels.set(name, { file, bytes })
  }

  /** The user's settings on the host. */
  get npmrc(): string {
    return `registry=http://127.0.0.1:${this.port}/npm/\n//127.0.0.1:${this.port}/npm/:_authToken=${this.token}\n`
  }

  get pipEnv(): Record<string, string> {
    return {
      PIP_INDEX_URL: `http://bot:${this.token}@127.0.0.1:${this.port}/simple/`,
      PIP_TRUSTED_HOST: 'host.hutch.internal',
    }
  }

  [Symbol.dispose](): void {
    void this.#server.stop(true)
  }

  async #answer(request: Request): Promise<Response> {
    const { pathname, origin } = new URL(request.url)
    this.requests.push(pathname)
    const credential = request.headers.get('authorization') ?? ''
    const basic = `Basic ${btoa(`bot:${this.token}`)}`
    if (credential !== `Bearer ${this.token}` && credential !== basic) {
      this.unauthorized.push(pathname)
      return new Response('who are you?', {
        status: 401,
        headers: { 'www-authenticate': 'Basic realm="test"' },
      })
    }
    const found = this.#npmAnswer(pathname, origin) ?? this.#pypiAnswer(pathname)
    return found ?? new Response('{"error":"not found"}', { status: 404 })
  }

  #npmAnswer(path: string, origin: string): Response | null {
    const name = /^\/npm\/([\w.-]+)$/.exec(path)?.[1]
    const file = /^\/npm\/([\w.-]+)\/-\/package\.tgz$/.exec(path)?.[1]
    const known = this.#npm.get(name ?? file ?? '')
    if (!known) return null
    if (file !== undefined) return new Response(new Uint8Array(known.archive))
    const { version, manifest, archive } = known
    const dist = {
      tarball: `${origin}/npm/${name}/-/package.tgz`,
      integrity: `sha512-${createHash('sha512').update(archive).digest('base64')}`,
      shasum: createHash('sha1').update(archive).digest('hex'),
    }
    return Response.json({
      name,
      'dist-tags': { latest: version },
      versions: { [version]: { ...manifest, dist } },
      time: { [version]: '2020-01-01T00:00:00Z' },
    })
  }

  #pypiAnswer(path: string): Response | null {
    const name = /^\/simple\/([\w.-]+)\/$/.exec(path)?.[1]
    const known = this.#wheels.get(name ?? '')
    if (known) {
      const page = `<!DOCTYPE html><html><body><a href="/files/${known.file}">${known.file}</a></body></html>`
      return new Response(page, { headers: { 'content-type': 'text/html' } })
    }
    const wheel = [...this.#wheels.values()].find(({ file }) => path === `/files/${file}`)
    return wheel ? new Response(new Uint8Array(wheel.bytes)) : null
  }
}
