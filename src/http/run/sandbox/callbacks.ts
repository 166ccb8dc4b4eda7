import { abortable } from '../../../lib/abortable.ts'
import type { Address } from '../../../lib/addresses.ts'
import { Connections } from '../../../lib/http1/index.ts'
import type { Instance } from '../../../spec/runtime.ts'

const timeoutMs = 10_000
const answerBytesMax = 64 * 1024
const addressesMax = 8
/** None of them is used twice: whose connection it is is known to the network by the instance it came from. */
const connections = new Connections()

export interface InsideWay {
  instance: Pick<Instance, 'id' | 'wayOut'>
  addressesOf: (instanceId: string, host: string) => Promise<Address[]>
  /** Of the platform. */
  version: string
}

/**
 * Posts JSON as a program of the instance would: to what the host's name stands for inside, by a connection made in the
 * instance's network. So a local host is the instance itself, and anything else is up to the network. Redirects are not
 * followed. @throws what stood in the way
 */
export async function postFromInside(
  url: URL,
  body: string,
  { instance, addressesOf, version }: InsideWay,
  stop: AbortSignal,
): Promise<void> {
  const signal = AbortSignal.any([stop, AbortSignal.timeout(timeoutMs)])
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const isEncrypted = url.protocol === 'https:'
  const port = Number(url.port || (isEncrypted ? 443 : 80))
  const bytes = Buffer.from(body)
  const head = [
    `POST ${url.pathname}${url.search} HTTP/1.1`,
    `host: ${url.host}`,
    `user-agent: hutch/${version}`,
    'content-type: application/json',
    `content-length: ${bytes.byteLength}`,
    'connection: close',
  ]
  const addresses = await abortable(addressesOf(instance.id, host), signal)
  let failure: unknown = new Error(`${host} stands for no address`)
  for (const address of addresses.slice(0, addressesMax)) {
    signal.throwIfAborted()
    const server = { ...instance.wayOut(address, port), ...(isEncrypted ? { tlsName: host } : {}) }
    const sent = { isBegun: false }
    const request = {
      method: 'POST',
      head: `${head.join('\r\n')}\r\n\r\n`,
      body: bodyOf(bytes, sent),
      bodyBytes: bytes.byteLength,
    }
    const call = connections.send(server, request, { once: true })
    const onAbort = () => call.abort(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      await call.answered
      let left = answerBytesMax
      for (let piece = await call.read(); !piece.done && left > 0; piece = await call.read()) {
        left -= piece.value.byteLength
      }
      return
    } catch (error) {
      failure = error
      // What was begun may have been heard.
      if (sent.isBegun) break
    } finally {
      signal.removeEventListener('abort', onAbort)
      await call.cancel()
    }
  }
  throw failure
}

/** Notes when it is asked for, which is once there is a connection. */
function bodyOf(bytes: Uint8Array, sent: { isBegun: boolean }): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      pull: (controller) => {
        sent.isBegun = true
        controller.enqueue(bytes)
        controller.close()
      },
    },
    { highWaterMark: 0 },
  )
}
