import { ClientError, type Transport } from './transport.ts'

export interface FileInfo {
  name: string
  path: string
  permissions?: string
  size?: number
}

interface Directory {
  path: string
  files: FileInfo[]
  subdirectories: { path: string; name: string }[]
}

/** Files of one sandbox, by absolute path. */
export class Files {
  constructor(
    private readonly transport: Transport,
    private readonly url: string,
  ) {}

  /** The listing, or null when the path is no directory. @throws ClientError 404 */
  async list(path: string): Promise<{ files: FileInfo[]; directories: string[] } | null> {
    const response = await this.transport.request(this.address(path), {
      method: 'GET',
      // A file answers with its bytes, so that a large one is not packed into JSON only to be recognised.
      headers: { accept: 'application/octet-stream' },
    })
    if (response.headers.has('content-disposition')) {
      await response.body?.cancel()
      return null
    }
    const body = (await response.json()) as Directory
    return { files: body.files ?? [], directories: (body.subdirectories ?? []).map((entry) => entry.name) }
  }

  async read(path: string): Promise<{ body: ReadableStream<Uint8Array>; size: number | null }> {
    const response = await this.transport.request(this.address(path), {
      method: 'GET',
      headers: { accept: 'application/octet-stream' },
    })
    if (!response.headers.has('content-disposition')) throw new ClientError(422, `${path} is a directory`)
    const length = response.headers.get('content-length')
    return { body: response.body ?? new Blob([]).stream(), size: length === null ? null : Number(length) }
  }

  /** Streams a file in; `permissions` in octal. */
  async write(path: string, body: ReadableStream<Uint8Array>, permissions: string): Promise<void> {
    const boundary = `hutch-${crypto.randomUUID()}`
    const response = await this.transport.request(this.address(path), {
      method: 'PUT',
      headers: { 'content-type': `multipart/form-data; boundary=${boundary}` },
      body: multipart(boundary, permissions, body),
    })
    await response.body?.cancel()
  }

  async makeDirectory(path: string, permissions = '0755'): Promise<void> {
    await this.transport.json('PUT', this.address(path), { isDirectory: true, permissions })
  }

  private address(path: string): string {
    return `${this.url}/filesystem/${encodeURIComponent(path)}`
  }
}

/** `permissions` comes first: a reader of the stream must know them before the file begins. */
function multipart(
  boundary: string,
  permissions: string,
  body: ReadableStream<Uint8Array>,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  const head =
    `--${boundary}\r\ncontent-disposition: form-data; name="permissions"\r\n\r\n${permissions}\r\n` +
    `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="file"\r\n` +
    'content-type: application/octet-stream\r\n\r\n'
  const reader = body.getReader()
  return new ReadableStream({
    start(controller) {
      controller.enqueue(encoder.encode(head))
    },
    async pull(controller) {
      const { done, value } = await reader.read()
      if (!done) return controller.enqueue(value)
      controller.enqueue(encoder.encode(`\r\n--${boundary}--\r\n`))
      controller.close()
    },
    async cancel(reason) {
      await reader.cancel(reason)
    },
  })
}
