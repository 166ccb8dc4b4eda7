/** What is deployed: the kinds, and where they differ. */
export const deploymentKinds = ['agent', 'function', 'application'] as const
export type DeploymentKind = (typeof deploymentKinds)[number]

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
