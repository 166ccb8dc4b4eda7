// Runs inside the machine of a build, by bun: whether a program loads no package once it runs but those that the project
// declares it needs. It follows the program's own files; whatever could be another package counts as one. The last line
// says `alone`, or why not.
import { existsSync, readFileSync, statSync } from 'node:fs'
import { isBuiltin } from 'node:module'
import { dirname, extname, join, relative } from 'node:path'

const [dir, entry] = process.argv.slice(2)
const filesMax = 2000
const fileBytesMax = 8 * 1024 * 1024
const loaders = { '.ts': 'ts', '.mts': 'ts', '.cts': 'ts', '.tsx': 'tsx', '.jsx': 'jsx' }
const endings = [
  '',
  '.js',
  '.mjs',
  '.cjs',
  '.json',
  '.ts',
  '.tsx',
  '/index.js',
  '/index.mjs',
  '/index.cjs',
  '/index.ts',
]
/** What is loaded by a name that is only known then. */
const unknown =
  /\bcreateRequire\b|\brequire\.(?:resolve|cache)\b|\bimport\s*\(\s*[^'"\s]|\brequire\s*\(\s*[^'"\s]/
/** Modules of the interpreter by which other programs are started, or other code. */
const starting = /^(?:node:)?(?:child_process|cluster|module|vm|worker_threads)$|^bun(?::|$)/

function end(line) {
  console.log(line)
  process.exit(0)
}
const stays = (why) => end(`not alone: ${why}`)

try {
  look()
} catch (error) {
  stays(String(error?.message ?? error).split('\n')[0])
}

function look() {
  const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(dir, 'package.json'), 'utf8'))
  const declared = { ...dependencies, ...optionalDependencies }
  const waiting = [fileOf(join(dir, entry))]
  const seen = new Set(waiting)
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    const shown = relative(dir, path)
    if (path.split('/').includes('node_modules') || shown.startsWith('..')) stays(`${shown} is not its own`)
    if (['.json', '.node', '.wasm'].includes(extname(path))) continue
    if (seen.size > filesMax) stays(`it has more than ${filesMax} files`)
    if (statSync(path).size > fileBytesMax) stays(`${shown} is too long`)
    const code = readFileSync(path, 'utf8')
    const late = unknown.exec(code)
    if (late) stays(`${shown} has ${late[0].trim()}`)
    if (/\bBun\.(?:spawn|spawnSync|\$)|\bprocess\.binding\b|\bnew\s+Worker\b/.test(code))
      stays(`${shown} starts other programs`)
    for (const { path: name } of new Bun.Transpiler({ loader: loaders[extname(path)] ?? 'js' }).scanImports(
      code,
    )) {
      if (name.startsWith('.') || name.startsWith('/')) {
        const found = fileOf(name.startsWith('/') ? name : join(dirname(path), name))
        if (!seen.has(found)) waiting.push(found)
        seen.add(found)
      } else if (starting.test(name)) stays(`${shown} uses ${name}`)
      else if (!isBuiltin(name) && !Object.hasOwn(declared, packageOf(name)))
        stays(`${shown} uses ${packageOf(name)}, which is not among its dependencies`)
    }
  }
  end('alone')
}

function fileOf(path) {
  const names = [path, ...(path.endsWith('.js') ? [`${path.slice(0, -3)}.ts`] : [])]
  for (const name of names)
    for (const ending of endings)
      if (existsSync(name + ending) && statSync(name + ending).isFile()) return name + ending
  return stays(`there is no ${relative(dir, path)}`)
}

function packageOf(name) {
  return name
    .split('/')
    .slice(0, name.startsWith('@') ? 2 : 1)
    .join('/')
}
