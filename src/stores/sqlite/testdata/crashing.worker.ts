/** A writer that dies when it is first asked to write. */
declare const self: { onmessage: ((event: MessageEvent<{ type: string }>) => void) | null }

self.onmessage = ({ data }) => {
  if (data.type === 'commit') throw new Error('the writer died')
}

export {}
