import { existsSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import { KeeperChannel } from '../../guest/index.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'

const keeperEndTimeoutMs = 5_000

/** The keeper ends by itself after process 1; without control groups it is also how process 1 is reached. */
export async function endKeeper(
  instance: {
    dir: string
    /** A short path of the same. */
    socketDir: string
  },
  { clock, log }: { clock: Clock; log: Logger },
): Promise<void> {
  if (!existsSync(`${instance.dir}/run/keeper.sock`)) return
  const ended = Promise.withResolvers<void>()
  const keeper = new KeeperChannel({
    socketPath: `${instance.socketDir}/run/keeper.sock`,
    log,
    onEnd: () => ended.resolve(),
  })
  const late = new AbortController()
  try {
    await keeper.kill()
    await Promise.race([ended.promise, clock.sleep(keeperEndTimeoutMs, late.signal).catch(() => {})])
  } catch {
    // Nobody listens any more: it has ended.
  } finally {
    late.abort()
    keeper.close(new PlatformError('unavailable', 'The instance is being removed'))
  }
}
