import { afterAll } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../../lib/log.ts'
import { storeContract } from '../../spec/store.contract.ts'
import { openSqliteStore } from './index.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-store-'))
let directories = 0
afterAll(() => rmSync(root, { recursive: true }))

storeContract('sqlite', ({ clock }) =>
  openSqliteStore({ path: join(root, String(directories++), 'hutch.db'), clock, log: silentLogger }),
)
