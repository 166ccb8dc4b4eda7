import { type Gates, gatesOf } from './gates.ts'
import type { DeploymentKind, Transport } from './kinds.ts'
import { type DeploymentBody, hostOf, kindOf, type StoredDeployment, type Traffic } from './record.ts'

/** What a request needs to know of a deployment, without a look at its record. */
export interface TableEntry {
  workspace: string
  kind: DeploymentKind
  name: string
  uid: string
  version: number
  state: DeploymentBody['state']
  /** What its triggers make of requests. */
  gates: Gates
  traffic: Traffic
  stickySessionTtl: number
  /** By revision, where it is said. */
  transports: Map<string, Transport>
  revisionIds: Set<string>
  /** What its revisions stand on, or will. */
  images: Set<string>
  /** Of the images that its revisions stand on. */
  digests: string[]
  /** Of its own, of applications. */
  hosts: string[]
}

/** Every deployment as it is served, kept as its record changes. */
export class DeploymentTable {
  /** By workspace and name: asked for several times in each request, which shall put no key together for that. */
  readonly #entries: Record<DeploymentKind, Map<string, Map<string, TableEntry>>> = {
    agent: new Map(),
    function: new Map(),
    application: new Map(),
    job: new Map(),
  }
  /** Names of applications by workspace and host. */
  readonly #hosts = new Map<string, string>()

  get(workspace: string, kind: DeploymentKind, name: string): TableEntry | null {
    return this.#entries[kind].get(workspace)?.get(name) ?? null
  }

  /** Whoever is told of a record first says so here: a change that was seen counts. */
  set(deployment: StoredDeployment): void {
    const { workspace, name, body, version } = deployment
    const kind = kindOf(deployment)
    const known = this.get(workspace, kind, name)
    if (known?.uid === body.uid && known.version >= version) return
    if (known !== null) this.#leaveHosts(known)
    const hosts = body.state === 'deleting' ? [] : (body.spec.urls ?? []).map(hostOf)
    for (const host of hosts) this.#hosts.set(`${workspace}/${host}`, name)
    const ofKind = this.#entries[kind]
    const ofWorkspace = ofKind.get(workspace) ?? new Map<string, TableEntry>()
    ofKind.set(workspace, ofWorkspace)
    ofWorkspace.set(name, {
      workspace,
      kind,
      name,
      uid: body.uid,
      version,
      state: body.state,
      gates: gatesOf(kind, body),
      traffic: body.traffic,
      stickySessionTtl: body.spec.stickySessionTtl,
      transports: new Map(
        body.revisions.flatMap(({ id, spec, built }) => {
          const transport = spec.transport ?? built?.transport
          return transport === undefined ? [] : [[id, transport] as const]
        }),
      ),
      revisionIds: new Set(body.revisions.map(({ id }) => id)),
      // One that is being deleted holds on to nothing.
      images: new Set(
        body.state === 'deleting' ? [] : body.revisions.map(({ image, source }) => image ?? source ?? ''),
      ),
      digests:
        body.state === 'deleting'
          ? []
          : body.revisions.flatMap(({ digest }) => (digest === undefined ? [] : [digest])),
      hosts,
    })
  }

  /** Which application of a workspace has this host; null: none. */
  applicationAt(workspace: string, host: string): string | null {
    return this.#hosts.get(`${workspace}/${host}`) ?? null
  }

  *every(): Iterable<TableEntry> {
    for (const ofKind of Object.values(this.#entries)) {
      for (const ofWorkspace of ofKind.values()) yield* ofWorkspace.values()
    }
  }

  delete({ workspace, kind, name }: { workspace: string; kind: string; name: string }): void {
    const known = this.get(workspace, kind as DeploymentKind, name)
    if (known !== null) this.#leaveHosts(known)
    const ofKind = this.#entries[kind as DeploymentKind]
    const ofWorkspace = ofKind.get(workspace)
    ofWorkspace?.delete(name)
    if (ofWorkspace?.size === 0) ofKind.delete(workspace)
  }

  #leaveHosts({ workspace, name, hosts }: TableEntry): void {
    for (const host of hosts)
      if (this.applicationAt(workspace, host) === name) this.#hosts.delete(`${workspace}/${host}`)
  }
}
