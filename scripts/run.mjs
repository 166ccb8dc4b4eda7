// The door of every npm script: makes sure that what the task needs is there, then runs it with the pinned Bun.
// Plain Node without dependencies, because on a fresh machine there is nothing else yet.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const nodeMajorMin = 20
const parentLookMs = 250

const tasks = {
  start: ['scripts/start.ts'],
  build: ['scripts/build.ts'],
  test: ['scripts/test.ts'],
  check: ['scripts/check.ts'],
  demo: ['scripts/demo.ts'],
  bench: ['scripts/bench/index.ts'],
}
const needsCompiler = new Set(['start', 'build', 'test', 'demo', 'bench'])

main(process.argv[2], process.argv.slice(3))

function main(task, args) {
  if (!Object.hasOwn(tasks, task)) {
    fail(`unknown task ${JSON.stringify(task ?? '')}`, `npm run ${Object.keys(tasks).join('|')}`)
  }
  checkHost()
  if (needsCompiler.has(task)) checkCompiler()
  if (!isInstalled()) install()
  const bun = findBun()
  const child = spawn(bun, [...tasks[task], ...args], { cwd: root, stdio: 'inherit' })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    // A terminal sends Ctrl-C to the child as well; a supervisor sends its signal only here.
    process.on(signal, () => {
      if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal)
    })
  }
  // npm passes signals to its shell, and not every shell passes them on: some just end, and leave this one behind.
  const parent = process.ppid
  const watch = setInterval(() => {
    if (process.ppid === parent) return
    clearInterval(watch)
    child.kill('SIGTERM')
  }, parentLookMs)
  child.on('error', (error) =>
    fail(`${bun} does not start: ${error.message}`, 'rm -rf node_modules && npm ci'),
  )
  child.on('exit', (code, signal) => process.exit(code ?? (signal === 'SIGINT' ? 130 : 1)))
}

function checkHost() {
  if (process.platform !== 'linux') {
    const command =
      process.platform === 'win32'
        ? 'wsl --install -d Ubuntu, then the same command inside it'
        : 'limactl start --name=hutch template://default && limactl shell hutch, then the same command inside it'
    fail(`hutch runs on Linux; this is ${process.platform}`, command)
  }
  if (!['x64', 'arm64'].includes(process.arch))
    fail(`no build for ${process.arch}`, 'use a machine with x64 or arm64')
  const major = Number(process.versions.node.split('.')[0])
  if (major < nodeMajorMin) {
    fail(`Node ${nodeMajorMin} or newer is needed; this is ${process.versions.node}`, 'npx --yes n lts')
  }
}

function checkCompiler() {
  const found = ['musl-gcc', 'cc', 'gcc', 'clang'].some((name) => onPath(name))
  if (found) return
  const installers = [
    ['apt-get', 'sudo apt-get install -y build-essential'],
    ['dnf', 'sudo dnf install -y gcc glibc-static'],
    ['apk', 'sudo apk add build-base linux-headers'],
    ['pacman', 'sudo pacman -S --needed base-devel'],
    ['zypper', 'sudo zypper install -y gcc glibc-devel-static'],
  ]
  const command =
    installers.find(([manager]) => onPath(manager))?.[1] ?? 'install gcc with your package manager'
  fail('no C compiler (cc, gcc, clang or musl-gcc) was found', command)
}

/** Whether node_modules holds just what package-lock.json names; npm writes its own copy when it has finished. */
function isInstalled() {
  const wanted = readJson(join(root, 'package-lock.json'))?.packages
  const present = readJson(join(root, 'node_modules', '.package-lock.json'))?.packages
  if (!wanted || !present) return false
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === '') return true
    const held = present[path]
    if (!held) return entry.optional === true
    return held.version === entry.version && held.integrity === entry.integrity
  })
}

function install() {
  console.error('installing dependencies (npm ci)')
  const npm = process.env.npm_execpath
  const args = ['ci', '--no-audit', '--no-fund', '--loglevel=error']
  const result = npm?.endsWith('.js')
    ? spawnSync(process.execPath, [npm, ...args], { cwd: root, stdio: ['ignore', 2, 2] })
    : spawnSync('npm', args, { cwd: root, stdio: ['ignore', 2, 2] })
  if (result.error?.code === 'ENOENT') fail('npm was not found', 'sudo apt-get install -y npm')
  if (result.status !== 0) fail('npm ci failed; what it said is above', 'npm ci')
}

/** The Bun that package-lock.json pins. Its install script may have been forbidden: then it is run here, or the
 * binary is taken from where the package for this machine keeps it. */
function findBun() {
  const pinned = readJson(join(root, 'node_modules', 'bun', 'package.json'))?.version
  const usable = (path) => {
    if (!existsSync(path)) return false
    const result = spawnSync(path, ['--version'], { encoding: 'utf8' })
    return result.status === 0 && result.stdout.trim() === pinned
  }
  const installed = join(root, 'node_modules', 'bun', 'bin', 'bun.exe')
  if (usable(installed)) return installed
  spawnSync(process.execPath, [join('node_modules', 'bun', 'install.js')], {
    cwd: root,
    stdio: ['ignore', 2, 2],
  })
  if (usable(installed)) return installed
  const arch = process.arch === 'arm64' ? 'aarch64' : 'x64'
  for (const variant of ['', '-baseline', '-musl', '-musl-baseline']) {
    const path = join(root, 'node_modules', '@oven', `bun-linux-${arch}${variant}`, 'bin', 'bun')
    if (usable(path)) return path
  }
  return fail(`Bun ${pinned ?? ''} was not installed by npm`, 'rm -rf node_modules && npm ci')
}

function onPath(name) {
  return (process.env.PATH ?? '')
    .split(':')
    .some((directory) => directory && existsSync(join(directory, name)))
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return null
  }
}

function fail(message, command) {
  console.error(`error: ${message}`)
  console.error(`try:   ${command}`)
  process.exit(1)
}
