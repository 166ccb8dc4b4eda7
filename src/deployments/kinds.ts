/** What is deployed: the kinds, and where they differ. */
export const deploymentKinds = ['agent', 'function', 'application', 'job'] as const
export type DeploymentKind = (typeof deploymentKinds)[number]
/** A job answers nobody: its revisions are run task by task, and none of them is kept up. */
export type ServedKind = Exclude<DeploymentKind, 'job'>

export function isServedKind(kind: DeploymentKind): kind is ServedKind {
  return kind !== 'job'
}

interface KindFacts {
  /** In paths. */
  plural: string
  /** Ids of revisions begin with it. */
  revisionPrefix: string
}

export const kindFacts: Record<DeploymentKind, KindFacts> = {
  agent: { plural: 'agents', revisionPrefix: 'rev-' },
  function: { plural: 'functions', revisionPrefix: 'rev-' },
  application: { plural: 'applications', revisionPrefix: 'rev_' },
  job: { plural: 'jobs', revisionPrefix: 'rev-' },
}

export const transports = ['http-stream', 'websocket', 'stdio'] as const
export type Transport = (typeof transports)[number]

export const deploymentStatuses = [
  'UPLOADING',
  'BUILDING',
  'DEPLOYING',
  'DEPLOYED',
  'FAILED',
  'DEACTIVATING',
  'DEACTIVATED',
  'DELETING',
] as const
