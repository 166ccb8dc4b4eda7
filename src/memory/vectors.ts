import { isDeepStrictEqual } from 'node:util'
import { PlatformError } from '../errors.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { everyItem, type Resource, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { indexOf, type MemoryPlace, nameOf } from './place.ts'

export const vectorKind = 'memory_vector'
const dimensionsMax = 8192
const metadataBytesMax = 64 * 1024
/** In a workspace. */
const vectorsMax = 100_000
const foundMax = 1000
/** Read at once, so that others have their turn soon. */
const readMax = 50

interface VectorBody extends MemoryPlace {
  key: string
  /** Single precision numbers, little-endian, as base64. */
  embedding: string
  metadata: Record<string, unknown>
}

export interface MemoryVector extends MemoryPlace {
  key: string
  dimensions: number
  metadata: Record<string, unknown>
  createdAt: number
  updatedAt: number
}

export interface SimilarVector extends MemoryVector {
  /** Of the angle between the two: 1 for the same direction, -1 for the opposite. */
  cosine: number
}

/** Vectors of a place, compared one by one: exact, and in time with how many the place has. */
export class Vectors {
  readonly #store: Store
  readonly #lock = new KeyedLock()

  constructor(store: Store) {
    this.#store = store
  }

  /** @throws bad_request, usage_limit_exceeded */
  async set(
    workspace: string,
    place: MemoryPlace,
    key: string,
    vector: { embedding: readonly number[]; metadata: Record<string, unknown> },
  ): Promise<MemoryVector> {
    const name = nameOf(place, key)
    const { embedding, metadata } = vector
    checkEmbedding('embedding', embedding)
    if (Buffer.byteLength(JSON.stringify(metadata)) > metadataBytesMax) {
      throw new PlatformError('bad_request', `metadata: must be at most ${metadataBytesMax} bytes as JSON`)
    }
    const id = { kind: vectorKind, workspace, name }
    const bytes = Buffer.from(new Float32Array(embedding).buffer)
    const body: VectorBody = { ...place, key, embedding: bytes.toString('base64'), metadata }
    return await this.#lock.run(`${workspace}\n${name}`, async () => {
      const existing = await this.#store.get<VectorBody>(id)
      if (existing !== null) return viewOf(await this.#store.update(id, existing.version, { body }))
      const { total } = await this.#store.page({ kind: vectorKind, workspace, limit: 1 })
      if (total >= vectorsMax) {
        throw new PlatformError(
          'usage_limit_exceeded',
          `this workspace remembers ${total} vectors, the most there can be: delete some first`,
        )
      }
      const [created] = await this.#store.batch([
        { op: 'create', input: { ...id, body, indexes: { place: indexOf(place) } } },
        inWorkspace(workspace),
      ])
      return viewOf(created as Resource<VectorBody>)
    })
  }

  async get(workspace: string, place: MemoryPlace, key: string): Promise<MemoryVector | null> {
    const found = await this.#store.get<VectorBody>({ kind: vectorKind, workspace, name: nameOf(place, key) })
    return found && viewOf(found)
  }

  /** False when there was none. */
  remove(workspace: string, place: MemoryPlace, key: string): Promise<boolean> {
    return this.#store.remove({ kind: vectorKind, workspace, name: nameOf(place, key) })
  }

  /**
   * Those that point most nearly where `embedding` does, the nearest first; of as many dimensions, and whose metadata has
   * every value of `filters`. @throws bad_request
   */
  async search(
    workspace: string,
    place: MemoryPlace,
    wanted: { embedding: readonly number[]; limit: number; filters: Record<string, unknown> },
  ): Promise<SimilarVector[]> {
    checkEmbedding('query_embedding', wanted.embedding)
    const query = new Float32Array(wanted.embedding)
    const queryLength = lengthOf(query)
    const filters = Object.entries(wanted.filters)
    const limit = Math.min(wanted.limit, foundMax)
    let best: SimilarVector[] = []
    const all = everyItem((page) =>
      this.#store.page<VectorBody>({
        kind: vectorKind,
        workspace,
        where: { place: indexOf(place) },
        ...page,
        limit: readMax,
      }),
    )
    for await (const stored of all) {
      const { embedding, metadata } = stored.body
      if (!filters.every(([name, value]) => isDeepStrictEqual(metadata[name], value))) continue
      const vector = vectorOf(embedding)
      if (vector.length !== query.length) continue
      best.push({ ...viewOf(stored), cosine: cosineOf(vector, query, queryLength) })
      if (best.length >= limit * 2 + 100) best = nearest(best, limit)
    }
    return nearest(best, limit)
  }
}

function nearest(found: SimilarVector[], limit: number): SimilarVector[] {
  return found.sort((left, right) => right.cosine - left.cosine).slice(0, limit)
}

function vectorOf(base64: string): Float32Array {
  const bytes = Uint8Array.fromBase64(base64)
  return new Float32Array(bytes.buffer, 0, bytes.length / Float32Array.BYTES_PER_ELEMENT)
}

function lengthOf(vector: Float32Array): number {
  let sum = 0
  for (const value of vector) sum += value * value
  return Math.sqrt(sum)
}

function cosineOf(vector: Float32Array, query: Float32Array, queryLength: number): number {
  let product = 0
  for (let at = 0; at < query.length; at++) product += vector[at]! * query[at]!
  const lengths = lengthOf(vector) * queryLength
  return lengths === 0 ? 0 : product / lengths
}

function checkEmbedding(field: string, embedding: readonly number[]): void {
  const isFine = embedding.length >= 1 && embedding.length <= dimensionsMax
  if (isFine && embedding.every((value) => Number.isFinite(Math.fround(value)))) return
  throw new PlatformError('bad_request', `${field}: must be 1 to ${dimensionsMax} finite numbers`)
}

function viewOf({ body, createdAt, updatedAt }: Resource<VectorBody>): MemoryVector {
  const { scope, scopeId, key, embedding, metadata } = body
  const bytes = Math.floor((embedding.replace(/=+$/, '').length * 3) / 4)
  const dimensions = bytes / Float32Array.BYTES_PER_ELEMENT
  return { scope, scopeId, key, dimensions, metadata, createdAt, updatedAt }
}
