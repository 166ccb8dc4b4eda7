/**
 * The thread of the indexes: what sandboxes hold is taken apart here, where a file that was made to be slow stops no
 * request, and where whoever started the thread can end it.
 */
import { CodeIndex } from './code-index.ts'
import type { FromIndexes, ToIndexes } from './protocol.ts'

declare const self: {
  onmessage: ((event: MessageEvent<ToIndexes>) => void) | null
  postMessage(message: FromIndexes): void
}

const indexes = new Map<number, CodeIndex>()

self.onmessage = ({ data }) => {
  try {
    if (data.type === 'drop') indexes.delete(data.index)
    const index = indexes.get(data.index) ?? new CodeIndex()
    if (data.type === 'update') {
      indexes.set(data.index, index)
      for (const path of data.remove) index.remove(path)
      for (const { path, bytes } of data.add) index.add(path, new TextDecoder().decode(bytes))
    }
    const found = data.type === 'search' ? index.search(data.question) : []
    self.postMessage({ id: data.id, ok: true, files: index.files, bytes: index.bytes, found })
  } catch (error) {
    self.postMessage({ id: data.id, ok: false, reason: String(error) })
  }
}
