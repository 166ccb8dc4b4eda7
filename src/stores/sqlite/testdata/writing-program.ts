/**
 * Writes until it is killed and prints what was acknowledged, a line each; with a number, writes that many, closes
 * and ends. The tests run it as a process of its own, and compiled.
 */
import { writeSync } from 'node:fs'
import { systemClock } from '../../../lib/clock.ts'
import { silentLogger } from '../../../lib/log.ts'
import { openSqliteStore } from '../index.ts'

const [path = '', amountText] = process.argv.slice(2)
const amount = amountText === undefined ? Number.POSITIVE_INFINITY : Number(amountText)
const store = await openSqliteStore({ path, clock: systemClock, log: silentLogger })

let next = 0
async function write(writer: number): Promise<void> {
  while (next < amount) {
    const name = `${writer}-${next++}`
    const created = await store.create({
      kind: 'ack',
      workspace: 'main',
      name,
      body: { name },
      indexes: { step: 'one' },
    })
    await store.batch([
      { op: 'create', input: { kind: 'pair', workspace: 'main', name, body: {} } },
      {
        op: 'update',
        key: created,
        expectedVersion: 1,
        change: { body: { name, id: created.id }, indexes: { step: 'two' } },
      },
    ])
    // Synchronously, so that a line that was promised is with the reader before the program can die.
    writeSync(1, `${name}\n`)
  }
}
await Promise.all(Array.from({ length: 8 }, (_, writer) => write(writer)))
await store[Symbol.asyncDispose]()
