import { badRequest, checkName } from '../lib/checks.ts'
import {
  type ForkAnswer,
  type ForkInput,
  programPorts,
  type Snapshots,
  type StoredSnapshot,
  snapshotReference,
} from '../sandboxes/index.ts'
import type { Deployments } from './index.ts'
import type { ApplicationUrl } from './record.ts'

function withUrl(
  urls: readonly ApplicationUrl[],
  url: { domain: string; subdomain: string | null },
): { domain: string; subdomain?: string | null }[] {
  const host = (one: { domain: string; subdomain?: string | null }) =>
    `${one.subdomain || ''} ${one.domain}`.toLowerCase()
  return urls.some((one) => host(one) === host(url)) ? [...urls] : [...urls, url]
}

/** Sandboxes that become applications: a revision with the files of one, and as its program what ran there. */
export class ApplicationForks {
  readonly #deployments: Deployments
  readonly #snapshots: Pick<Snapshots, 'forDeployment' | 'letGo'>

  constructor(options: {
    deployments: Deployments
    snapshots: Pick<Snapshots, 'forDeployment' | 'letGo'>
  }) {
    this.#deployments = options.deployments
    this.#snapshots = options.snapshots
  }

  /**
   * A new application, or a revision of one that is there, from a sandbox by its name or from a snapshot. @throws not_found, bad_request, conflict, and what taking a
   * snapshot throws: then nothing is left
   */
  async fork(
    workspace: string,
    from: string | StoredSnapshot,
    input: ForkInput,
    { actor, origin }: { actor: string; origin: string },
  ): Promise<ForkAnswer> {
    const given = input.targetName || input.target_name
    if (!given) throw badRequest('targetName is missing: how the application is to be called')
    const name = checkName(given)
    const { customDomain, prefix } = input
    if (prefix && !customDomain)
      throw badRequest(
        'prefix: it stands before customDomain, which is missing: a verified domain of this workspace',
      )
    const existing = await this.#deployments.find(workspace, 'application', name)
    const { snapshot, env } = await this.#snapshots.forDeployment(
      workspace,
      typeof from === 'string' ? { sandboxName: from, snapshotId: input.snapshotId || null } : from,
      { taker: `application/${name}`, actor },
    )
    const { spec, id } = snapshot.body
    const envs = spec.envs.map((entry) => ({ ...entry, value: env[entry.name] ?? '' }))
    const asked = {
      workspace,
      kind: 'application' as const,
      name,
      input: {
        spec: {
          image: spec.image,
          memory: input.memory ?? spec.memoryMb,
          port: input.port ?? programPorts(spec)[0] ?? null,
          envs: [...envs, ...(input.envs ?? [])],
          ...(customDomain
            ? {
                urls: withUrl(existing?.body.spec.urls ?? [], {
                  domain: customDomain,
                  subdomain: prefix ?? null,
                }),
              }
            : {}),
          ...(typeof input.traffic === 'number' ? { revision: { traffic: input.traffic } } : {}),
        },
      },
      snapshotId: id,
      actor,
      upload: false,
      origin,
    }
    try {
      await (existing ? this.#deployments.update(asked) : this.#deployments.create(asked))
    } catch (error) {
      if (typeof from === 'string' && !input.snapshotId)
        await this.#snapshots.letGo(workspace, snapshotReference(id))
      throw error
    }
    return { type: 'application', name, snapshotId: id }
  }
}
