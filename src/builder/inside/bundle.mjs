// Runs inside the machine of a build, by node: makes one file of a program's own TypeScript, so that no loader compiles it
// at each start. It is the esbuild of the project's own tsx, which would have done that; packages stay where they are.
// Whatever could be another program then stays as it was: the last line says why.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire, isBuiltin } from 'node:module'
import { basename, dirname, extname, join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [dir, entry] = process.argv.slice(2)
const checkMsMax = 10_000
/** What depends on which file a piece of code stands in, or on what loads it. */
const placeBound =
  /\bimport\.meta\b|\b__dirname\b|\b__filename\b|\brequire\.(?:resolve|cache|extensions)\b|\bcreateRequire\b|\bnew\s+(?:Worker|SharedWorker)\b|\bfork\s*\(|\bargv\s*\[\s*1\s*\]|\bimport\s*\(\s*[^'"\s]|\brequire\s*\(\s*[^'"\s]|\bregister\s*\(/

function end(line) {
  console.log(line)
  process.exit(0)
}
const stay = (why) => end(`not bundled: ${why}`)

setTimeout(() => stay('its packages took too long to load'), checkMsMax)
try {
  await bundle()
} catch (error) {
  stay(String(error?.message ?? error).split('\n')[0])
}

async function bundle() {
  const own = createRequire(join(dir, 'package.json'))
  const esbuild = createRequire(own.resolve('tsx/package.json'))('esbuild')
  const isModule =
    extname(entry) === '.mts' || (extname(entry) === '.ts' && packageType(join(dir, entry)) === 'module')
  const out = join(
    dir,
    dirname(entry),
    `${basename(entry, extname(entry))}.bundle.${isModule ? 'mjs' : 'cjs'}`,
  )
  if (existsSync(out)) stay(`${basename(out)} is there already`)
  const { outputFiles, metafile, warnings } = await esbuild.build({
    absWorkingDir: dir,
    entryPoints: [entry],
    outfile: out,
    bundle: true,
    packages: 'external',
    platform: 'node',
    format: isModule ? 'esm' : 'cjs',
    target: `node${process.versions.node}`,
    keepNames: true,
    sourcemap: 'linked',
    metafile: true,
    write: false,
    logLevel: 'silent',
  })
  if (warnings.length > 0) stay(warnings[0].text)
  for (const path of Object.keys(metafile.inputs)) {
    if (path.split('/').includes('node_modules') || path.startsWith('..')) stay(`${path} is not its own`)
    const bound = path.endsWith('.json') ? null : placeBound.exec(readFileSync(join(dir, path), 'utf8'))
    if (bound) stay(`${path} has ${bound[0].trim()}`)
  }
  const code = outputFiles.find(({ path }) => path === out).text
  const external = new Set(
    Object.values(metafile.outputs)
      .flatMap(({ imports }) => imports)
      .map(({ path }) => path),
  )
  await checkPackages(
    [...external].filter((name) => !isBuiltin(name)),
    isModule,
    code,
    out,
  )
  for (const { path, contents } of outputFiles) writeFileSync(path, contents)
  end(`bundled ${join(dirname(entry), basename(out))}`)
}

/** Packages load by node as they did by tsx, and have what is imported from them. */
async function checkPackages(names, isModule, code, out) {
  const require = createRequire(out)
  for (const name of names) {
    if (name.startsWith('.') || name.startsWith('/')) stay(`${name} is not its own`)
    if (!isModule) {
      require(name)
      continue
    }
    // As seen from where the bundle will stand.
    const found = await import(pathToFileURL(resolveModule(name, out)).href)
    for (const wanted of namesFrom(name, code))
      if (!(wanted in found)) stay(`${name} has no ${wanted} for node`)
  }
}

/** Where node finds a package for `import`, by a module that stands there for a moment. */
function resolveModule(name, out) {
  for (let at = dirname(out); ; at = dirname(at)) {
    const parts = name.split('/')
    const directory = join(at, 'node_modules', ...parts.slice(0, name.startsWith('@') ? 2 : 1))
    if (existsSync(join(directory, 'package.json'))) {
      const manifest = JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8'))
      const rest = parts.slice(name.startsWith('@') ? 2 : 1)
      const target =
        manifest.exports === undefined
          ? rest.length > 0
            ? rest.join('/')
            : (manifest.main ?? 'index.js')
          : exported(manifest.exports, rest.length === 0 ? '.' : `./${rest.join('/')}`)
      if (target === null) throw new Error(`${name} cannot be looked up`)
      const path = join(directory, target)
      // Without its ending only a loader finds it.
      if (manifest.exports !== undefined || rest.length > 0) return path
      return createRequire(join(directory, 'package.json')).resolve(directory)
    }
    if (at === dirname(at)) throw new Error(`${name} is no package here`)
  }
}

function exported(exports, path) {
  let found = exports
  if (
    typeof exports === 'object' &&
    exports !== null &&
    Object.keys(exports).some((key) => key.startsWith('.'))
  ) {
    found = exports[path]
    if (found === undefined) {
      const pattern = Object.keys(exports).find((key) => {
        const [before, after] = key.split('*')
        return after !== undefined && path.startsWith(before) && path.endsWith(after)
      })
      if (pattern === undefined) return null
      const [before, after] = pattern.split('*')
      const target = conditioned(exports[pattern])
      return target?.replaceAll('*', path.slice(before.length, path.length - after.length)) ?? null
    }
  } else if (path !== '.') return null
  return conditioned(found)
}

function conditioned(value) {
  if (typeof value === 'string') return value
  if (Array.isArray(value)) return conditioned(value[0])
  if (typeof value !== 'object' || value === null) return null
  for (const [condition, target] of Object.entries(value))
    if (['node', 'import', 'default', 'node-addons'].includes(condition)) {
      const found = conditioned(target)
      if (found !== null) return found
    }
  return null
}

/** Names that the bundle imports from a package, as esbuild writes them. */
function* namesFrom(name, code) {
  const quoted = JSON.stringify(name).replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
  const statements = new RegExp(`^import (?:[\\w$]+(?:, )?)?(?:\\{([^}]*)\\})? from ${quoted};`, 'gm')
  for (const [whole, names = ''] of code.matchAll(statements)) {
    if (/^import [\w$]/.test(whole)) yield 'default'
    for (const one of names.split(',')) if (one.trim() !== '') yield one.trim().split(' as ')[0].trim()
  }
}

function packageType(file) {
  for (let at = dirname(file); ; at = dirname(at)) {
    const path = join(at, 'package.json')
    if (existsSync(path)) return JSON.parse(readFileSync(path, 'utf8')).type ?? 'commonjs'
    if (at === dirname(at)) return 'commonjs'
  }
}
