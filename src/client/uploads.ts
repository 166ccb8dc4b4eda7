import type { Transport } from './transport.ts'

/** What is sent to an address that was made for it alone. */
export class Uploads {
  constructor(private readonly transport: Transport) {}

  /** The address is the credential: no key goes along. @throws ClientError */
  async send(url: string, file: Blob, contentType: string): Promise<void> {
    const response = await this.transport.bare(url, {
      method: 'PUT',
      headers: { 'content-type': contentType },
      body: file,
    })
    await response.body?.cancel()
  }
}
