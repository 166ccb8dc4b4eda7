// A client as people write it: Node and the unmodified npm package. Prints timings as JSON.
import { SandboxInstance } from '@blaxel/core'

const [serialCount, parallelCount, width] = process.argv.slice(2).map(Number)

async function once(name) {
  const startedAt = performance.now()
  const sandbox = await SandboxInstance.create({ name, image: 'blaxel/base-image:latest', memory: 512 })
  const { stdout } = await sandbox.process.exec({ command: 'echo ready', waitForCompletion: true })
  const ms = performance.now() - startedAt
  if (stdout !== 'ready\n') throw new Error(`unexpected output ${JSON.stringify(stdout)}`)
  return ms
}

const serial = []
for (let index = -1; index < serialCount; index++) {
  const name = `bench-s${index + 1}`
  const ms = await once(name)
  if (index >= 0) serial.push(ms)
  await SandboxInstance.delete(name)
}

let next = 0
const made = []
const startedAt = performance.now()
await Promise.all(
  Array.from({ length: width }, async () => {
    while (next < parallelCount) {
      const name = `bench-p${next++}`
      made.push(name)
      await once(name)
    }
  }),
)
const parallelMs = performance.now() - startedAt
for (const name of made) await SandboxInstance.delete(name)
console.log(JSON.stringify({ serial, perSecond: (1000 * parallelCount) / parallelMs }))
