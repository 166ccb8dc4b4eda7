import type { SandboxLease } from '../../sandboxes/index.ts'
import type { RouteContext, Socket } from '../route.ts'

type Upgrade = NonNullable<RouteContext<unknown, unknown, unknown>['upgrade']>

/** `upgrade`, for a WebSocket that keeps its sandbox awake while something is said on it, by either side. */
export function spoken(upgrade: Upgrade, lease: Pick<SandboxLease, 'asConnection'>): Upgrade {
  return (handler, options) => {
    const connection = lease.asConnection()
    let over: Socket | null = null
    const heard = (socket: Socket): Socket => {
      over ??= {
        send(data) {
          connection.touch()
          return socket.send(data)
        },
        close: (code, reason) => socket.close(code, reason),
      }
      return over
    }
    return upgrade(
      {
        open: (socket) => handler.open(heard(socket)),
        message(socket, data) {
          connection.touch()
          handler.message(heard(socket), data)
        },
        ping(socket) {
          connection.touch()
          handler.ping?.(heard(socket))
        },
        drain: (socket) => handler.drain?.(heard(socket)),
        close: (socket, code, reason) => handler.close(heard(socket), code, reason),
      },
      options,
    )
  }
}
