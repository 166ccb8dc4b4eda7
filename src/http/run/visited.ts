import type { RouteContext, Socket } from '../route.ts'
import type { Pieces } from './bodies.ts'

type Upgrade = NonNullable<RouteContext<unknown, unknown, unknown>['upgrade']>

/** Somebody who may be here for as long as they may: `sandboxes` ends those who may not any more. */
export interface Visit {
  /** Why it may not go on; null while it may. */
  readonly failure: Error | null
  onOver(told: (failure: Error) => void): void
  end(): void
}

/** Of WebSockets: against a policy. */
const closeCode = 1008

/** `upgrade`, for a WebSocket that is closed when the visit is over, whatever its client does then. */
export function whileVisiting(upgrade: Upgrade, visit: Visit): Upgrade {
  return (handler, options) => {
    let over = false
    const close = (socket: Socket, code: number, reason: string) => {
      if (over) return
      over = true
      handler.close(socket, code, reason)
    }
    return upgrade(
      {
        open(socket) {
          handler.open(socket)
          visit.onOver(({ message }) => {
            close(socket, closeCode, message)
            socket.close(closeCode, message)
          })
        },
        message(socket, data) {
          if (!over) handler.message(socket, data)
        },
        ping(socket) {
          if (!over) handler.ping?.(socket)
        },
        drain(socket) {
          if (!over) handler.drain?.(socket)
        },
        close,
      },
      options,
    )
  }
}

/** The same body, cut off when the visit is over. */
export function bodyWhileVisiting(
  body: ReadableStream<Uint8Array>,
  visit: Visit,
): ReadableStream<Uint8Array> {
  const reader: Pieces = body.getReader()
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        visit.onOver(() => {
          controller.error()
          void reader.cancel().catch(() => {})
        })
      },
      async pull(controller) {
        try {
          const { done, value } = await reader.read()
          if (visit.failure !== null) return
          if (done) controller.close()
          else controller.enqueue(value)
        } catch {
          if (visit.failure === null) controller.error()
        }
      },
      cancel: (reason) => reader.cancel(reason).catch(() => {}),
    },
    // Nothing is taken ahead.
    { highWaterMark: 0 },
  )
}
