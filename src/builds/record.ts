import type { BuildRequest } from '../builder/index.ts'
import type { Resource } from '../spec/store.ts'
import type { LogKind } from '../telemetry/index.ts'

export const buildKind = 'build'

export const archiveTypes = { 'application/zip': 'zip', 'application/x-tar': 'tar' } as const
export type ArchiveType = (typeof archiveTypes)[keyof typeof archiveTypes]

/** What an image is built for. */
export interface BuildOwner {
  workspace: string
  /** Whose handlers are called: `agent`, `function`, `application`, `sandbox`, `image`, ... */
  kind: string
  name: string
  /** Of the image that comes out, e.g. a revision's id. */
  tag: string
  /** Of the kind `image` alone: what the image is for. */
  imageType?: BuildRequest['kind']
}

/** How a build rests in the store, under its id. */
export interface BuildBody {
  owner: Omit<BuildOwner, 'workspace'>
  /** Of the upload address, kept once it was used: a second use is to be told so. */
  tokenHash: string
  uploadEndsAt: number
  archiveType: ArchiveType | null
  /** Of the archive, while it is kept. */
  archiveBytes: number
  status: 'uploading' | 'building' | 'built' | 'failed'
  uploadedAt: number | null
  startedAt: number | null
  endedAt: number | null
  /** How often it was begun by a platform that then ended without a word. */
  attempts: number
  /** Why it is over, for everybody. Its owner may still have to be told. */
  error: string | null
  image: string | null
}

export type StoredBuild = Resource<BuildBody>

export interface BuildView {
  id: string
  owner: BuildOwner
  status: 'uploading' | 'building' | 'built' | 'failed'
  /** Milliseconds since the epoch. */
  begunAt: number
  uploadedAt: number | null
  startedAt: number | null
  endedAt: number | null
  error: string | null
  /** Once it was built. */
  image: string | null
}

export function buildView({ name, workspace, createdAt, body }: StoredBuild): BuildView {
  const { owner, status, uploadedAt, startedAt, endedAt, error, image } = body
  const times = { begunAt: createdAt, uploadedAt, startedAt, endedAt }
  return { id: name, owner: { workspace, ...owner }, status, ...times, error, image }
}

export function indexesOf(body: BuildBody): Record<string, string> {
  return {
    owner: ownerKey(body.owner),
    over: String(isOver(body)),
    token: body.tokenHash,
  }
}

export function ownerKey({ kind, name, imageType }: Omit<BuildOwner, 'workspace' | 'tag'>): string {
  return imageType === undefined ? `${kind}/${name}` : `${kind}/${imageType}/${name}`
}

/** And its owner knows. */
export function isOver({ status }: Pick<BuildBody, 'status'>): boolean {
  return status === 'built' || status === 'failed'
}

/** Of an owner in its workspace, among all. */
export function fullKey({ workspace, body }: StoredBuild): string {
  return `${workspace}/${ownerKey(body.owner)}`
}

export function imageTypeOf({ kind, imageType }: BuildBody['owner']): BuildRequest['kind'] {
  return imageType ?? (kind as BuildRequest['kind'])
}

/** Whose log a build's lines are in. */
export const logKindOf: Record<BuildRequest['kind'], LogKind> = {
  agent: 'agents',
  function: 'functions',
  application: 'applications',
  job: 'jobs',
  sandbox: 'sandboxes',
}
