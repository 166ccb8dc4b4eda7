import type { SecretBox } from '../lib/secret-box.ts'
import type { SandboxDraft } from './draft.ts'
import type { ProcessStart } from './processes.ts'
import type { ProxySecrets, SandboxBody, StoredSandbox } from './record.ts'

/** Between drafts, whose secrets are in the clear, and records, whose secrets are sealed for that record alone. */
export class Sealing {
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>

  constructor(secrets: Pick<SecretBox, 'seal' | 'open'>) {
    this.#secrets = secrets
  }

  /** The record of a draft; its status and events are the caller's to set. */
  bodyOf(
    draft: SandboxDraft,
    rest: Pick<
      SandboxBody,
      'uid' | 'createdBy' | 'updatedBy' | 'instanceId' | 'status' | 'events' | 'upgrades' | 'uploadedAt'
    >,
  ): SandboxBody {
    const { env, proxySecrets, seed, ...plain } = draft
    const { uid, createdBy, updatedBy, instanceId, status, events } = rest
    const sealed = proxySecrets.some((secrets) => secrets !== null)
    return {
      ...plain,
      uid,
      createdBy,
      updatedBy,
      instanceId,
      status,
      events,
      ...(rest.upgrades ? { upgrades: rest.upgrades } : {}),
      ...(rest.uploadedAt === undefined ? {} : { uploadedAt: rest.uploadedAt }),
      ...(seed && seed.starts.length > 0
        ? { sealedStarts: this.#secrets.seal(JSON.stringify(seed.starts), startsPurpose(uid)) }
        : {}),
      sealedEnv: this.#secrets.seal(JSON.stringify(env), envPurpose(uid)),
      ...(sealed
        ? { sealedProxySecrets: this.#secrets.seal(JSON.stringify(proxySecrets), proxyPurpose(uid)) }
        : {}),
    }
  }

  draftOf({ body }: StoredSandbox): SandboxDraft {
    const { displayName, externalId, labels, spec } = body
    return {
      ...(displayName === undefined ? {} : { displayName }),
      ...(externalId === undefined ? {} : { externalId }),
      labels,
      spec,
      env: this.env(body),
      proxySecrets: this.proxySecrets(body),
    }
  }

  /** What a sandbox is to be once its image was built. */
  sourceOf(uid: string, draft: SandboxDraft): string {
    return this.#secrets.seal(JSON.stringify(draft), sourcePurpose(uid))
  }

  draftOfSource(uid: string, sealed: string): SandboxDraft {
    return JSON.parse(this.#secrets.open(sealed, sourcePurpose(uid))) as SandboxDraft
  }

  env(body: SandboxBody): Record<string, string> {
    return JSON.parse(this.#secrets.open(body.sealedEnv, envPurpose(body.uid))) as Record<string, string>
  }

  /** What is still to be started of what ran in the snapshot that it was made from. */
  starts(body: SandboxBody): ProcessStart[] {
    if (body.sealedStarts === undefined) return []
    return JSON.parse(this.#secrets.open(body.sealedStarts, startsPurpose(body.uid))) as ProcessStart[]
  }

  proxySecrets(body: SandboxBody): ProxySecrets {
    if (body.sealedProxySecrets === undefined) return []
    return JSON.parse(this.#secrets.open(body.sealedProxySecrets, proxyPurpose(body.uid))) as ProxySecrets
  }
}

const startsPurpose = (uid: string) => `sandbox:${uid}:starts`
const sourcePurpose = (uid: string) => `sandbox:${uid}:source`
const envPurpose = (uid: string) => `sandbox:${uid}:env`
const proxyPurpose = (uid: string) => `sandbox:${uid}:proxy`
