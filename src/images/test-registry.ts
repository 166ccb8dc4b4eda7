/** For tests: a registry on loopback that can be made to behave as badly as registries do. */
import type { TestImage } from './test-image.ts'

export interface RegistryBehaviour {
  auth: 'none' | 'basic' | 'bearer'
  /** Of `auth`. */
  username: string
  password: string
  /** Blobs are served elsewhere: there nobody must learn who we are. */
  redirectBlobs: boolean
  /** Whether a download can be taken up. */
  ranges: boolean
  /** Each answer with a blob ends after so many bytes. */
  cutAfterBytes: number
  /** Blobs are not what their digest says. */
  damaged: boolean
  /** A blob never goes on after its first bytes. */
  stalls: boolean
  /** Blobs come a byte at a time, with so much between them. */
  dripEveryMs: number | null
  /** Awaited before an answer with a blob. */
  gate: Promise<unknown> | null
  challenge: string | null
  redirectTo: string | null
}

export interface Asked {
  method: string
  path: string
  authorization: string | null
  range: string | null
  elsewhere: boolean
}

const token = 'a-token-of-the-registry'

export class TestRegistry implements Disposable {
  readonly asked: Asked[] = []
  readonly behaviour: RegistryBehaviour = {
    auth: 'none',
    username: 'reader',
    password: 'secret:with:colons',
    redirectBlobs: false,
    ranges: true,
    cutAfterBytes: Number.POSITIVE_INFINITY,
    damaged: false,
    stalls: false,
    dripEveryMs: null,
    gate: null,
    challenge: null,
    redirectTo: null,
  }
  readonly #manifests = new Map<string, { bytes: Buffer; type: string }>()
  readonly #blobs = new Map<string, Buffer>()
  readonly #server: Bun.Server<undefined>
  readonly #elsewhere: Bun.Server<undefined>

  constructor() {
    const hostname = '127.0.0.1'
    this.#server = Bun.serve({ port: 0, hostname, idleTimeout: 0, fetch: (request) => this.#answer(request) })
    this.#elsewhere = Bun.serve({
      port: 0,
      hostname,
      idleTimeout: 0,
      fetch: (request) => {
        this.#note(request, true)
        return this.#blob(request, new URL(request.url).pathname.slice(1))
      },
    })
  }

  get host(): string {
    return `localhost:${this.#server.port}`
  }

  /** Requests for blobs so far. */
  get blobsAsked(): number {
    return this.asked.filter(({ path, elsewhere }) => path.includes('/blobs/') || elsewhere).length
  }

  push(repository: string, tag: string, image: TestImage): void {
    const type = 'application/vnd.oci.image.manifest.v1+json'
    for (const name of [tag, image.digest])
      this.#manifests.set(`${repository}:${name}`, { bytes: image.manifest, type })
    for (const [digest, bytes] of image.blobs) this.#blobs.set(digest, bytes)
  }

  /** Under one tag several images, each for a platform. */
  pushIndex(
    repository: string,
    tag: string,
    images: { os: string; architecture: string; image: TestImage }[],
  ): void {
    const manifests = images.map(({ os, architecture, image }) => {
      this.push(repository, image.digest, image)
      return {
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        digest: image.digest,
        size: image.manifest.length,
        platform: { os, architecture },
      }
    })
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests }))
    this.#manifests.set(`${repository}:${tag}`, { bytes, type: 'application/vnd.oci.image.index.v1+json' })
  }

  [Symbol.dispose](): void {
    this.#server.stop(true)
    this.#elsewhere.stop(true)
  }

  #note(request: Request, elsewhere: boolean): void {
    this.asked.push({
      method: request.method,
      path: new URL(request.url).pathname,
      authorization: request.headers.get('authorization'),
      range: request.headers.get('range'),
      elsewhere,
    })
  }

  async #answer(request: Request): Promise<Response> {
    this.#note(request, false)
    const url = new URL(request.url)
    const basic = `Basic ${Buffer.from(`${this.behaviour.username}:${this.behaviour.password}`).toString('base64')}`
    const authorization = request.headers.get('authorization')
    if (url.pathname === '/token') {
      const known = authorization === basic
      if (authorization !== null && !known) return new Response('no', { status: 401 })
      return Response.json({ token: known ? token : 'anonymous' })
    }
    const refused = this.#refusal(authorization, basic)
    if (refused) return refused
    const [, repository, kind, name = ''] =
      /^\/v2\/(.+)\/(manifests|blobs)\/([^/]+)$/.exec(url.pathname) ?? []
    if (kind === 'manifests') {
      const manifest = this.#manifests.get(`${repository}:${name}`)
      if (!manifest) return Response.json({ errors: [{ code: 'MANIFEST_UNKNOWN' }] }, { status: 404 })
      return new Response(new Uint8Array(manifest.bytes), { headers: { 'content-type': manifest.type } })
    }
    if (kind === 'blobs' && this.behaviour.redirectTo)
      return Response.redirect(this.behaviour.redirectTo, 307)
    if (kind === 'blobs' && this.behaviour.redirectBlobs) {
      return Response.redirect(`http://127.0.0.1:${this.#elsewhere.port}/${name}`, 307)
    }
    return kind === 'blobs' ? this.#blob(request, name) : new Response('no', { status: 404 })
  }

  #refusal(authorization: string | null, basic: string): Response | null {
    const { auth, challenge } = this.behaviour
    if (auth === 'none' || authorization === (auth === 'basic' ? basic : `Bearer ${token}`)) return null
    const asks =
      challenge ??
      (auth === 'basic'
        ? 'Basic realm="test"'
        : `Bearer realm="http://${this.host}/token",service="test",scope="repository:x:pull"`)
    return new Response('who are you', { status: 401, headers: { 'www-authenticate': asks } })
  }

  async #blob(request: Request, digest: string): Promise<Response> {
    const { behaviour } = this
    await behaviour.gate
    const stored = this.#blobs.get(digest)
    if (!stored) return new Response('no', { status: 404 })
    let bytes = stored
    if (behaviour.damaged) {
      bytes = Buffer.from(stored)
      bytes[bytes.length - 1]! ^= 1
    }
    const from = behaviour.ranges
      ? Number(/^bytes=(\d+)-$/.exec(request.headers.get('range') ?? '')?.[1] ?? 0)
      : 0
    const rest = bytes.subarray(from)
    const sent = rest.subarray(0, behaviour.cutAfterBytes)
    const headers: Record<string, string> = {
      'content-length': String(rest.length),
      ...(from > 0 ? { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` } : {}),
    }
    const status = from > 0 ? 206 : 200
    const { dripEveryMs } = behaviour
    if (dripEveryMs !== null) return new Response(dripping(rest, dripEveryMs), { status, headers })
    if (sent.length === rest.length && !behaviour.stalls)
      return new Response(new Uint8Array(sent), { status, headers })
    const { stalls } = behaviour
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(new Uint8Array(stalls ? rest.subarray(0, 10) : sent))
        if (!stalls) controller.close()
      },
    })
    // Of no stated length, so that its end comes as a surprise.
    delete headers['content-length']
    return new Response(body, { status, headers })
  }
}

function dripping(bytes: Buffer, everyMs: number): ReadableStream<Uint8Array> {
  let at = 0
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      await Bun.sleep(everyMs)
      if (at === bytes.length) return controller.close()
      controller.enqueue(new Uint8Array(bytes.subarray(at, ++at)))
    },
  })
}
