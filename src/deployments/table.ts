import { type Gates, gatesOf } from './gates.ts'
import type { DeploymentKind, Transport } from './kinds.ts'
import { type DeploymentBody, kindOf, type StoredDeployment, type Traffic } from './record.ts'

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
}

/** Every deployment as it is served, kept as its record changes. */
export class DeploymentTable {
  readonly #entries = new Map<string, TableEntry>()

  get(workspace: string, kind: DeploymentKind, name: string): TableEntry | null {
    return this.#entries.get(keyOf(workspace, kind, name)) ?? null
  }

  /** Whoever is told of a record first says so here: a change that was seen counts. */
  set(deployment: StoredDeployment): void {
    const { workspace, name, body, version } = deployment
    const kind = kindOf(deployment)
    const known = this.get(workspace, kind, name)
    if (known?.uid === body.uid && known.version >= version) return
    this.#entries.set(keyOf(workspace, kind, name), {
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
    })
  }

  every(): Iterable<TableEntry> {
    return this.#entries.values()
  }

  delete({ workspace, kind, name }: { workspace: string; kind: string; name: string }): void {
    this.#entries.delete(keyOf(workspace, kind as DeploymentKind, name))
  }
}

function keyOf(workspace: string, kind: DeploymentKind, name: string): string {
  return `${workspace}/${kind}/${name}`
}
