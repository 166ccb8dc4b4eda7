import { PlatformError } from '../errors.ts'

/** What a sender brings at least in the time it has for that: a trickle would hold a transfer's place for hours. */
export const flowBytesMin = 64 * 1024

export interface FlowOptions {
  /** For each `flowBytesMin`. Only time that is spent waiting for the sender counts. */
  windowMs: number
  /** Who sends, for messages: `the registry`. */
  sender: string
  signal?: AbortSignal
}

/**
 * The bytes of a body, as they come. @throws gateway_timeout when they come too slowly, bad_gateway when the sender breaks
 * off, the signal's reason
 */
export async function* flowing(
  body: ReadableStream<Uint8Array> | null,
  { windowMs, sender, signal }: FlowOptions,
): AsyncGenerator<Uint8Array> {
  const reader = body?.getReader()
  if (!reader) return
  let waitedMs = 0
  let bytes = 0
  try {
    for (;;) {
      const before = performance.now()
      const { done, value } = await next(reader, { leftMs: windowMs - waitedMs, sender, signal })
      if (done) return
      waitedMs += performance.now() - before
      bytes += value.length
      if (bytes >= flowBytesMin) waitedMs = bytes = 0
      else if (waitedMs >= windowMs) throw tooSlow(sender)
      yield value
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}

async function next(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  { leftMs, sender, signal }: { leftMs: number; sender: string; signal: AbortSignal | undefined },
): Promise<Awaited<ReturnType<typeof reader.read>>> {
  const { promise: ended, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(tooSlow(sender)), leftMs)
  const onAbort = () => reject(signal?.reason)
  if (signal?.aborted) onAbort()
  signal?.addEventListener('abort', onAbort, { once: true })
  const reading = reader.read().catch((cause) => {
    signal?.throwIfAborted()
    throw new PlatformError('bad_gateway', `${sender} broke off`, { cause })
  })
  try {
    return await Promise.race([reading, ended])
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
    reading.catch(() => {})
  }
}

function tooSlow(sender: string): PlatformError {
  return new PlatformError(
    'gateway_timeout',
    `${sender} stopped sending, or sends too slowly: at least ${flowBytesMin / 1024} KiB are expected in the time that it had`,
  )
}
