/**
 * Folds the log into the database, on a thread of its own: so the commits of the writer need not wait for the pages and the
 * sync of the database's file. It never waits for others: what somebody still reads is left for the next time.
 */
import { Database, type Statement } from 'bun:sqlite'
import type { FromFolder, ToFolder } from './protocol.ts'

declare const self: {
  onmessage: ((event: MessageEvent<ToFolder>) => void) | null
  postMessage(message: FromFolder): void
}

type Fold = Statement<{ log: number; checkpointed: number }, []>

let database: Database | null = null
let fold: Fold | null = null

self.onmessage = ({ data }) => {
  switch (data.type) {
    case 'fold':
      try {
        const { log, checkpointed } = opened(data.path).get() ?? { log: 0, checkpointed: 0 }
        self.postMessage({ type: 'folded', left: log - checkpointed })
      } catch (error) {
        self.postMessage({ type: 'failed', detail: String(error) })
      }
      return
    case 'close':
      fold?.finalize()
      database?.close()
      self.postMessage({ type: 'closed' })
  }
}

function opened(path: string): Fold {
  if (fold) return fold
  database = new Database(path, { readwrite: true })
  // The log is synced before the database is written, and that before the log begins anew.
  database.exec('PRAGMA synchronous = NORMAL')
  fold = database.prepare<{ log: number; checkpointed: number }, []>('PRAGMA wal_checkpoint(PASSIVE)')
  return fold
}
