declare const self: { onmessage: (() => void) | null }

self.onmessage = () => {
  throw new Error('the text was made for this')
}

export {}
