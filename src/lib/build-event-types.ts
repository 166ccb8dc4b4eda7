/** Types of the events about a build, which the cloud's command line tells from those about a rollout. */
export const buildEventTypes = {
  started: 'ai.blaxel.controlplane.buildimage.started',
  failed: 'ai.blaxel.controlplane.buildimage.failed',
} as const

export function isBuildEvent(type: string): boolean {
  return type.includes('.buildimage.')
}
