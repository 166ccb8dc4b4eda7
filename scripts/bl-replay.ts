import { crc32, deflateRawSync } from 'node:zlib'

type Kind = 'agent' | 'function' | 'application' | 'sandbox' | 'job'

const plurals: Record<Kind, string> = {
  agent: 'agents',
  function: 'functions',
  application: 'applications',
  sandbox: 'sandboxes',
  job: 'jobs',
}

interface Event {
  time: string
  type: string
  status: string
  revision?: string
}

function newestOf(events: Event[]): Event | undefined {
  return events.toSorted((one, other) => Date.parse(one.time) - Date.parse(other.time)).at(-1)
}

function deployedRevision(events: Event[]): string | undefined {
  return newestOf(events.filter(({ status, revision }) => status === 'DEPLOYED' && revision))?.revision
}

/**
 * The requests that the cloud's own command line makes, one after the other, with its headers, its waiting and its rules
 * for what it believes: for where the program itself cannot be had. Written from its published source, read and not run: what was
 * misread there is wrong here, too.
 */
export class BlReplay {
  constructor(
    private readonly target: { apiUrl: string; runUrl: string; workspace: string; apiKey: string },
    /** Time as it passes for the platform. */
    private readonly clock: { now(): number; wait(ms: number): Promise<void> },
  ) {}

  /** `bl deploy`: sends the resource, uploads, and on a terminal polls `status` until it believes it. */
  async deploy(
    kind: Kind,
    name: string,
    files: Record<string, string>,
    options: { interactive: boolean; env?: Record<string, string> },
  ): Promise<{ statuses: string[] }> {
    const envs = Object.entries(options.env ?? {}).map(([key, value]) => ({ name: key, value }))
    const resource = {
      apiVersion: 'blaxel.ai/v1alpha1',
      kind: `${kind[0]?.toUpperCase()}${kind.slice(1)}`,
      metadata: { name, labels: { 'x-blaxel-auto-generated': 'true' } },
      spec:
        kind === 'application'
          ? { enabled: true, revisions: [{ envs, memory: 2048 }] }
          : { runtime: { envs, ...(kind === 'function' ? { type: 'mcp' } : {}) }, triggers: null },
    }
    const accepted = await this.#write(kind, plurals[kind], resource, '?upload=true')
    await this.#upload(accepted, files)
    return options.interactive ? await this.#watch(kind, name) : { statuses: [] }
  }

  /**
   * `bl deploy --wait`: judges by what is new among the events; a submission that no event about a build answers within three
   * minutes was lost, to it.
   */
  async deployAndWait(
    kind: Kind,
    name: string,
    files: Record<string, string>,
  ): Promise<{ status: string; phase: 'build' | 'rollout' | null; revision: string | undefined }> {
    const before = await this.#rollout(kind, name).catch(() => null)
    await this.deploy(kind, name, files, { interactive: false })
    const isNew = (event: Event) => !before?.events.some((old) => Bun.deepEquals(old, event))
    let sawRollout = false
    for (let waitedMs = 0; waitedMs < 3_600_000; waitedMs += 3_000) {
      const { status, events } = await this.#rollout(kind, name)
      const newest = newestOf(events)
      const revision = deployedRevision(events)
      if (status === 'BUILDING' || status === 'DEPLOYING') sawRollout = true
      else if (status === 'DEPLOYED') {
        const known = before !== null && revision !== undefined
        const isFinal = known
          ? ![
              deployedRevision(before.events),
              newestOf(before.events.filter((one) => one.revision))?.revision,
            ].includes(revision)
          : sawRollout
        const isUnderWay = newest?.type.includes('.deployment.') && !newest.type.endsWith('.succeeded')
        if (isFinal && !isUnderWay) return { status, phase: null, revision }
      } else if (status === 'FAILED' && newest && isNew(newest) && /^failed$/i.test(newest.status)) {
        return { status, phase: newest.type.includes('.buildimage.') ? 'build' : 'rollout', revision }
      }
      const isBuilt = events.some((event) => isNew(event) && event.type.includes('.buildimage.'))
      if (before !== null && waitedMs >= 180_000 && !isBuilt) throw new Error('no build started')
      await this.clock.wait(3_000)
    }
    throw new Error('it would wait for an hour')
  }

  async get(path: string): Promise<unknown> {
    return await this.#json(await this.#send('GET', path))
  }

  async apply(
    kind: Kind,
    resource: { metadata: { name: string; labels?: object }; spec: object },
  ): Promise<unknown> {
    return await this.#json(await this.#write(kind, plurals[kind], resource))
  }

  /** `bl push`: an image of its own, whose status is polled. */
  async push(kind: Kind, name: string, files: Record<string, string>): Promise<string> {
    const accepted = await this.#send('POST', '/images?upload=true', { name, resourceType: kind })
    await this.#upload(accepted, files)
    for (let polls = 0; polls < 720; polls++) {
      await this.clock.wait(5_000)
      const image = (await this.get(`/images/${kind}/${name}`)) as { metadata: { status: string } }
      if (['BUILT', 'FAILED'].includes(image.metadata.status)) return image.metadata.status
    }
    throw new Error('it would wait for an hour')
  }

  /** `bl get image --all`: pages of a version of their own, of summaries or of the tags of one. */
  async images(path = '/images', limit = 100): Promise<{ name: string }[]> {
    const items: { name: string }[] = []
    for (let cursor = ''; ; ) {
      const query = new URLSearchParams({ limit: String(limit), ...(cursor === '' ? {} : { cursor }) })
      const page = (await this.#json(
        await this.#send('GET', `${path}?${query}`, undefined, { 'blaxel-version': '2026-09-22' }),
      )) as { data: { name: string }[]; meta: { hasMore: boolean; nextCursor: string } }
      items.push(...page.data)
      if (!page.meta.hasMore) return items
      if (page.meta.nextCursor === '') throw new Error('hasMore without a cursor')
      cursor = page.meta.nextCursor
    }
  }

  async delete(path: string): Promise<unknown> {
    return await this.#json(await this.#send('DELETE', path))
  }

  /** `bl run`: at the address that the resource names. */
  async run(kind: 'agent' | 'function', name: string, data: object): Promise<Response> {
    const { metadata } = (await this.get(`/${kind}s/${name}`)) as { metadata: { url?: string } }
    const url = metadata.url ?? `${this.target.runUrl}/${this.target.workspace}/${kind}s/${name}`
    return await fetch(url, {
      method: 'POST',
      headers: { ...this.#headers(), 'content-type': 'application/json' },
      body: JSON.stringify(data),
    })
  }

  /** `bl run job`: the same below its address; answers the id that it finds. */
  async runJob(name: string, data: object): Promise<string> {
    const { metadata } = (await this.get(`/jobs/${name}`)) as { metadata: { url: string } }
    const begun = await this.#json(
      await fetch(`${metadata.url}/executions`, {
        method: 'POST',
        headers: { ...this.#headers(), 'content-type': 'application/json' },
        body: JSON.stringify(data),
      }),
    )
    const { execution_id, executionId, id } = begun as Record<string, string>
    return execution_id ?? executionId ?? id ?? ''
  }

  /** `bl chat`: where it does not look for the address. */
  async chat(name: string, message: string): Promise<Response> {
    await this.get(`/agents/${name}`)
    return await fetch(`${this.target.runUrl}/${this.target.workspace}/agents/${name}/?stream=true`, {
      method: 'POST',
      headers: { ...this.#headers(), 'content-type': 'application/json' },
      body: JSON.stringify({ inputs: message }),
    })
  }

  /** `bl logs`: the last hour, newest first; a key that is not there is an error to it. */
  async logs(kind: Kind, name: string, query: Record<string, string> = {}): Promise<string[]> {
    const at = (ms: number) => new Date(ms).toISOString().slice(0, 19)
    const parameters = new URLSearchParams({
      start: at(this.clock.now() - 3_600_000),
      end: at(this.clock.now() + 60_000),
      resourceType: plurals[kind],
      workloadIds: name,
      type: 'all',
      traceId: '',
      limit: '1000',
      offset: '0',
      severity: '',
      search: '',
      taskId: '',
      executionId: '',
      interval: '60',
      workspace: this.target.workspace,
      ...query,
    })
    const answer = (await this.get(`/observability/logs?${parameters}`)) as Record<
      string,
      { logs: { timestamp: string; message: string; severity: number; trace_id: string }[] }
    >
    const found = answer[name]
    if (found === undefined) throw new Error(`no logs of ${name} in the answer`)
    return found.logs.map(({ message }) => message).reverse()
  }

  /** `bl connect sandbox`: the credential is in the address alone. */
  async connect(name: string, typed: string, until: string): Promise<string> {
    const { metadata } = (await this.get(`/sandboxes/${name}`)) as { metadata: { url: string } }
    const address = `${metadata.url.replace(/^http/, 'ws')}/terminal/ws?token=${this.target.apiKey}&cols=80&rows=24`
    const socket = new WebSocket(address)
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    let screen = ''
    socket.addEventListener('open', () => {
      socket.send(JSON.stringify({ type: 'resize', cols: 100, rows: 30 }))
      socket.send(JSON.stringify({ type: 'input', data: typed }))
    })
    socket.addEventListener('message', ({ data }) => {
      const frame = JSON.parse(String(data)) as { type: string; data: string }
      screen += frame.data
      if (frame.type === 'error') reject(new Error(frame.data))
      else if (screen.includes(until)) resolve(screen)
    })
    socket.addEventListener('close', ({ code, reason }) =>
      reject(new Error(`closed: ${code} ${reason}\n${screen}`)),
    )
    return await promise.finally(() => socket.close())
  }

  /** What it does while its screen says that it deploys. */
  async #watch(kind: Kind, name: string): Promise<{ statuses: string[] }> {
    await this.clock.wait(1_000)
    const initial = await this.#status(kind, name)
    const statuses: string[] = []
    let sawBuilding = false
    let sawChange = false
    for (let polls = 0; polls < 300; polls++) {
      await this.clock.wait(3_000)
      const status = await this.#status(kind, name)
      if (status !== initial) sawChange = true
      // Its watcher of logs gives up where one of these fails.
      if (status === 'BUILDING') await this.logs(kind, name, { severity: 'ALL' })
      // A status is looked at when it is new, and never again.
      if (status === statuses.at(-1)) continue
      statuses.push(status)
      if (status === 'BUILDING') sawBuilding = true
      if (status === 'DEPLOYED' && sawBuilding) return { statuses }
      if (status === 'FAILED' && (initial !== 'FAILED' || sawChange)) return { statuses }
      if (/^DEACTIVAT|^DELETING/.test(status)) throw new Error(`unexpected status: ${status}`)
    }
    throw new Error(`it would wait for an hour, having seen ${statuses.join(', ')}`)
  }

  /** Sandboxes and applications are created, and replaced where they are there; the others the other way around. */
  async #write(
    kind: Kind,
    plural: string,
    resource: { metadata: { name: string } },
    query = '',
  ): Promise<Response> {
    const create = () => this.#send('POST', `/${plural}${query}`, resource)
    const replace = () => this.#send('PUT', `/${plural}/${resource.metadata.name}${query}`, resource)
    const createsFirst = kind === 'sandbox' || kind === 'application'
    const [first, second] = createsFirst ? [create, replace] : [replace, create]
    const answered = await first()
    if (!(createsFirst ? [409] : [404, 405]).includes(answered.status)) return answered
    await answered.body?.cancel()
    return await second()
  }

  async #upload(accepted: Response, files: Record<string, string>): Promise<void> {
    const address = accepted.headers.get('X-Blaxel-Upload-Url')
    await this.#json(accepted)
    if (address === null) throw new Error('no X-Blaxel-Upload-Url')
    const archive = zip(files)
    const upload = await fetch(address, {
      method: 'PUT',
      headers: { 'content-type': 'application/zip', 'content-length': String(archive.length) },
      body: archive,
    })
    await upload.body?.cancel()
    if (upload.status !== 200) throw new Error(`upload failed with status: ${upload.status}`)
  }

  async #rollout(kind: Kind, name: string): Promise<{ status: string; events: Event[] }> {
    const { status = 'UNKNOWN', events = [] } = (await this.get(`/${plurals[kind]}/${name}`)) as {
      status?: string
      events?: Event[]
    }
    return { status, events }
  }

  async #status(kind: Kind, name: string): Promise<string> {
    return ((await this.get(`/${plurals[kind]}/${name}`)) as { status?: string }).status ?? 'UNKNOWN'
  }

  #headers(): Record<string, string> {
    return {
      accept: 'application/json',
      authorization: `Bearer ${this.target.apiKey}`,
      'blaxel-version': '2026-04-28',
      'user-agent': 'blaxel/cli/golang/0.1.90 (linux/amd64)',
      'x-blaxel-workspace': this.target.workspace,
      'x-stainless-arch': 'x64',
      'x-stainless-lang': 'go',
      'x-stainless-os': 'Linux',
      'x-stainless-package-version': '0.26.0',
      'x-stainless-retry-count': '0',
      'x-stainless-runtime': 'go',
      'x-stainless-runtime-version': 'go1.25.0',
      'x-stainless-timeout': '60',
    }
  }

  async #send(
    method: string,
    path: string,
    body?: object,
    headers: Record<string, string> = {},
  ): Promise<Response> {
    return await fetch(`${this.target.apiUrl}${path}`, {
      method,
      headers: {
        ...this.#headers(),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  }

  /** It takes an answer for a success only when that is JSON. */
  async #json(response: Response): Promise<unknown> {
    const text = await response.text()
    const type = response.headers.get('content-type') ?? ''
    if (!response.ok) throw new Error(`${response.status} ${text}`)
    if (!type.includes('json')) throw new Error(`expected JSON, got ${type}`)
    return JSON.parse(text)
  }
}

/** As Go writes it: streamed, so that sizes and checksums come after the contents, and folders are entries. */
function zip(files: Record<string, string>): Uint8Array<ArrayBuffer> {
  const parts: Buffer[] = []
  const directory: Buffer[] = []
  let offset = 0
  const add = (name: string, content: Buffer, mode: number) => {
    const isFolder = name.endsWith('/')
    const compressed = isFolder ? Buffer.alloc(0) : deflateRawSync(content)
    const flags = isFolder ? 0x800 : 0x808
    const fields = (sizes: boolean) => {
      const header = Buffer.alloc(26)
      header.writeUInt16LE(20, 0)
      header.writeUInt16LE(flags, 2)
      header.writeUInt16LE(isFolder ? 0 : 8, 4)
      header.writeUInt32LE((0x5a21 << 16) | 0x6000, 6)
      if (sizes) {
        header.writeUInt32LE(crc32(content), 10)
        header.writeUInt32LE(compressed.length, 14)
        header.writeUInt32LE(content.length, 18)
      }
      header.writeUInt16LE(Buffer.byteLength(name), 22)
      return header
    }
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), fields(false), Buffer.from(name)])
    const descriptor = Buffer.alloc(16)
    descriptor.write('PK\x07\x08', 'latin1')
    descriptor.writeUInt32LE(crc32(content), 4)
    descriptor.writeUInt32LE(compressed.length, 8)
    descriptor.writeUInt32LE(content.length, 12)
    const written = isFolder ? [local] : [local, compressed, descriptor]
    const central = Buffer.alloc(14)
    central.writeUInt32LE((mode << 16) >>> 0, 6)
    central.writeUInt32LE(offset, 10)
    directory.push(Buffer.from('PK\x01\x02\x14\x03'), fields(true), central, Buffer.from(name))
    parts.push(...written)
    offset += written.reduce((total, part) => total + part.length, 0)
  }
  const folders = new Set(
    Object.keys(files).flatMap((path) =>
      path
        .split('/')
        .slice(0, -1)
        .map((_, index, all) => `${all.slice(0, index + 1).join('/')}/`),
    ),
  )
  for (const folder of folders) add(folder, Buffer.alloc(0), 0o40755)
  for (const [path, text] of Object.entries(files)) add(path, Buffer.from(text), 0o100644)
  const central = Buffer.concat(directory)
  const end = Buffer.alloc(22)
  end.write('PK\x05\x06', 'latin1')
  const count = folders.size + Object.keys(files).length
  end.writeUInt16LE(count, 8)
  end.writeUInt16LE(count, 10)
  end.writeUInt32LE(central.length, 12)
  end.writeUInt32LE(offset, 16)
  return new Uint8Array(Buffer.concat([...parts, central, end]))
}
