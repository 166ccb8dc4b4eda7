import { afterAll } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Clock } from '../../lib/clock.ts'
import { silentLogger } from '../../lib/log.ts'
import { queueContract } from '../../spec/queue.contract.ts'
import { storeContract } from '../../spec/store.contract.ts'
import { openSqliteStore } from './index.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-store-'))
let directories = 0
afterAll(() => rmSync(root, { recursive: true }))

const open = ({ clock }: { clock: Clock }) =>
  openSqliteStore({ path: join(root, String(directories++), 'hutch.db'), clock, log: silentLogger })

storeContract('sqlite', open)
queueContract('sqlite', open)
