import { readdirSync, readFileSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { type TestEntry, tar } from './images/test-image.ts'

/** For tests: a registry of npm packages on loopback that has those of this project's node_modules, and no others. */
export interface TestPackages extends Disposable {
  readonly port: number
  /** Packages that were fetched, as often as they were. */
  readonly fetched: string[]
}

interface Manifest {
  name: string
  version: string
  optionalDependencies?: Record<string, string>
}

const pathBytesMax = 100

export function serveTestPackages(): TestPackages {
  const known = new Map<string, Map<string, string>>()
  collect(realpathSync(join(import.meta.dir, '../node_modules')), known)
  const fetched: string[] = []
  const server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch(request) {
      const { pathname, host } = new URL(request.url)
      const [, tarball, version] = /^\/-\/(.+)@([^@]+)\.tgz$/.exec(decodeURIComponent(pathname)) ?? []
      if (tarball !== undefined && version !== undefined) {
        const dir = known.get(tarball)?.get(version)
        if (dir === undefined) return new Response(null, { status: 404 })
        fetched.push(tarball)
        return new Response(packed(dir))
      }
      const name = decodeURIComponent(pathname.slice(1))
      const versions = known.get(name)
      if (versions === undefined) return Response.json({ error: 'not found' }, { status: 404 })
      const entries = [...versions].map(([version, dir]) => [
        version,
        { ...published(dir, known), dist: { tarball: `http://${host}/-/${name}@${version}.tgz` } },
      ])
      const latest = entries
        .map(([version]) => version)
        .sort()
        .at(-1)
      return Response.json({ name, 'dist-tags': { latest }, versions: Object.fromEntries(entries) })
    },
  })
  return { port: server.port!, fetched, [Symbol.dispose]: () => void server.stop(true) }
}

/** Directories by name and version, nested ones too. */
function collect(modules: string, known: Map<string, Map<string, string>>): void {
  for (const entry of list(modules)) {
    if (entry.startsWith('.')) continue
    const names = entry.startsWith('@')
      ? list(join(modules, entry)).map((name) => `${entry}/${name}`)
      : [entry]
    for (const name of names) {
      const dir = join(modules, name)
      const { version } = manifestOf(dir) ?? {}
      if (version === undefined) continue
      known.set(name, (known.get(name) ?? new Map()).set(version, dir))
      collect(join(dir, 'node_modules'), known)
    }
  }
}

/** What the package says of itself, without what only its own developers or other machines need. */
function published(dir: string, known: Map<string, Map<string, string>>): object {
  const { optionalDependencies = {}, ...manifest } = manifestOf(dir) as Manifest & Record<string, unknown>
  const here = Object.entries(optionalDependencies).filter(([name]) => known.has(name))
  return { ...manifest, scripts: {}, devDependencies: {}, optionalDependencies: Object.fromEntries(here) }
}

function packed(dir: string): Uint8Array<ArrayBuffer> {
  const entries: TestEntry[] = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => ({ file: join(entry.parentPath, entry.name) }))
    .map(({ file }) => ({ file, path: `package/${file.slice(dir.length + 1)}` }))
    .filter(({ path }) => !path.startsWith('package/node_modules/'))
    .map(({ file, path }) => ({
      path,
      mode: 0o755,
      content: readFileSync(file),
      ...(Buffer.byteLength(path) > pathBytesMax ? { pax: { path } } : {}),
    }))
  return new Uint8Array(gzipSync(tar(entries), { level: 1 }))
}

function manifestOf(dir: string): Manifest | null {
  try {
    return JSON.parse(readFileSync(join(dir, 'package.json'), 'utf8')) as Manifest
  } catch {
    return null
  }
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
