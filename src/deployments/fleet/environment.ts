import { workloadKey } from '../../access/index.ts'
import type { DeploymentKind } from '../kinds.ts'
import type { RevisionRun } from './run.ts'

/** Where programs inside reach the platform. */
export const platformOrigin = 'http://hutch.internal'
const anyAddress = '0.0.0.0'

/** Whose program it is. */
interface Deployed {
  workspace: string
  kind: DeploymentKind
  name: string
  revisionId: string
}

/**
 * What the program of a revision finds in its environment: what its image says, over that what its owner set, over that
 * how to be reached and how to reach this platform. Where an agent of AgentField registers is its owner's to say.
 */
export function environmentOf(
  run: RevisionRun,
  imageEnv: Record<string, string>,
  region: string | undefined,
): Record<string, string> {
  const port = String(run.port)
  return {
    ...programDefaults,
    // A node is called in its instance: it need not look for addresses of its own.
    AGENT_CALLBACK_URL: `http://localhost:${port}`,
    ...imageEnv,
    ...run.env,
    HOST: anyAddress,
    PORT: port,
    BL_SERVER_HOST: anyAddress,
    BL_SERVER_PORT: port,
    ...platformEnvironment({ ...run, revisionId: run.id }, region),
  }
}

/** Under all else. */
export const programDefaults = {
  // What is printed is to be in the logs at once, not when a buffer is full.
  PYTHONUNBUFFERED: '1',
  AGENTFIELD_SERVER: platformOrigin,
}

/** Over all else: by which clients inside find this platform, with no configuration of their own. */
export function platformEnvironment(
  { workspace, kind, name, revisionId }: Deployed,
  region: string | undefined,
): Record<string, string> {
  return {
    BL_API_URL: `${platformOrigin}/v0`,
    BL_RUN_URL: platformOrigin,
    BL_API_KEY: workloadKey,
    BL_WORKSPACE: workspace,
    BL_TYPE: kind,
    BL_NAME: name,
    BL_REVISION: revisionId,
    BL_CLOUD: 'true',
    BL_DISABLE_H2: '1',
    ...(region === undefined ? {} : { BL_REGION: region }),
  }
}
