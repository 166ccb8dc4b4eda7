import { workloadKey } from '../../access/index.ts'
import type { RevisionRun } from './run.ts'

/** Where programs inside reach the platform. */
export const platformOrigin = 'http://hutch.internal'
const anyAddress = '0.0.0.0'

/**
 * What the program of a revision finds in its environment: what its image says, over that what its owner set, over that
 * how to be reached and how to reach this platform.
 */
export function environmentOf(
  run: RevisionRun,
  imageEnv: Record<string, string>,
  region: string | undefined,
): Record<string, string> {
  const port = String(run.port)
  return {
    // What is printed is to be in the logs at once, not when a buffer is full.
    PYTHONUNBUFFERED: '1',
    ...imageEnv,
    ...run.env,
    HOST: anyAddress,
    PORT: port,
    BL_SERVER_HOST: anyAddress,
    BL_SERVER_PORT: port,
    BL_API_URL: `${platformOrigin}/v0`,
    BL_RUN_URL: platformOrigin,
    BL_API_KEY: workloadKey,
    BL_WORKSPACE: run.workspace,
    BL_TYPE: run.kind,
    BL_NAME: run.name,
    BL_REVISION: run.id,
    BL_CLOUD: 'true',
    BL_DISABLE_H2: '1',
    ...(region === undefined ? {} : { BL_REGION: region }),
  }
}
