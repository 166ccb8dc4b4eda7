// A Node.js that keeps its variables: reads {code, env} lines, runs each, and tells its results by the other pipe.
import { createReadStream, writeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { inspect } from 'node:util'
import vm from 'node:vm'

const textCharactersMax = 1024 * 1024
const [requests, control] = process.argv.slice(2).map(Number)

function send(event) {
  let data = Buffer.from(`${JSON.stringify(event)}\n`)
  while (data.length > 0) data = data.subarray(writeSync(control, data))
}

const bounded = (text) =>
  text.length <= textCharactersMax
    ? text
    : `${text.slice(0, textCharactersMax)}... ${text.length - textCharactersMax} more characters`

function result(value, main) {
  const event = { type: 'result', is_main_result: main, text: bounded(inspect(value)) }
  for (const kind of ['html', 'markdown', 'svg', 'png', 'jpeg', 'latex', 'json'])
    if (typeof value === 'object' && value !== null && typeof value[`_to${kind}`] === 'function')
      event[kind] = value[`_to${kind}`]()
  send(event)
}

globalThis.require = createRequire(`${process.cwd()}/`)
globalThis.display = (...values) => {
  for (const value of values) result(value, false)
}

const options = (filename) => ({
  filename,
  importModuleDynamically: vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER,
})

/** Code that awaits at its top level is no script: it becomes the body of a function, its last expression its value. */
function compiled(code, filename) {
  try {
    return new vm.Script(code, options(filename))
  } catch (error) {
    if (!(error instanceof SyntaxError) || !/\bawait\b/.test(code)) throw error
    const end = code.trimEnd().replace(/;+$/, '')
    const at = end.lastIndexOf('\n') + 1
    try {
      return new vm.Script(
        `(async () => {${end.slice(0, at)}return (${end.slice(at)})\n})()`,
        options(filename),
      )
    } catch {
      return new vm.Script(`(async () => {${code}\n})()`, options(filename))
    }
  }
}

async function execute({ code, env }, filename) {
  const before = Object.fromEntries(Object.keys(env).map((name) => [name, process.env[name]]))
  Object.assign(process.env, env)
  try {
    const value = await compiled(code, filename).runInThisContext({ breakOnSigint: true })
    if (value !== undefined) {
      globalThis._ = value
      result(value, true)
    }
  } catch (error) {
    tell(error)
  }
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  // Pipes are written to synchronously on Linux: what was logged is on its way.
  send({ type: 'done' })
}

function tell(error) {
  const known = error instanceof Error || typeof error?.stack === 'string'
  send({
    type: 'error',
    name: known ? String(error.name) : 'Error',
    value: bounded(known ? String(error.message) : inspect(error)),
    traceback: bounded(known ? String(error.stack) : ''),
  })
}

process.on('SIGINT', () => {})
process.on('unhandledRejection', (error) => console.error('Uncaught (in promise)', error))
process.on('uncaughtException', (error) => console.error('Uncaught', error))
let number = 0
for await (const line of createInterface({ input: createReadStream('', { fd: requests }), crlfDelay: 0 }))
  await execute(JSON.parse(line), `<cell ${++number}>`)
