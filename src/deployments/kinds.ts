/** What is deployed: the kinds, and where they differ. */
export const deploymentKinds = ['agent', 'function', 'application'] as const
export type DeploymentKind = (typeof deploymentKinds)[number]

interface KindFacts {
  /** In paths. */
  plural: string
  /** Ids of revisions begin with it. */
  revisionPrefix: string
  /** For messages, after an article. */
  title: string
}

export const kindFacts: Record<DeploymentKind, KindFacts> = {
  agent: { plural: 'agents', revisionPrefix: 'rev-', title: 'agent' },
  function: { plural: 'functions', revisionPrefix: 'rev-', title: 'function' },
  application: { plural: 'applications', revisionPrefix: 'rev_', title: 'application' },
}

export const transports = ['http-stream', 'websocket', 'stdio'] as const
export type Transport = (typeof transports)[number]
