import { eventually } from '../lib/test-eventually.ts'
import { type DeploymentKind, type StoredDeployment, workloadView } from './index.ts'
import type { TestDeployments } from './test-host.ts'

export const origin = 'http://localhost:4400'

interface Wanted {
  kind?: DeploymentKind
  name?: string
  spec?: Record<string, unknown>
  metadata?: Record<string, unknown>
  upload?: boolean
}
/** What tests do over and over with one deployment, an agent called `one` unless they say otherwise. */
export function actionsOn(host: () => TestDeployments) {
  const asked = ({ kind = 'agent', name = 'one', spec, metadata, upload = false }: Wanted) => ({
    workspace: 'main',
    kind,
    name,
    input: { metadata: { name, ...metadata }, spec },
    actor: 'me@example.com',
    upload,
    origin,
  })
  const runtime = (more: Record<string, unknown> = {}) => ({ runtime: { image: 'sandbox/app:v1', ...more } })
  const create = (wanted: Wanted = {}) => host().deployments.create(asked({ spec: runtime(), ...wanted }))
  const update = (wanted: Wanted) => host().deployments.update(asked(wanted))
  const read = (kind: DeploymentKind = 'agent', name = 'one') => host().deployments.get('main', kind, name)
  const viewOf = (deployment: StoredDeployment, showSecrets = false) =>
    workloadView(deployment, host().deployments.viewOptions(deployment, origin, { showSecrets }))
  const statusNow = async (kind: DeploymentKind = 'agent') => viewOf(await read(kind)).status
  const statusListed = async () => {
    const deployment = await read()
    return workloadView(deployment, host().deployments.viewOptions(deployment, origin, { events: false }))
      .status
  }
  const acquire = async (cookie: string | null = null) =>
    host().deployments.acquire('main', 'agent', 'one', { cookie })
  const served = async () => (await read()).body.traffic
  const becomes = (status: string, kind: DeploymentKind = 'agent') =>
    eventually(`status ${status}`, async () => (await statusNow(kind)) === status)
  const isDeployed = (id: string | null) =>
    eventually('the revision is ready', async () =>
      (await read()).body.revisions.some((one) => one.id === id && one.phase === 'deployed'),
    )
  /** Makes revisions until there are `count`, each in full service. */
  async function revisions(count: number): Promise<string[]> {
    const ids: string[] = []
    for (let at = 0; at < count; at++) {
      const change = at === 0 ? await create() : await update({ spec: runtime({ memory: 1024 + at }) })
      ids.push(change.revisionId!)
      await isDeployed(change.revisionId)
    }
    return ids
  }
  return {
    asked,
    runtime,
    create,
    update,
    read,
    viewOf,
    statusNow,
    statusListed,
    acquire,
    served,
    becomes,
    isDeployed,
    revisions,
  }
}
