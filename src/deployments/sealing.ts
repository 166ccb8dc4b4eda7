import type { SecretBox } from '../lib/secret-box.ts'
import type { DeploymentDraft } from './draft.ts'
import type { DeploymentBody, Revision, StoredDeployment } from './record.ts'

/** Between what clients send, in the clear, and records, whose secrets are sealed for that record alone. */
export class DeploymentSealing {
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>

  constructor(secrets: Pick<SecretBox, 'seal' | 'open'>) {
    this.#secrets = secrets
  }

  sealEnv(uid: string, env: Record<string, string>): string {
    return this.#secrets.seal(JSON.stringify(env), envPurpose(uid))
  }

  envOf({ uid, sealedEnv }: DeploymentBody): Record<string, string> {
    return JSON.parse(this.#secrets.open(sealedEnv, envPurpose(uid))) as Record<string, string>
  }

  sealRevisionEnv(uid: string, revisionId: string, env: Record<string, string>): string {
    return this.#secrets.seal(JSON.stringify(env), revisionPurpose(uid, revisionId))
  }

  revisionEnv(uid: string, { id, sealedEnv }: Revision): Record<string, string> {
    return JSON.parse(this.#secrets.open(sealedEnv, revisionPurpose(uid, id))) as Record<string, string>
  }

  sealBuiltEnv(uid: string, revisionId: string, env: Record<string, string>): string {
    return this.#secrets.seal(JSON.stringify(env), builtPurpose(uid, revisionId))
  }

  /** What the blaxel.toml of a revision's code says. */
  builtEnv(uid: string, { id, built }: Revision): Record<string, string> {
    if (built === undefined) return {}
    return JSON.parse(this.#secrets.open(built.sealedEnv, builtPurpose(uid, id))) as Record<string, string>
  }

  sealDockerConfig(uid: string, revisionId: string, text: string): string {
    return this.#secrets.seal(text, dockerPurpose(uid, revisionId))
  }

  dockerConfig(uid: string, { id, sealedDockerConfig }: Revision): string | undefined {
    return sealedDockerConfig === undefined
      ? undefined
      : this.#secrets.open(sealedDockerConfig, dockerPurpose(uid, id))
  }

  sealCallbackSecret(uid: string, triggerId: string, secret: string): string {
    return this.#secrets.seal(secret, callbackPurpose(uid, triggerId))
  }

  callbackSecret(uid: string, triggerId: string, sealed: string): string {
    return this.#secrets.open(sealed, callbackPurpose(uid, triggerId))
  }

  draftOf({ body }: StoredDeployment): DeploymentDraft {
    const { displayName, externalId, labels, spec } = body
    return {
      ...(displayName === undefined ? {} : { displayName }),
      ...(externalId === undefined ? {} : { externalId }),
      labels,
      spec,
      env: this.envOf(body),
      skipBuild: false,
    }
  }
}

const envPurpose = (uid: string) => `deployment:${uid}:env`
const revisionPurpose = (uid: string, revisionId: string) => `deployment:${uid}:${revisionId}:env`
const builtPurpose = (uid: string, revisionId: string) => `deployment:${uid}:${revisionId}:built-env`
const dockerPurpose = (uid: string, revisionId: string) => `deployment:${uid}:${revisionId}:docker-config`
const callbackPurpose = (uid: string, triggerId: string) => `deployment:${uid}:trigger:${triggerId}:callback`
