/** A writer whose disk takes what is written, and says that it may not keep it. */
import { commitGroup, openWriter, type WriterConnection } from '../commit.ts'
import type { ToWriter } from '../protocol.ts'

declare const self: { onmessage: ((event: MessageEvent<ToWriter>) => void) | null }

let writer: WriterConnection

self.onmessage = ({ data }) => {
  if (data.type === 'open') {
    const sync = () => {
      throw new Error('EIO')
    }
    writer = openWriter({ ...data, sync })
  } else if (data.type === 'commit') {
    commitGroup(writer, data.mutations)
    writer.keep()
  }
}
