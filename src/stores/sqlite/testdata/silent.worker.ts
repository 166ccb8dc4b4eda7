/** A writer whose disk never answers. */
declare const self: { onmessage: ((event: MessageEvent<{ type: string }>) => void) | null }

self.onmessage = () => {}

export {}
